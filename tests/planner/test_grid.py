import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.decision.exit_rule import ExitRule, exits
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import PlanResult, plan_from_records
from orchestrator.planner.records import LEAST, MOST
from orchestrator.planner.search import bins_from_scores, integers_from_costs
from tests.planner.builders import made_records, pool_of, spec_of

POOL = pool_of(made_records(0))


@pytest.mark.parametrize("unit", [1e-30, 1e-14, 3e-13, 1e-9, 1.0, 7e20, 1e29])
def test_costs_keep_their_proportions_whatever_their_unit(unit: float) -> None:
    integers, scale = integers_from_costs([0.0, unit, 3 * unit, 10 * unit], 50_000)
    assert integers[0] == 0
    assert integers[1:] / integers[1] == pytest.approx([1, 3, 10], rel=1e-9)
    assert integers / scale == pytest.approx([0, unit, 3 * unit, 10 * unit], rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(costs=st.lists(st.floats(LEAST, MOST) | st.just(0.0), min_size=1, max_size=8), rows=st.integers(1, 10**6))
def test_integers_are_whole_and_lose_less_than_a_sum_does(costs: list[float], rows: int) -> None:
    integers, scale = integers_from_costs(costs, rows)
    assert (integers == np.round(integers)).all()
    assert np.abs(integers / scale - costs).max() <= 1e-9 * sum(costs)


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


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30),
    others=st.lists(st.floats(-2, 2, width=32), max_size=5),
)
def test_bins_and_thresholds_alone_let_the_rows_exit_that_the_exit_rule_does(
    scores: list[float], others: list[float]
) -> None:
    score = np.array(scores, np.float32)
    # Scores among the thresholds are ties, which exit.
    thresholds = np.unique(np.array([*others, *scores[:3]], np.float32))
    bins = bins_from_scores(score, thresholds)
    neutral = {"min_stage": np.zeros(len(score), np.int32), "max_stage": np.full(len(score), 9, np.int32)}
    for place, threshold in enumerate(thresholds):
        spec = spec_of(POOL, ((POOL.members[0],), (POOL.members[1],)), (float(threshold),))
        by_rule, _ = ExitRule(spec).decide(0, score, shift=np.zeros(len(score), np.float32), **neutral)
        assert np.array_equal(exits(score, float(threshold)), by_rule)
        assert np.array_equal(bins > place, by_rule)
