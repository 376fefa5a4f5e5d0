"""Class names that the models of a repository give, in manifests and label files."""

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.repository.index import readable_config
from orchestrator.spec import CascadeSpec, manifest_from_path
from orchestrator.spec.answer import first_misplaced, first_unlike, names_from_text
from orchestrator.spec.manifest import MANIFEST

Names = tuple[str, ...]


def label_file_of(folder: Path, config: ModelConfig | None, *, output: str | None = None) -> Path | None:
    """The label file that a model's configuration names, which Triton looks for in the model's folder.

    The label file of `output`, the one with the scores, is preferred to another output's.
    """
    named = {} if config is None else {one.name: one.label_filename for one in config.output if one.label_filename}
    files = {named[output]} if output in named else set(named.values())
    return folder / files.pop() if len(files) == 1 else None


def names_in_label_file(path: Path) -> Names:
    """The class names of a label file.

    Raises:
        RepositoryError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        return names_from_text(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise RepositoryError(
            f"label file {path}", got="text that is not UTF-8", fix="save it as UTF-8"
        ) from error
    except OSError as error:
        raise RepositoryError(
            f"label file {path}", got=f"a file that cannot be read ({error.strerror})"
        ) from error


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

    Args:
        repository: that holds the members.
        outputs: member name -> its output with the scores, None where that is not known.
    """
    found = {name: class_names_of(repository / name, output) for name, output in outputs.items()}
    return {name: names for name, names in found.items() if names is not None}


def common_names(stated: Mapping[str, Names], *, classes: int) -> Names | None:
    """The class names on which all members that have any agree, in the first member's spelling.

    Args:
        stated: member -> its class names, where anything says.
        classes: k; lists of another length name other classes and are ignored.

    Returns:
        None where no member has names, or two have different ones.
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
