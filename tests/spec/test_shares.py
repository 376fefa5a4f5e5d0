from __future__ import annotations

import pytest

from orchestrator.spec.shares import evenly_spread


@pytest.mark.parametrize(
    ("count", "most", "places"),
    [(0, 3, []), (1, 3, [0]), (3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (10, 4, [0, 3, 6, 9])],
)
def test_places_are_spread_evenly_and_never_repeat(count: int, most: int, places: list[int]) -> None:
    assert evenly_spread(count, most).tolist() == places
