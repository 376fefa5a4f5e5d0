"""Where the reference itself does what was asked, no goal is refused for want of certainty."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.errors import DataError
from orchestrator.planner.goal import ENSEMBLE, Goal, SearchOptions
from orchestrator.planner.plan import Infeasible, PlanResult, plan_from_records
from tests.planner.builders import made_records, pool_of

OPTIONS = SearchOptions(quantiles=8, calibrate=False)


def planned(goal: Goal, *, seed: int = 0) -> PlanResult | Infeasible:
    records = made_records(seed, rows=400, members=3)
    return plan_from_records(pool_of(records), records, goal, options=OPTIONS)


@pytest.mark.parametrize("reference", ["b", "c", ENSEMBLE])
@pytest.mark.parametrize("label_free", [False, True])
def test_a_larger_epsilon_never_finds_less(reference: str, label_free: bool) -> None:
    instead = 0
    for seed in range(2):
        costs = []
        for epsilon in (0.0, 0.0001, 0.01, 0.05, 0.12, 0.2, 0.3):
            found = planned(Goal(reference=reference, epsilon=epsilon, label_free=label_free), seed=seed)
            assert isinstance(found, PlanResult), (seed, epsilon)
            costs.append(found.mean_cost)
            instead += found.fallback_reason is not None
        assert costs == sorted(costs, reverse=True)
    assert instead


def test_the_reference_stands_in_with_what_it_would_take_to_certify_another_plan() -> None:
    found = planned(Goal(reference="c", epsilon=0.02, delta=0.1))
    assert isinstance(found, PlanResult)
    facts = found.spec.fit.extra["guarantee"]
    assert [member.name for member in found.spec.members] == ["c"]
    assert (facts["method"], facts["bound"], facts["losses"], facts["gains"]) == ("identity", 0.0, 0, 0)
    assert found.fallback_reason is not None
    assert found.fallback_reason.more_rows == facts["more_rows"] > 0
    assert f"about {found.fallback_reason.more_rows} more rows would do" in found.fallback_reason.text
    assert found.spec.fit.extra["reference"] == {"name": "c", "combine": "mean_logit"}


def test_a_reference_that_is_not_allowed_does_not_stand_in() -> None:
    for limit in ({"max_worst_cost": 5.0}, {"max_mean_cost": 9.0}):
        found = planned(Goal(reference="c", epsilon=0.04, **limit))
        assert isinstance(found, Infeasible)
        assert found.best.fallback_reason is None


@pytest.mark.parametrize("goal", [Goal(reference=ENSEMBLE, epsilon=0.3), Goal(label_free=True, epsilon=0.3)])
def test_a_member_called_ensemble_is_refused(goal: Goal) -> None:
    # The dearest member is the reference where none is named.
    records = made_records(0, costs={"a": 1.0, "b": 2.0, ENSEMBLE: 9.0}, members=3)
    with pytest.raises(DataError, match=r"a member named ensemble.*all members together"):
        plan_from_records(pool_of(records), records, goal, options=OPTIONS)


def test_plans_without_a_reference_count_wrong_rows_and_not_losses() -> None:
    counted = {
        "wrong": (Goal(max_mean_cost=6.0), Goal(min_accuracy=0.3)),
        "lost": (Goal(reference="c", epsilon=0.3), Goal(max_mean_cost=6.0, reference="c", epsilon=0.3)),
        "in disagreement": (Goal(label_free=True, epsilon=0.5),),
    }
    for word, goals in counted.items():
        for goal in goals:
            found = planned(goal)
            assert isinstance(found, PlanResult)
            assert found.spec.fit.extra["guarantee"]["counted"] == word
            assert ("reference" in found.spec.fit.extra) == (word != "wrong")


def test_the_pool_that_was_planned_with_comes_with_the_plan() -> None:
    records = made_records(0, rows=400, members=3)
    base = pool_of(records)
    warm = dataclasses.replace(base.members[1], temperature=1.5)
    stages = (base.stages[0], dataclasses.replace(base.stages[1], members=(warm,)), base.stages[2])
    found = plan_from_records(
        dataclasses.replace(base, stages=stages), records, Goal(max_mean_cost=1.0), options=OPTIONS
    )
    assert isinstance(found, PlanResult)
    assert [(member.name, member.temperature) for member in found.pool] == [("a", 1.0), ("b", 1.5), ("c", 1.0)]
