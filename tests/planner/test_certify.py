"""The guarantee against a known truth: a large population that samples are drawn from."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from orchestrator.planner.candidates import CandidatePlan, SubsetTable, orderings_of, table_from_records
from orchestrator.planner.certify import (
    LONGEST_SEQUENCE,
    PairedCounts,
    PlannedTest,
    certify,
    counts_of,
    decide,
    planned_test,
    sequence_of,
)
from orchestrator.planner.goal import Goal, MeasuredRows, SearchOptions, measured_rows
from orchestrator.planner.intervals import rows_needed
from orchestrator.planner.records import Records
from orchestrator.planner.search import RIGHT, search
from tests.planner.builders import made_records, pool_of

RESAMPLES = 1000
DELTA = 0.1
POPULATION = 60_000


def most(resamples: int) -> float:
    """Broken certificates that chance allows for, of a rate that is DELTA."""
    return DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / resamples)


@dataclasses.dataclass
class World:
    """A population whose every answer is known."""

    records: Records
    table: SubsetTable

    def measured(self, goal: Goal) -> MeasuredRows:
        return measured_rows(goal, self.table, self.records, combine="mean_logit")


@pytest.fixture(scope="module")
def world() -> World:
    records = made_records(0, rows=POPULATION, classes=4, members=3)
    return World(records, table_from_records(pool_of(records), records))


def simulate(world: World, goal: Goal, *, rows: int, resamples: int, quantiles: int) -> tuple[float, float, float]:
    """Over samples: share with a broken certificate, share with a plan, and mean slack of the certificate."""
    rng = np.random.default_rng(1)
    everything = world.measured(goal)
    broken, planned, slack = 0, 0, 0.0
    known: dict[CandidatePlan, float] = {}
    for _ in range(resamples):
        drawn = everything.take(rng.integers(POPULATION, size=rows))
        half = np.arange(rows // 2)
        parts = drawn.take(half), drawn.take(half + rows // 2)
        decision = decide(*parts, goal, SearchOptions(quantiles=quantiles))
        if decision.unmet is not None:
            continue
        if decision.plan not in known:
            counts = counts_of(decision.plan, everything)
            known[decision.plan] = (counts.losses - counts.gains) / counts.rows
        planned += 1
        broken += known[decision.plan] > goal.allowed
        slack += goal.allowed - known[decision.plan]
    return broken / resamples, planned / resamples, slack / max(planned, 1)


GOALS = {
    "reference": Goal(reference="c", epsilon=0.02, delta=DELTA),
    "min_accuracy": Goal(min_accuracy=0.75, delta=DELTA),
    "label_free": Goal(label_free=True, reference="c", epsilon=0.15, delta=DELTA),
    "budget": Goal(max_mean_cost=8.0, reference="c", epsilon=0.05, delta=DELTA),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("resamples", "quantiles"), [(40, 12), pytest.param(RESAMPLES, 40, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", GOALS)
def test_over_many_samples_certificates_are_broken_no_more_often_than_delta(
    world: World, kind: str, resamples: int, quantiles: int, record_property: Callable[[str, object], None]
) -> None:
    broken, planned, slack = simulate(world, GOALS[kind], rows=1000, resamples=resamples, quantiles=quantiles)
    record_property("simulation", f"broken {broken:.3f}, planned {planned:.3f}, mean slack {slack:.4f}")
    assert broken <= most(resamples)
    assert planned >= 0.4


def sequence_in(world: World, goal: Goal) -> list[tuple[CandidatePlan, float]]:
    """Plans of the population's frontier with what they truly lose, safest first."""
    everything = world.measured(goal)
    orderings = orderings_of(world.table.pool, combines=("mean_logit",), scores=("max_prob",), max_stages=4)
    found = search(everything.table, orderings, measures={RIGHT: everything.right}, quantiles=8)
    counted = [(plan, counts_of(plan, everything)) for plan in found.frontiers[RIGHT]]
    losses = [(plan, (counts.losses - counts.gains) / counts.rows) for plan, counts in counted]
    return sorted(losses, key=lambda pair: pair[1])


def entry(plan: CandidatePlan, cost: float, method: str, risk: float) -> PlannedTest:
    return PlannedTest(plan=dataclasses.replace(plan, integer_cost=cost), method=method, risk=risk)


