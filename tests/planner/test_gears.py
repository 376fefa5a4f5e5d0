"""Gears of a plan: on its own frontier, cheaper step by step, and what they say is what replay finds."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from orchestrator.decision import Policy
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import PlanResult, plan_from_records
from orchestrator.planner.replay import replay
from tests.planner.builders import made_records, pool_of


def planned(seed: int, *, gears: int = 3, members: int = 3) -> tuple[PlanResult, object]:
    records = made_records(seed, rows=600, members=members)
    goal = Goal(min_accuracy=0.6, certify=False)
    goal = dataclasses.replace(goal, min_accuracy=None, max_mean_cost=6.0)
    found = plan_from_records(pool_of(records), records, goal, options=SearchOptions(gears=gears, calibrate=False))
    assert isinstance(found, PlanResult)
    return found, records


@pytest.mark.parametrize("seed", range(4))
def test_every_gear_costs_and_does_what_it_says_by_replay(seed: int) -> None:
    found, records = planned(seed)
    assert found.spec.gears is not None
    costs = [found.mean_cost]
    for number, gear in enumerate(found.spec.gears.cheaper, start=1):
        done = replay(found.spec, records, Policy(gear=number))
        assert np.mean(done.label == records.labels) == pytest.approx(gear.accuracy)
        assert done.cost.mean() == pytest.approx(gear.mean_cost, rel=1e-5)
        costs.append(gear.mean_cost)
    assert all(after < before for before, after in pairwise(costs))
    first = sum(member.cost for member in found.spec.stages[0].members)
    assert costs[-1] == pytest.approx(first), "the last gear asks stage 0 only"


def test_no_other_thresholds_of_the_plan_beat_a_gear_at_its_cost() -> None:
    found, records = planned(1, members=2)
    assert found.spec.gears is not None
    gear = found.spec.gears.cheaper[0]
    for threshold in np.linspace(0, 1, 201):
        stages = (dataclasses.replace(found.spec.stages[0], threshold=float(threshold)), *found.spec.stages[1:])
        done = replay(dataclasses.replace(found.spec, stages=stages, gears=None), records)
        if done.cost.mean() <= gear.mean_cost:
            # A hundred quantiles: a threshold between two of them may win a row or two.
            assert np.mean(done.label == records.labels) <= gear.accuracy + 4 / records.rows


def test_none_are_made_unless_asked_for_nor_where_there_is_one_stage() -> None:
    assert planned(0, gears=0)[0].spec.gears is None
    records = made_records(0, rows=200, members=1)
    goal = Goal(max_mean_cost=5.0, certify=False)
    found = plan_from_records(pool_of(records), records, goal, options=SearchOptions(gears=3, calibrate=False))
    assert isinstance(found, PlanResult)
    assert found.spec.gears is None
