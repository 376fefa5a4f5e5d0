from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.harness.cells import Cell
from perf.harness.frame import PROCESSOR, bound_of, cell_frame
from perf.harness.windows import Journal
from perf.routes.spec import BenchRoute
from tests.perf.harness.builders import MEMBERS, record

RATE = st.floats(1, 1e5)
SHARE = st.floats(0, 1)


@given(st.lists(st.tuples(RATE, SHARE), min_size=1, max_size=4), st.integers(1, 8), st.floats(1e-5, 1))
def test_nothing_may_pass_a_members_own_rate_or_the_cores(
    stages: list[tuple[float, float]], batch: int, cpu_s: float
) -> None:
    names = [f"m{index}" for index in range(len(stages))]
    bound, _ = bound_of(
        names,
        [share for _, share in stages],
        capacity_rows_per_s={name: rate for name, (rate, _) in zip(names, stages, strict=True)},
        batch=batch,
        cores=2,
        cpu_s_per_request=cpu_s,
    )
    limit = bound * (1 - 1e-9)
    assert limit * cpu_s <= 2
    assert all(limit * share * batch <= rate for rate, share in stages)
    # And something is used up entirely.
    full = [bound * share * batch / rate for rate, share in stages]
    assert max([*full, bound * cpu_s / 2]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("to_the_last", "bound"),
    [(0.1, (20.0, PROCESSOR)), (0.0, (9.0, "a"))],
    ids=[
        "a member that was not measured leaves only the processor",
        "a stage no row reaches need not be measured",
    ],
)
def test_a_member_without_a_rate_counts_only_where_rows_reach_it(
    to_the_last: float, bound: tuple[float, str]
) -> None:
    given = {"capacity_rows_per_s": {"a": 9.0}, "batch": 1, "cores": 2, "cpu_s_per_request": 0.1}
    assert bound_of(["a", "b"], [1.0, to_the_last], **given) == bound


def test_the_slowest_member_over_its_reach_decides() -> None:
    """Last member 84 rows/s at 15 %: 560 requests/s."""
    rates = {"a": 7700, "b": 520, "c": 84}
    given = {"capacity_rows_per_s": rates, "batch": 1, "cores": 2, "cpu_s_per_request": 0.002}
    assert bound_of(["a", "b", "c"], [1.0, 0.3, 0.15], **given) == (pytest.approx(560), "c")


def test_cells_have_medians_and_the_best_rate_of_each_member(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", {}, resume=False)
    cells = [
        *(Cell(scenario="three_cnn", route=f"member_{i}", concurrency=64) for i in range(3)),
        Cell(scenario="three_cnn", route="member_2", concurrency=16, batch=8),
        Cell(scenario="three_cnn", route="committee", concurrency=64),
    ]
    rates = (5000.0, 500.0, 70.0, 10.0, 450.0)
    for cell, rate in zip(cells, rates, strict=True):
        for number, factor in ((1, 0.9), (2, 1.0), (3, 1.3)):
            reach = [1.0, 0.3, 0.15] if cell.route == "committee" else None
            journal.add(record(cell, round_number=number, requests_per_s=rate * factor, reach=reach))
    routes = {
        f"member_{i}": BenchRoute(name=f"member_{i}", title=name, model=name, members=(name,))
        for i, name in enumerate(MEMBERS)
    }
    routes["committee"] = BenchRoute(name="committee", title="Committee", model="c", members=MEMBERS, cascade=True)
    ours = cell_frame(cells, journal, routes=routes, cores=2).iloc[-1]
    assert ours.requests_per_s == 450.0
    assert ours.spread == pytest.approx(0.4)
    assert ours.unstable
    # 2 cores over 4 ms allow 500; 80 rows/s in batches of eight beat 70 in single ones.
    assert (ours.bound_by, ours.bound_requests_per_s) == ("processor", pytest.approx(500))
    more_cores = cell_frame(cells, journal, routes=routes, cores=200).iloc[-1]
    assert more_cores.bound_requests_per_s == pytest.approx(80 / 0.15)
    assert ours.efficiency == pytest.approx(0.9)
