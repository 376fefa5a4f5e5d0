from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.report.page import write_report
from tests.report.builders import Told, made_plan, made_records


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


def test_every_picture_is_a_step_of_the_progress(folder: Path, told: Told) -> None:
    assert told.steps == told.total == len(list(folder.glob("*.png"))) > 0
