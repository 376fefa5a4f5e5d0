from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planner.costs import LEAST, MOST
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.grid import ticks_from_costs
from orchestrator.planner.plan import PlanResult, plan_from_records
from tests.planner.made import made_records, pool_of


@pytest.mark.parametrize("unit", [1e-30, 1e-14, 3e-13, 1e-9, 1.0, 7e20, 1e29])
def test_costs_keep_their_proportions_whatever_their_unit(unit: float) -> None:
    ticks, scale = ticks_from_costs([0.0, unit, 3 * unit, 10 * unit], 50_000)
    assert ticks[0] == 0
    assert ticks[1:] / ticks[1] == pytest.approx([1, 3, 10], rel=1e-9)
    assert ticks / scale == pytest.approx([0, unit, 3 * unit, 10 * unit], rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(costs=st.lists(st.floats(LEAST, MOST) | st.just(0.0), min_size=1, max_size=8), rows=st.integers(1, 10**6))
def test_ticks_are_whole_and_lose_less_than_a_sum_does(costs: list[float], rows: int) -> None:
    ticks, scale = ticks_from_costs(costs, rows)
    assert (ticks == np.round(ticks)).all()
    assert np.abs(ticks / scale - costs).max() <= 1e-9 * sum(costs)


@pytest.mark.parametrize("unit", [1e-14, 1e28])
def test_a_budget_is_kept_in_any_unit(unit: float) -> None:
    costs = {name: cost * unit for name, cost in {"a": 1.0, "b": 3.0, "c": 10.0}.items()}
    records = made_records(0, rows=60, members=3, costs=costs)
    found = plan_from_records(
        pool_of(records),
        records,
        Goal(max_mean_cost=2.5 * unit, certify=False),
        options=SearchOptions(quantiles=4, calibrate=False),
    )
    assert isinstance(found, PlanResult)
    assert unit < found.mean_cost <= 2.5 * unit
