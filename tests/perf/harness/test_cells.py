from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DataError
from perf.harness.frame import PROCESSOR, bound_of, cell_frame
from perf.harness.serving import Cell, reach_of
from perf.harness.windows import Journal, reach_off
from perf.load.closed import Window
from perf.routes.spec import BenchRoute
from perf.studies.bench.command import (
    MAX_FULL_CELLS,
    MAX_QUICK_CELLS,
    QUICK_BUDGET_S,
    QUICK_LONG,
    QUICK_S,
    ROUNDS,
    full_cells,
    largest_cells,
    quick_cells,
)
from tests.perf.harness.builders import MEMBERS, ROUTES, record


def test_a_quick_run_fits_into_ten_minutes_and_a_full_one_has_sixty_cells_at_most() -> None:
    quick = quick_cells("three_cnn", members=3, routes=ROUTES)
    full = [
        *full_cells("three_cnn", members=3, routes=ROUTES),
        *largest_cells("efficientnet", members=2, routes=ROUTES),
        *largest_cells("glyphs", members=4, routes=[*ROUTES, "member_3"], earned=True),
    ]
    assert len(quick) == MAX_QUICK_CELLS
    windows = [(QUICK_LONG if cell.long else (QUICK_S, ROUNDS)) for cell in quick]
    assert sum(rounds * (seconds + 1) for seconds, rounds in windows) < QUICK_BUDGET_S
    assert len(full) <= MAX_FULL_CELLS
    for cells in (quick, full):
        assert len({cell.key for cell in cells}) == len(cells)
    assert {cell.route for cell in full} >= set(ROUTES)


def test_a_full_run_varies_one_factor_at_a_time() -> None:
    cells = [cell for cell in full_cells("three_cnn", members=3, routes=ROUTES) if cell.sender == "closed"]
    changed = [(cell.concurrency != 16) + (cell.batch != 1) + (cell.deferral != 0.15) for cell in cells]
    # But for all rows deferred at 64 in flight, which is what the last member alone is held against.
    assert sum(number > 1 for number in changed) == 1
    assert {cell.concurrency for cell in cells} == {1, 4, 16, 64}
    assert {cell.deferral for cell in cells} == {0.0, 0.05, 0.15, 0.3, 1.0}
    assert {cell.batch for cell in cells} == {1, 8}


def test_cells_of_routes_that_do_not_exist_are_left_out() -> None:
    for make in (quick_cells, full_cells):
        cells = make("digits", members=2, routes=("member_0", "member_1", "committee"))
        assert {cell.route for cell in cells} == {"member_0", "member_1", "committee"}
        # There is no rival whose capacity arrivals could be a share of.
        assert {cell.of_route for cell in cells} == {None}


def test_an_earned_mix_is_asked_in_large_requests_and_never_called_fifteen_percent() -> None:
    cells = largest_cells("glyphs", members=4, routes=[*ROUTES, "member_3"], earned=True)
    assert [(cell.route, cell.batch) for cell in cells] == [("member_3", 32), ("committee", 32)]
    for cell in cells:
        assert cell.words == "64 in flight, batch 32, earned mix"
        assert cell.key.endswith("b32-earned")


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("deferral", [0.0, 0.05, 0.15, 0.3, 1.0])
def test_reach_falls_from_all_rows_to_the_deferral(stages: int, deferral: float) -> None:
    reach = reach_of(deferral, stages)
    assert len(reach) == stages
    assert reach[0] == 1.0
    assert list(reach) == sorted(reach, reverse=True)
    assert stages == 1 or reach[-1] == deferral


CELL = Cell(scenario="three_cnn", route="committee", concurrency=16)


def test_records_survive_an_interruption_within_a_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {"seed": 1}, resume=False)
    kept = [record(CELL, round_number=number, lag_p50_ms=0.1) for number in (1, 2)]
    for one in kept:
        journal.add(one)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert Journal(path, {"seed": 1}, resume=True).records == kept[:1]
    for cut in (20, 1):
        path.write_bytes(whole[:-cut])
        resumed = Journal(path, {"seed": 1}, resume=True)
        resumed.add(kept[1])
        assert Journal(path, {"seed": 1}, resume=True).records == kept
    path.write_bytes(whole)
    assert Journal(path, {"seed": 1}, resume=True).records == kept


def test_another_runs_records_are_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {"seed": 1, "seconds": 10.0, "cells": ("a",)}, resume=False)
    with pytest.raises(DataError, match=r"differs in cells, seconds.*without `resume`"):
        Journal(path, {"seed": 1, "seconds": 18.0, "cells": ("b",)}, resume=True)


def test_a_file_that_is_no_journal_gives_one_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    for text in ("", "nonsense\n", "[]\n", '{"seed": 1}\n{"key": 3}\n'):
        path.write_text(text)
        with pytest.raises(DataError, match="without `resume`"):
            Journal(path, {"seed": 1}, resume=True)


def test_a_fresh_run_forgets_the_last_one_and_a_resumed_one_may_be_the_first(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {}, resume=False).add(record(CELL))
    assert Journal(path, {}, resume=False).of(CELL.key) == []
    assert Journal(tmp_path / "new.jsonl", {}, resume=True).records == []


def test_of_each_round_the_last_attempt_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", {}, resume=False)
    for number, attempt, rate in ((2, 0, 2.0), (1, 0, 1.0), (2, 1, 3.0)):
        journal.add(record(CELL, round_number=number, attempt=attempt, requests_per_s=rate))
    assert [one["requests_per_s"] for one in journal.of(CELL.key)] == [1.0, 3.0]


def test_reach_is_off_by_the_worst_stage() -> None:
    window = Window(latency_ms=np.ones(10), deferred=None, exits=np.array([6, 2, 2]), seconds=1.0, batch=1)
    reach, off = reach_off(window, (1.0, 0.3, 0.15))
    assert reach == pytest.approx((1.0, 0.4, 0.2))
    assert off == pytest.approx(0.1)


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
