import resource
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.errors import DataError
from orchestrator.planner.records import write_records
from perf.__main__ import app
from perf.studies.planner import PlanningRun, PlanningSize, made_records, planned, smaller, table_from_runs

SMALL = PlanningSize(rows=1000, classes=7, members=3)


def test_made_up_members_get_better_with_their_cost_and_leave_room_for_a_cascade() -> None:
    records = made_records(PlanningSize(rows=4000, classes=50, members=3))
    right = [float((output.argmax(axis=1) == records.labels).mean()) for output in records.outputs.values()]
    assert right == sorted(right)
    assert 0.3 < right[0] < right[-1] < 0.999
    assert list(records.cost.values()) == [1, 3, 9]


def test_growth_halves_one_number_at_a_time() -> None:
    changed = [
        [name for name in ("rows", "classes", "members") if getattr(size, name) != getattr(SMALL, name)]
        for size in smaller(SMALL)
    ]
    assert changed == [["rows"], ["rows"], ["classes"], ["classes"], ["members"], ["members"]]


def test_a_run_reports_seconds_memory_and_its_parts(tmp_path: Path) -> None:
    # In this process, which may have held more before: another one would only show that processes can be started.
    before_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write_records(made_records(SMALL), tmp_path / "r.npz")
    run = PlanningRun(size=SMALL, **planned(tmp_path / "r.npz", SMALL))
    assert 0 < sum(run.steps.values()) <= run.seconds * 1.001
    assert before_gib <= run.peak_gib < before_gib + 1
    assert {"reading", "combining members", "searching thresholds"} <= set(run.steps)
    assert table_from_runs([run]).row_count == 1


def test_unknown_modes_are_one_line() -> None:
    result = CliRunner().invoke(app, ["planner", "--modes", "some"])
    assert isinstance(result.exception, DataError)
    assert "one or all or both" in str(result.exception)


@pytest.mark.parametrize("members", [1, 5])
def test_records_of_any_pool_are_records(members: int) -> None:
    records = made_records(PlanningSize(rows=100, classes=2, members=members))
    assert len(records.outputs) == members
    assert all(np.isfinite(output).all() for output in records.outputs.values())
