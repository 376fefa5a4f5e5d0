"""Writes a report into a folder: the pages and the pictures by themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError
from orchestrator.files import write_file
from orchestrator.planner.records import Records
from orchestrator.progress import Progress, no_progress
from orchestrator.report.data import report_from_records
from orchestrator.report.page import page_from_report
from orchestrator.report.pictures import pictures_from_report, sketches_from_report
from orchestrator.spec import CascadeSpec, Member


def write_report(
    folder: Path,
    spec: CascadeSpec,
    records: Records,
    *,
    frontier: Sequence[Mapping[str, Any]] = (),
    certify: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    pool: Sequence[Member] = (),
    progress: Progress = no_progress,
) -> Path:
    """Writes `index.html`, which needs no other file, and every picture as a PNG.

    Args:
        folder: made if it is not there; other files in it stay.
        spec: the plan.
        records: n rows of all its members, and of any others it is compared with; costs in the plan's unit.
        frontier: rows as `committee plan --json` prints them.
        certify: facts of the guarantee; None takes `guarantee` of the plan's `fit.extra`. `reference` in it names
            the member, or "ensemble", that the plan is compared with; without one `reference` of `fit.extra` does.
        calibration: facts of the temperatures; None takes `calibration` of the plan's `fit.extra`.
        pool: members the plan was chosen from, with the temperatures it was chosen with; without
            them others than the plan's are as the records describe them.
        progress: shows the drawing.

    Returns:
        path of the page.

    Raises:
        DataError: the records do not fit the plan, matplotlib is missing, or the folder cannot be written to.
    """
    with _made(folder):
        report = report_from_records(
            spec, records, frontier=frontier, certify=certify, calibration=calibration, pool=pool
        )
        with progress("drawing the report", len(sketches_from_report(report))) as advance:
            pictures = pictures_from_report(report, advance=advance)
        contents = {f"{picture.name}.png": picture.light for picture in pictures}
        # The page goes last: where it is, the rest is.
        contents["index.html"] = page_from_report(report, pictures).encode()
        try:
            for name, content in contents.items():
                write_file(folder / name, content)
        except OSError as error:
            raise _unwritable(folder, error) from error
    return folder / "index.html"


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes the folder first, so that nobody waits for pictures that cannot be written, and leaves none empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()
        raise


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"report {folder}", got=str(error), expected="a folder that can be written to")