@pytest.mark.parametrize("resamples", [250, pytest.param(RESAMPLES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["clopper_pearson_losses", "discordant_pairs"])
def test_a_plan_a_hair_too_bad_is_certified_about_as_often_as_delta(
    world: World, method: str, resamples: int
) -> None:
    # Absolute, so that there are no gains and losses alone are what the certificate bounds.
    goal = Goal(min_accuracy=0.75, delta=DELTA) if method == "clopper_pearson_losses" else GOALS["reference"]
    plans = sequence_in(world, goal)
    place = next(
        place for place, (_, loss) in enumerate(plans) if loss > (0.24 if goal.reference is None else 0.01)
    )
    epsilon = plans[place][1] - 1e-6
    sequence = [
        entry(plan, -number, method, loss) for number, (plan, loss) in enumerate(plans[place - 2 : place + 1])
    ]
    everything, rng, broken = world.measured(goal), np.random.default_rng(2), 0
    for _ in range(resamples):
        drawn = everything.take(rng.integers(POPULATION, size=1500))
        said = certify(sequence, drawn, epsilon=epsilon, delta=DELTA)
        broken += said.certified and said.plan == sequence[-1].plan
    assert DELTA / 4 <= broken / resamples <= most(resamples)


def test_the_accuracy_that_is_certified_besides_holds_as_often(world: World) -> None:
    everything, rng, broken = world.measured(GOALS["reference"]), np.random.default_rng(3), 0
    for _ in range(80):
        drawn = everything.take(rng.integers(POPULATION, size=1000))
        half = np.arange(500)
        decision = decide(
            drawn.take(half), drawn.take(half + 500), GOALS["reference"], SearchOptions(quantiles=12)
        )
        counts = counts_of(decision.plan, everything)
        broken += decision.unmet is None and decision.accuracy_lower > counts.right / counts.rows
    assert broken / 80 <= most(80)


def test_the_sequence_gets_cheaper_and_riskier_and_keeps_both_ends_when_thinned() -> None:
    rng = np.random.default_rng(0)
    plans = [
        entry(CandidatePlan(combine="vote", score="max_prob", stages=((place,),), thresholds=()),
               float(cost), "discordant_pairs", float(risk))
        for place, (cost, risk) in enumerate(zip(np.linspace(9, 1, 500), np.sort(rng.random(500)), strict=True))
    ]  # fmt: skip
    dominated = entry(plans[3].plan, 8.0, "discordant_pairs", 0.99)
    sequence = sequence_of([dominated, *plans])
    assert len(sequence) == LONGEST_SEQUENCE
    assert (sequence[0], sequence[-1]) == (plans[0], plans[-1])
    assert dominated not in sequence
    for one, following in itertools.pairwise(sequence):
        assert one.risk <= following.risk
        assert one.plan.integer_cost > following.plan.integer_cost


def test_the_bound_of_a_candidate_is_the_tightest_one_on_the_search_part() -> None:
    choice = CandidatePlan(combine="vote", score="max_prob", stages=((0,),), thresholds=())
    even = PairedCounts(rows=1000, right=900, losses=40, gains=40)
    lopsided = PairedCounts(rows=1000, right=900, losses=10, gains=0)
    methods = [planned_test(choice, counts, rows=2000, delta=0.05).method for counts in (even, lopsided)]
    assert methods == ["discordant_pairs", "clopper_pearson_losses"]


def test_of_plans_whose_bound_is_0_the_one_that_gains_most_comes_first_and_the_cheapest_last() -> None:
    choice = CandidatePlan(combine="vote", score="max_prob", stages=((0,),), thresholds=())
    plans = [
        planned_test(
            dataclasses.replace(choice, integer_cost=cost),
            PairedCounts(rows=1000, right=900, losses=10, gains=gains),
            rows=1000,
            delta=0.05,
        )
        for cost, gains in ((3.0, 60), (2.0, 45), (1.0, 30))
    ]
    assert all(plan.risk <= 0 for plan in plans)
    assert [test.plan.integer_cost for test in sequence_of(plans[::-1])] == [3.0, 2.0, 1.0]


def test_a_certified_bound_is_epsilon_where_a_cheaper_plan_failed_and_its_own_where_all_passed(
    world: World,
) -> None:
    everything = world.measured(GOALS["reference"])
    plans = sequence_in(world, GOALS["reference"])
    sequence = [entry(plan, -place, "clopper_pearson_losses", loss) for place, (plan, loss) in enumerate(plans)]
    stopped = certify(sequence, everything, epsilon=0.1, delta=DELTA)
    passed = certify(sequence[:1], everything, epsilon=0.2, delta=DELTA)
    failed = certify(sequence, everything, epsilon=1e-5, delta=DELTA)
    assert (stopped.certified, stopped.bound) == (True, 0.1)
    assert passed.certified
    assert passed.bound < 0.2
    assert (failed.certified, failed.plan) == (False, plans[0][0])
    counts = failed.counts
    by_itself = rows_needed(
        failed.method, losses=counts.losses, gains=counts.gains, rows=counts.rows, epsilon=1e-5, delta=DELTA
    )
    # Losses alone never get there; with gains, more rows do.
    assert by_itself is None
    assert failed.rows_needed is not None


def test_a_fallback_costs_the_other_plans_a_part_of_their_certified_accuracy(world: World) -> None:
    everything = world.measured(GOALS["reference"])
    plan = sequence_in(world, GOALS["reference"])[0][0]
    sequence = [entry(plan, 0, "clopper_pearson_losses", 0.0)]
    few = everything.take(np.arange(500))
    lower = [
        certify(sequence, few, epsilon=0.5, delta=DELTA, has_fallback=fallback).accuracy_lower
        for fallback in (False, True)
    ]
    assert lower[1] == certify(sequence, few, epsilon=0.5, delta=DELTA / 2).accuracy_lower < lower[0]
