"""A repository as a rendering would leave it, made of links, to be checked before anything is written."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import CommitteeError, SpecError
from orchestrator.repository.check import CheckReport, Fault
from orchestrator.repository.files import disk_errors


@contextmanager
def previewed(repository: Path, *, written: Iterable[str], others: Iterable[str]) -> Iterator[Path]:
    """A folder of links to models of a repository, to render into and to check.

    Errors that are raised in the block name the files of the repository that they are about.

    Args:
        repository: that is looked at.
        written: models that may be written to: what is written replaces links and leaves the linked files alone.
        others: further models, which are read only. Folders that are missing are left out.

    Raises:
        RepositoryError: the disk refuses.
    """
    with disk_errors("a temporary folder, for which TMPDIR may name the place"):
        scratch = tempfile.TemporaryDirectory(prefix="committee-preview-")
    with scratch as name:
        preview = Path(name).resolve()
        with disk_errors(f"model repository {repository}"):
            changing = set(written)
            for model in sorted({*changing, *others}):
                folder = (repository / model).absolute()
                if folder.is_dir() and model in changing:
                    link_files(folder, preview / model)
                elif folder.is_dir():
                    (preview / model).symlink_to(folder)
        try:
            yield preview
        except CommitteeError as error:
            _rename_in_error(error, str(preview), str(repository))
            raise


def link_files(source: Path, target: Path, above: tuple[Path, ...] = ()) -> None:
    """Makes a folder with the sub-folders of another one and links to its files.

    Raises:
        OSError: the disk refuses.
    """
    target.mkdir()
    above = (*above, source.resolve())
    for path in source.iterdir():
        # A link to a folder above would never end; it stays a link.
        if path.is_dir() and path.name != "__pycache__" and path.resolve() not in above:
            link_files(path, target / path.name, above)
        else:
            (target / path.name).symlink_to(path)


def report_of_rendering(report: CheckReport, *, preview: Path, source: Path, target: Path) -> CheckReport:
    """A preview's report as one of the rendering that it previews.

    Args:
        report: of the preview.
        preview: that was checked.
        source: the repository whose files it links to, and which are wrong where one is.
        target: where the rendering goes.
    """

    def renamed(found: Iterable[Fault]) -> tuple[Fault, ...]:
        old, new = str(preview), str(source)
        return tuple(dataclasses.replace(fault, text=fault.text.replace(old, new)) for fault in found)

    return dataclasses.replace(
        report, repository=target, faults=renamed(report.faults), notes=renamed(report.notes)
    )


def _rename_in_error(error: CommitteeError, old: str, new: str) -> None:
    error.args = tuple(str(text).replace(old, new) for text in error.args)
    for field in ("what", "got", "expected", "fix"):
        value = getattr(error, field)
        setattr(error, field, value if value is None else str(value).replace(old, new))
    if isinstance(error, SpecError):
        error.faults = {field: text.replace(old, new) for field, text in error.faults.items()}
