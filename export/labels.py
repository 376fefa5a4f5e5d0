"""Names of a member's classes: read from a file, and changed where nothing else of a member has."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from export.members import is_current, manifest_in
from orchestrator.errors import ExportError
from orchestrator.repository.files import write_all
from orchestrator.repository.render import render_member
from orchestrator.spec import Manifest
from orchestrator.spec.answer import first_unlike, names_from_text
from orchestrator.spec.manifest import MANIFEST, json_from_manifest

# An option of a manifest; it decides nothing but the manifest and the label file.
LABELS_OPTION = "labels_sha256"


def labels_from_path(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line, in the order of the scores.

    Raises:
        ExportError: it cannot be read, is empty, or has a line without a name.
    """
    what = f"`labels` {path}"
    try:
        names = names_from_text(path.read_bytes().decode())
    except OSError as error:
        raise ExportError(what, got=f"a file that cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ExportError(
            what, got="text that is not UTF-8", expected="a name per line", fix="save it as UTF-8"
        ) from error
    if not names:
        raise ExportError(what, got="no names", expected="one per class, a line each, in the order of the scores")
    wrong = next((number for number, name in enumerate(names, 1) if not name or set(name) & set("\r\n")), None)
    if wrong is not None:
        raise ExportError(what, got=f"no name on line {wrong}", expected="one name a line")
    return names


def require_one_per_class(subject: str, labels: tuple[str, ...] | None, classes: int) -> None:
    """Raises ExportError where the number of names is not that of the classes."""
    if labels is not None and len(labels) != classes:
        raise ExportError(f"{subject} labels", got=f"{len(labels)} names", expected=f"{classes}, one per class")


def label_options(labels: tuple[str, ...] | None) -> dict[str, Any]:
    """The option that a manifest keeps of given class names; none where none are given."""
    if labels is None:
        return {}
    return {LABELS_OPTION: hashlib.sha256("".join(f"{name}\n" for name in labels).encode()).hexdigest()}


def require_same_classes(manifest: Manifest, other: Manifest) -> None:
    """Raises ExportError where two members of one committee have different classes."""
    mine, others = manifest.output.dims[0], other.output.dims[0]
    if mine != others:
        raise ExportError(
            f"{manifest.name} beside {other.name}",
            got=f"{mine} classes",
            expected=f"{others}, as members of one committee share their classes",
            fix="export them in separate commands if they are not one committee",
        )
    if not manifest.labels or not other.labels:
        return
    place = first_unlike(manifest.labels, other.labels)
    if place is not None:
        raise ExportError(
            f"{manifest.name} beside {other.name}",
            got=f"class {place} called {manifest.labels[place]!r}",
            expected=f"{other.labels[place]!r}, the same classes in the same order",
            fix="name the classes of all of them with `labels`",
        )


def rename_if_current(
    repository: Path,
    name: str,
    labels: tuple[str, ...] | None,
    *,
    options: dict[str, Any],
    beside: Manifest | None,
) -> bool:
    """Renames the classes of a member that is otherwise up to date.

    Args:
        repository: that holds it.
        name: of the member, which need not be there.
        labels: the names; None leaves them.
        options: those the manifest will have then.
        beside: another member of the same committee, whose classes it must share.

    Returns:
        whether it has other names now; False also where its files are out of date.

    Raises:
        ExportError: not one name per class, or other names than those of the other member.
        RepositoryError: the repository cannot be read or written.
    """
    if labels is None or not is_current(repository / name, options, apart_from=LABELS_OPTION):
        return False
    if beside is not None:
        require_same_classes(dataclasses.replace(manifest_in(repository, name), labels=labels), beside)
    return rename_classes(repository, name, labels, options=options)


def rename_classes(
    repository: Path, name: str, labels: tuple[str, ...] | None, *, options: dict[str, Any] | None = None
) -> bool:
    """Writes other names of a member's classes, and the options that go with them, into its manifest and config.

    Returns:
        whether it had other names before.

    Raises:
        ExportError: not one name per class.
        RepositoryError: the repository cannot be read or written.
    """
    manifest = manifest_in(repository, name)
    renamed = dataclasses.replace(
        manifest, labels=labels, options=manifest.options if options is None else options
    )
    if renamed == manifest:
        return False
    require_one_per_class(f"member {name}", labels, manifest.output.dims[0])
    write_all(repository / name, {MANIFEST: json_from_manifest(renamed)})
    render_member(repository / name)
    return True
