"""A served model in a repository: its plan, its class names, its image processing."""

from functools import partial
from pathlib import Path

from orchestrator.errors import InputError, RepositoryError
from orchestrator.repository.class_names import class_names_of
from orchestrator.repository.index import plan_path
from orchestrator.rows.pictures import ReadPicture, reader_for
from orchestrator.spec import CascadeSpec, Preprocess, cascade_from_path, manifest_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.served_model import ModelInfo


def plan_of(repository: Path, cascade: str) -> CascadeSpec:
    """The plan of a cascade by name.

    Raises:
        RepositoryError: there is no such cascade.
    """
    path = plan_path(repository / cascade)
    if path is None:
        got = f"no cascade.json in {repository / cascade}"
        raise RepositoryError(f"cascade {cascade}", got=got, fix="render it with `committee render`")
    return cascade_from_path(path)


def cascade_in(repository: Path, model: str, version: int | None) -> CascadeSpec | None:
    """The plan of a served version of a model; None where the repository has none for it.

    Raises:
        SpecError: the plan is wrong.
    """
    path = repository / model / str(version) / PLAN
    return cascade_from_path(path) if path.is_file() else None


def labels_in(repository: Path, model: str, version: int | None) -> tuple[str, ...] | None:
    """Class names of a cascade, a member or any model with a label file; None where nothing says."""
    spec = cascade_in(repository, model, version)
    return class_names_of(repository / model) if spec is None else spec.labels


def preprocess_in(repository: Path, model: str, version: int | None) -> Preprocess:
    """How pictures become rows of a model, from its cascade.json or a member's manifest.json.

    Raises:
        RepositoryError: the repository has neither file.
        InputError: the file says nothing about pictures.
    """
    spec = cascade_in(repository, model, version)
    manifest = repository / model / MANIFEST
    if spec is None and not manifest.is_file():
        raise RepositoryError(
            f"pictures for model {model}",
            got=f"neither {version}/cascade.json nor manifest.json in {repository / model}",
            fix="name the repository with `repository`, or send rows as .npy",
        )
    found = manifest_from_path(manifest).preprocess if spec is None else spec.input.preprocess
    if found is None:
        raise InputError(
            f"pictures for model {model}",
            got="no `preprocess` section in its description",
            fix="write one, or send rows as .npy",
        )
    return found


def picture_reader(repository: Path, info: ModelInfo) -> ReadPicture:
    """A function from an encoded picture and its name to one row (*dims); its first call reads the repository.

    Raises:
        InputError, RepositoryError: see `preprocess_in`, when a picture is read.
    """
    return reader_for(info, partial(preprocess_in, repository, info.name, info.version))
