from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.planner.search import Infeasible, Point, search
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage

COSTS = {"a": 1.0, "b": 3.0, "c": 10.0}


def made_records(seed: int, rows: int = 40, classes: int = 3) -> Records:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    outputs = {}
    for strength, name in zip((1.0, 1.6, 2.5), COSTS, strict=True):
        z = rng.normal(size=(rows, classes))
        z[np.arange(rows), labels] += strength
        outputs[name] = z.astype(np.float32)
    return Records(ids=np.arange(rows), labels=labels, outputs=outputs, cost=COSTS)


def pool(**changes: object) -> CascadeSpec:
    stages = tuple(Stage(members=(Member(name=n, output="logits", cost=c),)) for n, c in COSTS.items())
    source = InputSpec(name="x", dtype="FP32", dims=(1,))
    return CascadeSpec(name="made_up", input=source, classes=3, stages=stages, **changes)


def brute_force(records: Records, budget: float) -> tuple[float, float]:
    """Best (accuracy, cost) by replaying every plan whose thresholds lie between neighbouring scores."""
    best = (-1.0, -1.0)
    for size in (1, 2, 3):
        for chain in itertools.combinations(pool().members, size):
            ensemble = [
                dataclasses.replace(pool(), stages=(Stage(members=chain[: i + 1]),)) for i in range(size - 1)
            ]
            grids = []
            for spec in ensemble:
                scores = np.unique(replay(spec, records).confidence.astype(np.float64))
                grids.append([*(scores[:-1] + scores[1:]) / 2, None])
            for thresholds in itertools.product(*grids):
                stages = tuple(
                    Stage(members=(member,), threshold=None if t is None else float(np.float32(t)))
                    for member, t in zip(chain, (*thresholds, None), strict=True)
                )
                done = replay(dataclasses.replace(pool(), stages=stages), records)
                cost = float(done.cost.astype(np.float64).mean())
                if cost <= budget:
                    best = max(best, (float((done.label == records.labels).mean()), cost))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_is_the_best_of_all_plans_on_small_pools(seed: int) -> None:
    records = made_records(seed, rows=12)
    found = search(pool(), records, max_mean_cost=5.0, quantiles=400)
    assert isinstance(found, Point)
    accuracy, cost = brute_force(records, 5.0)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.mean_cost == pytest.approx(cost, rel=1e-5)


@pytest.mark.parametrize("combine", ["mean_logit", "mean_prob", "vote", "last"])
def test_what_the_plan_promises_is_what_replay_gives(combine: str) -> None:
    records = made_records(7, rows=200)
    found = search(pool(combine=combine), records, max_mean_cost=6.0)
    assert isinstance(found, Point)
    done = replay(found.spec, records)
    assert (done.label == records.labels).mean() == found.accuracy
    assert done.cost.mean() == pytest.approx(found.mean_cost)
    assert found.mean_cost <= 6.0


def test_thresholds_keep_their_distance_from_every_score() -> None:
    records = made_records(3, rows=300)
    found = search(pool(), records, max_mean_cost=6.0)
    assert isinstance(found, Point)
    first = dataclasses.replace(found.spec, stages=(dataclasses.replace(found.spec.stages[0], threshold=None),))
    scores = replay(first, records).confidence
    assert np.abs(scores - found.spec.stages[0].threshold).min() >= 0.9e-5


def test_a_budget_below_the_cheapest_member_is_a_value_that_names_the_cheapest_plan() -> None:
    found = search(pool(), made_records(1), max_mean_cost=0.5)
    assert isinstance(found, Infeasible)
    assert found.cheapest.mean_cost == 1.0


def test_planning_without_labels_is_refused() -> None:
    records = dataclasses.replace(made_records(1), labels=None)
    with pytest.raises(DataError, match="no labels"):
        search(pool(), records, max_mean_cost=5)
