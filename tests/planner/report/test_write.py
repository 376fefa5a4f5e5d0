from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.planner.progress import Advance
from orchestrator.planner.report import write_report
from tests.planner.report.made import made_plan, made_records


class Told:
    """Progress that is interrupted before it begins, or hears every step."""

    def __init__(self, *, interrupts: bool) -> None:
        self.interrupts = interrupts
        self.total = self.steps = 0

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        assert description == "drawing the report"
        if self.interrupts:
            raise KeyboardInterrupt
        self.total = total
        yield self.add

    def add(self, steps: int) -> None:
        self.steps += steps


def test_an_interrupt_while_drawing_leaves_no_folder_that_was_not_there(tmp_path: Path) -> None:
    told = Told(interrupts=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("kept")
    (tmp_path / "empty").mkdir()
    for name in ("new/report", "mine/report", "mine", "empty"):
        with pytest.raises(KeyboardInterrupt):
            write_report(tmp_path / name, made_plan(), made_records(rows=60), progress=told.progress)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        "mine", "mine/notes", "empty"
    }  # fmt: skip


def test_every_picture_is_a_step_of_the_progress(tmp_path: Path) -> None:
    told = Told(interrupts=False)
    # One stage and no labels leave the fewest pictures to draw.
    write_report(
        tmp_path, made_plan((("tiny",),), ()), made_records(rows=60, labelled=False), progress=told.progress
    )
    assert told.steps == told.total == len(list(tmp_path.glob("*.png"))) > 0
