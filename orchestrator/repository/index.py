"""The content of a repository: its models, their versions, files, plans, class names and image processing."""

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import InputError, RepositoryError, SpecError
from orchestrator.graphs.combining import averaging_name, spec_from_averaging
from orchestrator.pbtxt import CONFIG, config_from_path, json_from_config
from orchestrator.repository.files import disk_errors
from orchestrator.rows.pictures import ReadPicture, reader_for
from orchestrator.spec import CascadeSpec, Preprocess, cascade_from_path, manifest_from_path
from orchestrator.spec.answer import first_misplaced, first_unlike, names_from_text
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.deriving import is_deriving
from orchestrator.spec.documents import text_from_path
from orchestrator.spec.manifest import MANIFEST, one_order
from orchestrator.spec.served_model import ModelInfo
from orchestrator.spec.triton import BACKEND_OF_FILE, backend_of, served_versions, usual_file, versions_in


def model_folders(repository: Path) -> dict[str, Path]:
    """The models of a repository by name.

    Raises:
        RepositoryError: the folder is missing, no folder, not readable, or holds no model.
    """
    what = f"model repository {repository}"
    if not repository.exists():
        raise RepositoryError(f"{what} does not exist", fix="name an existing folder with `repository`")
    if not repository.is_dir():
        raise RepositoryError(what, got="a file", expected="a folder with one folder per model")
    with disk_errors(what):
        folders = {path.name: path for path in sorted(repository.iterdir()) if path.is_dir()}
    if not folders:
        raise RepositoryError(f"{what} is empty", expected="one folder per model", fix="export or copy members")
    return folders


def require_members(spec: CascadeSpec, repository: Path) -> None:
    """Raises RepositoryError naming every member, or deriving model, the repository does not hold."""
    folders = model_folders(repository)
    makers = [name for name, folder in folders.items() if _derives(folder)]
    # A plan may have a plan for a member, but seldom has one by mistake.
    others = [name for name, folder in folders.items() if name not in makers and plan_path(folder) is None]
    needed = {"members": ([one.name for one in spec.members], others)}
    for kind, (names, known) in {
        **needed,
        "deriving models": ([one.name for one in spec.derived], makers),
    }.items():
        missing = [name for name in dict.fromkeys(names) if name not in folders]
        if missing:
            what, expected = f"{spec.name}: {kind} missing from {repository}", f"{kind} among {', '.join(known)}"
            fix = "export or copy them there, or plan with others"
            raise RepositoryError(what, got=", ".join(missing), expected=expected, fix=fix)


def _derives(folder: Path) -> bool:
    # What is wrong with a manifest is said where it is read.
    with suppress(SpecError):
        return (folder / MANIFEST).is_file() and is_deriving(folder / MANIFEST)
    return False


def config_of(folder: Path) -> ModelConfig | None:
    """The model's configuration, or None where it has none; RepositoryError where it is malformed."""
    path = folder / CONFIG
    return config_from_path(path) if path.exists() else None


def readable_config(folder: Path) -> ModelConfig | None:
    """The model's configuration, or None where it has none or a malformed one, which `check` reports."""
    try:
        return config_of(folder)
    except RepositoryError:
        return None


def policy_of(config: ModelConfig | None) -> dict[str, Any]:
    """A configuration's version policy as JSON values, see `served_versions`; empty where it has none."""
    return {} if config is None else dict(json_from_config(config).get("version_policy", {}))


def versions_served(folder: Path, config: ModelConfig | None = None) -> tuple[int, ...]:
    """The versions in a model folder that Triton serves, ascending; see `served_versions`."""
    with disk_errors(f"model folder {folder}"):
        return served_versions(policy_of(config), versions_in(folder))


def served_version(folder: Path, config: ModelConfig | None = None) -> int | None:
    """The version that answers requests which name none: the highest that the configuration allows."""
    return max(versions_served(folder, config), default=None)


def model_file(folder: Path, config: ModelConfig | None, *, version: int | None = None) -> Path | None:
    """The file that the server loads, whether it exists or not; None where that is unknown.

    Without a configuration, or with one that names no backend, the files that exist decide the backend. Without a
    version, the one that answers requests without a version is taken.
    """
    version = served_version(folder, config) if version is None else version
    if version is None:
        return None
    inside = folder / str(version)
    config = config or ModelConfig()
    backend = backend_of(config.backend, config.platform)
    named = config.default_model_filename or usual_file(backend)
    if config.cc_model_filenames:
        # One engine per kind of GPU; only the serving machine knows which one it loads.
        named = min(config.cc_model_filenames.values())
    if named:
        return inside / named
    present = (inside / name for name in BACKEND_OF_FILE if (inside / name).exists())
    return None if backend else next(present, None)


def plan_path(folder: Path) -> Path | None:
    """cascade.json of the served version, else of the highest version that has one; None for other models."""
    version = served_version(folder, readable_config(folder))
    paths = [] if version is None else [folder / str(version) / PLAN]
    paths += sorted(folder.glob(f"*/{PLAN}"), reverse=True)
    return next((path for path in paths if path.is_file()), None)


