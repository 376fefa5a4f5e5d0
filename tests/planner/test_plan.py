from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from orchestrator.errors import SpecError
from orchestrator.planner.dataset_split import split_from_ids
from orchestrator.planner.goal import ENSEMBLE, Goal, SearchOptions
from orchestrator.planner.plan import Infeasible, PlanResult, plan_from_records
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import Stage
from tests.planner.builders import achieved, every_plan, made_records, pool_of

QUANTILES = 4
OPTIONS = SearchOptions(quantiles=QUANTILES, calibrate=False)
GOALS = {
    "min_accuracy": Goal(min_accuracy=0.6, certify=False),
    "reference": Goal(reference="c", epsilon=0.05, certify=False),
    "ensemble": Goal(reference=ENSEMBLE, epsilon=0.02, certify=False),
    "label_free": Goal(label_free=True, epsilon=0.2, certify=False),
    "label_free_ensemble": Goal(label_free=True, reference=ENSEMBLE, epsilon=0.1, certify=False),
    "budget": Goal(max_mean_cost=4.0, certify=False),
    "budget_worst": Goal(max_mean_cost=6.0, max_worst_cost=11.0, max_stages=2, certify=False),
    "budget_reference": Goal(max_mean_cost=4.0, reference="c", epsilon=0.1, certify=False),
    "budget_label_free": Goal(max_mean_cost=5.0, label_free=True, reference="b", certify=False),
    "budget_label_free_epsilon": Goal(max_mean_cost=7.0, label_free=True, epsilon=0.2, certify=False),
}


def reference_labels(goal: Goal, records: Records) -> np.ndarray:
    name = goal.reference or "c"
    base = pool_of(records)
    members = base.members if name == ENSEMBLE else [m for m in base.members if m.name == name]
    return replay(dataclasses.replace(base, stages=(Stage(members=tuple(members)),)), records).label


def best_by_hand(goal: Goal, records: Records) -> tuple[int, float] | None:
    """Rows of value and mean cost of the plan that trying every one of them finds."""
    truth = records.labels if goal.reference is None and not goal.label_free else reference_labels(goal, records)
    target = truth if goal.label_free else records.labels
    plans = every_plan(pool_of(records), records, quantiles=QUANTILES, max_stages=goal.max_stages)
    allowed = (p for p in plans if goal.max_worst_cost is None or p.worst_cost <= goal.max_worst_cost)
    points = achieved(allowed, records, good=lambda label: label == target)
    base = records.rows if goal.reference is None or goal.label_free else int((truth == records.labels).sum())
    wanted = base - goal.allowed * records.rows - 1e-9
    if goal.has_budget:
        good = [(-right, cost) for right, cost, _ in points if cost <= goal.max_mean_cost + 1e-9]
        if not good or (goal.epsilon is not None and -min(good)[0] < wanted):
            return None
        return -min(good)[0], min(good)[1]
    good = [(cost, -right) for right, cost, _ in points if right >= wanted]
    return (-min(good)[1], min(good)[0]) if good else None


@pytest.mark.parametrize("kind", GOALS)
def test_the_plan_for_a_goal_is_the_best_of_all_plans_tried_one_by_one(kind: str) -> None:
    seen = []
    for seed in range(4):
        records = made_records(seed, rows=40 + seed, members=3)
        found = plan_from_records(pool_of(records), records, GOALS[kind], options=OPTIONS)
        best = best_by_hand(GOALS[kind], records)
        seen.append(best)
        if best is None:
            assert isinstance(found, Infeasible)
            continue
        assert isinstance(found, PlanResult)
        assert found.accuracy * records.rows == pytest.approx(best[0])
        assert found.mean_cost == pytest.approx(best[1])
        assert found.spec.fit is not None
        assert found.spec.fit.target
    assert any(best is not None for best in seen)


def test_a_certified_plan_says_on_which_rows_it_was_chosen_and_judged() -> None:
    records = made_records(0, rows=2000, members=3)
    found = plan_from_records(pool_of(records), records, Goal(reference="c", epsilon=0.04, delta=0.1))
    assert isinstance(found, PlanResult)
    assert found.spec.fit is not None
    extra = found.spec.fit.extra
    assert extra["split"] == {
        "by": "hash of id and seed", "seed": 0, "search_rows": 1000, "certify_rows": 1000
    }  # fmt: skip
    assert found.spec.fit.rows == 1000
    facts = extra["guarantee"]
    assert facts["statement"] == (
        "with probability at least 0.9 over the rows drawn, accuracy >= that of c - 0.04"
    )
    assert 0 <= facts["bound"] <= 0.04
    assert facts["tested"] <= facts["candidates"]
    assert found.accuracy_lower is not None
    assert found.accuracy_lower < found.accuracy


def test_labels_of_certify_rows_have_no_say_in_the_search() -> None:
    records = made_records(0, rows=1000, members=3)
    goal = Goal(max_mean_cost=6.0)
    one = plan_from_records(pool_of(records), records, goal, options=SearchOptions(calibrate=False))
    assert isinstance(one, PlanResult)
    split_rows = one.spec.fit.extra["split"]["certify_rows"]
    assert split_rows == 500
    from_split = plan_from_records(
        pool_of(records), _spoiled(records), goal, options=SearchOptions(calibrate=False)
    )
    assert isinstance(from_split, PlanResult)
    assert from_split.spec.stages == one.spec.stages
    assert from_split.accuracy == one.accuracy
    assert from_split.accuracy_lower < one.accuracy_lower


def _spoiled(records: Records) -> Records:
    """The same with wrong labels on the rows that certify."""
    labels = records.labels.copy()
    certify = split_from_ids(records.ids, certify_share=0.5).certify
    labels[certify] = (labels[certify] + 1) % records.classes
    return dataclasses.replace(records, labels=labels)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({}, "objective"),
        ({"min_accuracy": 0.9, "reference": "c"}, "`min_accuracy` and `reference`"),
        ({"min_accuracy": 0.9, "reference": "c", "epsilon": 0.1}, "`min_accuracy` and `reference`"),
        ({"min_accuracy": 0.9, "epsilon": 0.1}, "epsilon:"),
        ({"max_mean_cost": 1.0, "reference": "c"}, "reference: got c without `epsilon`"),
        ({"max_mean_cost": 1.0, "epsilon": 0.1}, "epsilon: got 0.1 without `reference`"),
        ({"max_mean_cost": 1.0, "min_accuracy": 0.9, "epsilon": 0.1, "reference": "c"}, "objective"),
        ({"label_free": True}, "epsilon:"),
        ({"label_free": True, "min_accuracy": 0.9}, "`min_accuracy` and `label_free`"),
        ({"max_mean_cost": float("nan")}, "max_mean_cost:"),
        ({"min_accuracy": 0.0}, "min_accuracy:"),
        ({"min_accuracy": 0.5, "max_worst_cost": -1.0}, "max_worst_cost:"),
        ({"min_accuracy": 0.5, "delta": 0.0, "max_stages": 0}, "max_stages:"),
    ],
)
def test_goals_that_contradict_themselves_name_the_argument(wishes: dict, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Goal(**wishes)
