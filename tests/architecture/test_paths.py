"""How many files one has to read to follow a row, or a plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.architecture.paths import Trace, traced
from tests.bls.fixtures import EASY, HARD, ask_all, large, loaded, rows_of, small
from tests.cli.planning import plan, write_made
from tests.fakes.triton import FakeTriton, Request


def files_of_a_row(tmp_path: Path, row: np.ndarray) -> Trace:
    """The trace of a model's second request, of one row.

    The model is loaded inside the trace, because only threads that start inside are traced.
    """
    with traced() as trace, loaded(tmp_path, FakeTriton({"small": small, "large": large})) as model:
        ask_all(model, [Request({"x": rows_of(row)})])
        trace.files.clear()
        before = trace.moves
        ask_all(model, [Request({"x": rows_of(row)})])
        return Trace(list(trace.files), trace.moves - before)


def test_an_easy_row_passes_few_files(tmp_path: Path) -> None:
    # 7, and 14 for a hard one; a thread that watches members may have its turn meanwhile.
    trace = files_of_a_row(tmp_path, EASY)
    assert len(trace.files) <= 10, trace.files


def test_a_hard_row_passes_few_files(tmp_path: Path) -> None:
    trace = files_of_a_row(tmp_path, HARD)
    assert len(trace.files) <= 17, trace.files


def test_a_plan_passes_few_files(tmp_path: Path) -> None:
    command = (write_made(tmp_path / "records.npz"), "--max-mean-cost-share", 0.5, "-o", tmp_path / "plan.json")
    assert plan(*command) == 0, "once before, so that imports are no part of the trace"
    with traced() as trace:
        assert plan(*command) == 0
    assert len(trace.files) <= 46, trace.files