def onnx_from_path(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file, without weights that lie in other files.

    Raises:
        RepositoryError: the file cannot be read as ONNX.
    """
    what = f"model file {path}"
    with disk_errors(what):
        try:
            model = onnx.load(str(path), load_external_data=False)
        except DecodeError as error:
            raise RepositoryError(what, got="no ONNX model", fix="export it again") from error
    if not model.graph.output:
        # An empty or truncated file can parse as an empty message.
        raise RepositoryError(what, got="an ONNX model without outputs", fix="export it again")
    return model


def external_files(model: onnx.ModelProto) -> set[str]:
    """Files beside an ONNX model that hold its weights, as paths relative to its folder."""
    return {str(ExternalDataInfo(t).location) for t in model.graph.initializer if uses_external_data(t)}


def ensemble_spec(folders: dict[str, Path], name: str) -> CascadeSpec | None:
    """The plan of a rendered ensemble, from the metadata of its averaging model; None for any other model.

    Raises:
        RepositoryError: the averaging model cannot be read.
        SpecError: the plan in it is wrong.
    """
    folder = folders.get(averaging_name(name))
    if folder is None:
        return None
    path = model_file(folder, config_of(folder))
    if path is None or path.suffix != ".onnx" or not path.is_file():
        return None
    return spec_from_averaging(onnx_from_path(path), subject=str(path))


def plans_in(repository: Path) -> tuple[list[CascadeSpec], list[CascadeSpec]]:
    """The plans of every cascade and every rendered ensemble of a repository.

    Raises:
        RepositoryError: the repository or one of its models cannot be read.
        SpecError: a plan is wrong.
    """
    folders = model_folders(repository)
    paths = {name: plan_path(folder) for name, folder in folders.items()}
    ensembles = (ensemble_spec(folders, name) for name, path in paths.items() if path is None)
    cascades = [cascade_from_path(path) for path in paths.values() if path is not None]
    return cascades, [spec for spec in ensembles if spec is not None]


Names = tuple[str, ...]


def label_file_of(folder: Path, config: ModelConfig | None, *, output: str | None = None) -> Path | None:
    """The label file that a model's configuration names, which Triton looks for in the model's folder.

    The label file of `output`, the one with the scores, is preferred to another output's.
    """
    named = {} if config is None else {one.name: one.label_filename for one in config.output if one.label_filename}
    files = {named[output]} if output in named else set(named.values())
    return folder / files.pop() if len(files) == 1 else None


def names_in_label_file(path: Path) -> Names:
    """The class names of a label file; RepositoryError where it is missing, cannot be read, or is not UTF-8."""
    what = f"label file {path}"
    try:
        return names_from_text(text_from_path(path, newline=""))
    except ValueError as error:
        raise RepositoryError(what, got=f"a file that {error}", expected="a name per line, in UTF-8") from error


def class_names_of(folder: Path, output: str | None = None) -> Names | None:
    """A model's class names, from its manifest, else from the label file of its scores.

    A file that cannot be read counts as none here; `check` reports it. `output` is as for `label_file_of`.
    """
    with suppress(SpecError):
        manifest = manifest_from_path(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
        if manifest is not None and manifest.labels is not None:
            return manifest.labels
    path = label_file_of(folder, readable_config(folder), output=output)
    with suppress(RepositoryError):
        return None if path is None else names_in_label_file(path)
    return None


def class_names_by_member(repository: Path, outputs: Mapping[str, str | None]) -> dict[str, Names]:
    """Class names of the members that have any.

    `outputs` has each member's output with the scores, None where that is not known.
    """
    found = {name: class_names_of(repository / name, output) for name, output in outputs.items()}
    return {name: names for name, names in found.items() if names is not None}


def common_names(stated: Mapping[str, Names], *, classes: int) -> Names | None:
    """The class names on which all members that have any agree, in the first member's spelling; else None.

    Lists of another length than the k classes name other classes and are ignored.
    """
    known = [names for names in stated.values() if len(names) == classes]
    if not known or any(first_unlike(known[0], other) is not None for other in known[1:]):
        return None
    return known[0]


def named_spec(spec: CascadeSpec, repository: Path) -> CascadeSpec:
    """The plan with the class names that its members have now.

    The plan's own names stay where no member has any, where members contradict each other, and where the members
    have the plan's names in another order: labels of rows may have been matched by name, which `check` reports.
    """
    stated = class_names_by_member(repository, {one.name: one.output for one in spec.members})
    names = common_names(stated, classes=spec.classes)
    planned = spec.labels or ()
    if names is None or first_unlike(names, planned) is None or first_misplaced(names, planned) is not None:
        return spec
    return dataclasses.replace(spec, labels=names)


def plan_of(repository: Path, cascade: str) -> CascadeSpec:
    """The plan of a cascade by name; RepositoryError where there is no such cascade."""
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
        got = f"neither {version}/cascade.json nor manifest.json in {repository / model}"
        fix = "name the repository with `repository`, or send rows as .npy"
        raise RepositoryError(f"pictures for model {model}", got=got, fix=fix)
    if spec is None:
        found = manifest_from_path(manifest).preprocess
    else:
        found = next((one.preprocess for one in spec.inputs if one.preprocess is not None), None)
    if found is None:
        got, fix = "no `preprocess` section in its description", "write one, or send rows as .npy"
        raise InputError(f"pictures for model {model}", got=got, fix=fix)
    return found


def trained_columns(repository: Path, info: ModelInfo) -> tuple[str, ...]:
    """The columns that a model, or the members of a cascade, were fitted on, in order; see `one_order`."""
    spec = cascade_in(repository, info.name, info.version)
    names = [info.name] if spec is None else [member.name for member in spec.members]
    paths = {name: repository / name / MANIFEST for name in names}
    return one_order({name: manifest_from_path(path) for name, path in paths.items() if path.is_file()})


def picture_reader(repository: Path, info: ModelInfo) -> ReadPicture:
    """A function from an encoded picture and its name to one row (*dims); its first call reads the repository.

    Raises:
        InputError, RepositoryError: see `preprocess_in`, when a picture is read.
    """
    return reader_for(info, partial(preprocess_in, repository, info.name, info.version))
