from __future__ import annotations

import pytest

from perf.harness.cells import reach_of
from perf.studies.bench.cells import MAX_FULL_CELLS, MAX_QUICK_CELLS, full_cells, largest_cells, quick_cells
from tests.perf.harness.builders import ROUTES


def test_a_quick_run_has_twelve_cells_and_a_full_one_sixty_at_most() -> None:
    quick = quick_cells("three_cnn", members=3, routes=ROUTES)
    full = [
        *full_cells("three_cnn", members=3, routes=ROUTES),
        *largest_cells("efficientnet", members=2, routes=ROUTES),
        *largest_cells("glyphs", members=4, routes=[*ROUTES, "member_3"], earned=True),
    ]
    assert len(quick) == MAX_QUICK_CELLS
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
        assert {cell.of_route for cell in cells} == {None, "committee"}


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
