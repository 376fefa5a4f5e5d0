"""How many files one has to read to follow a row, or a plan."""

from pathlib import Path

import numpy as np

from tests.architecture.paths import traced
from tests.bls.fixtures import EASY, HARD, ask_all, large, loaded, rows_of, small
from tests.cli.planning import plan, write_made
from tests.fakes.triton import FakeTriton, Request

# Run by a thread of their own, which may have its turn during a request and is no part of it.
WATCHING = {
    "orchestrator/bls/member_watch.py",
    "orchestrator/spec/planned_models.py",
}


def files_of_a_row(tmp_path: Path, row: np.ndarray) -> list[str]:
    """The files that a model's second request, of one row, passes.

    The model is loaded inside the trace, because only threads that start inside are traced.
    """
    with traced() as trace, loaded(tmp_path, FakeTriton({"small": small, "large": large})) as model:
        ask_all(model, [Request({"x": rows_of(row)})])
        trace.files.clear()
        ask_all(model, [Request({"x": rows_of(row)})])
        return [path for path in trace.files if path not in WATCHING]


def test_an_easy_row_passes_few_files(tmp_path: Path) -> None:
    files = files_of_a_row(tmp_path, EASY)
    # decision/combine.py among them, where the softmax is written once.
    assert len(files) <= 9, files


def test_a_hard_row_passes_few_files(tmp_path: Path) -> None:
    files = files_of_a_row(tmp_path, HARD)
    assert len(files) <= 18, files


def test_a_plan_passes_few_files(tmp_path: Path) -> None:
    command = (write_made(tmp_path / "records.npz"), "--max-mean-cost-share", 0.5, "-o", tmp_path / "plan.json")
    assert plan(*command) == 0, "once before, so that imports are no part of the trace"
    with traced() as trace:
        assert plan(*command) == 0
    assert len(trace.files) <= 42, trace.files
