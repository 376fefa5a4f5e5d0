"""Where plan and report go: refused before any work where they cannot, then written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.console import progress
from orchestrator.errors import DataError
from orchestrator.planner.plan import PlanResult
from orchestrator.planner.records import Records
from orchestrator.repository.files import write_all
from orchestrator.spec import CascadeSpec, json_from_cascade


def check_output(output: Path | None, *, inputs: Sequence[Path | None]) -> None:
    """Refuses an output that would overwrite an input, or has no folder to be in.

    Args:
        output: file to write, if any.
        inputs: files that are read, those that are.

    Raises:
        DataError: naming what is there.
    """
    if output is None:
        return
    what = f"plan --output {output}"
    if output.is_dir():
        raise DataError(what, got="a folder", expected="a file, such as cascade.json")
    for path in inputs:
        # What is not there is no fault of the output.
        with contextlib.suppress(OSError):
            if path is not None and output.samefile(path):
                raise DataError(what, got=f"{path}, which is read", expected="another file, such as cascade.json")
    place = next((folder for folder in output.absolute().parents if folder.exists()), Path("/"))
    if not place.is_dir():
        raise DataError(what, got=f"{place}, a file", expected="a folder to write in")


def write_plan(output: Path, spec: CascadeSpec) -> None:
    """Writes a cascade.json, whole or not at all.

    Raises:
        RepositoryError: the disk is full, or the place cannot be written to.
    """
    text = json_from_cascade(spec)
    # Where a link points to, not the link, is replaced; a pipe or a terminal cannot be.
    path = output.resolve()
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    write_all(path.parent, {path.name: text})


def write_plan_report(folder: Path, found: PlanResult, records: Records) -> None:
    """Writes the report of a plan; costs are those that were planned with, whatever the records say.

    Raises:
        DataError: a package is missing, or the place cannot be written to.
    """
    try:
        from orchestrator.report.page import write_report
    except ImportError as error:
        raise DataError(
            "plan --report",
            got=f"no package {error.name}",
            expected="it installed",
            fix="pip install committee[plan]",
        ) from error
    write_report(
        folder,
        found.spec,
        dataclasses.replace(records, cost={member.name: member.cost for member in found.pool}),
        frontier=found.frontier,
        pool=found.pool,
        progress=progress,
    )
