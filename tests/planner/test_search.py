import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.decision.exit_rule import ExitRule, exits
from orchestrator.planner.candidates import (
    CandidatePlan,
    answers_of,
    candidate_from_ordering,
    orderings_of,
    table_from_records,
)
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import PlanResult, plan_from_records, spec_stages
from orchestrator.planner.pricing import integers_from_costs
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.planner.search import (
    RIGHT,
    Frontier,
    SearchResult,
    bins_from_scores,
    search,
    thresholds_from_scores,
)
from orchestrator.spec import COMBINES, SCORES
from orchestrator.spec.validation import LEAST_COST, MOST_COST
from tests.planner.builders import COSTS, achieved, every_plan, made_records, pool_of, spec_of

# Every combine mode with every score, a fresh pool each: 16 * 13 = 208 pools.
POOLS = list(itertools.product(COMBINES, SCORES))


def searched(records, *, combines=("mean_logit",), scores=("max_prob",), quantiles=100, max_stages=4, worst=None):
    table = table_from_records(pool_of(records), records, combines=combines, scores=scores)
    orderings = orderings_of(
        table.pool, combines=combines, scores=scores, max_stages=max_stages, max_worst_cost=worst
    )
    right = {RIGHT: lambda label: label == records.labels}
    return table, search(table, orderings, measures=right, max_stages=max_stages, quantiles=quantiles)


def corners(found: SearchResult) -> list[tuple[int, float]]:
    return [(one.correct, pytest.approx(found.mean_cost(one))) for one in found.frontiers[RIGHT]]


def best_of(points: list) -> list[tuple[int, float]]:
    """Frontier of (right, cost) pairs, most right first."""
    kept: list[tuple[int, float]] = []
    for right, cost, _ in sorted(points, key=lambda point: (-point[0], point[1])):
        if not kept or cost < kept[-1][1] - 1e-9:
            kept.append((right, cost))
    return kept


@pytest.mark.parametrize(("combine", "score"), POOLS)
def test_the_frontier_is_that_of_all_plans_tried_one_by_one(combine: str, score: str) -> None:
    for seed in range(13):
        members = 4 if seed == 0 else 3
        records = made_records(
            1000 * POOLS.index((combine, score)) + seed, rows=9 + 3 * seed, members=members, classes=2 + seed % 4
        )
        quantiles, max_stages = (2, 4) if members == 4 else (2 + seed % 3, 1 + seed % 4)
        table, found = searched(
            records, combines=(combine,), scores=(score,), quantiles=quantiles, max_stages=max_stages
        )
        base = pool_of(records, combine=combine)
        plans = every_plan(base, records, quantiles=quantiles, max_stages=max_stages, score=score)
        points = achieved(plans, records, good=lambda label, records=records: label == records.labels)
        assert corners(found) == best_of(points), f"seed {seed}"
        assert table.rows == records.rows


@pytest.mark.parametrize(
    ("combine", "score"), [("mean_logit", "max_prob"), ("last", "agreement"), ("vote", "top2_gap")]
)
def test_random_search_on_the_same_grid_never_beats_a_larger_pool(combine: str, score: str) -> None:
    costs = dict(zip("abcdef", (1.0, 2.0, 5.0, 9.0, 20.0, 31.0), strict=True))
    records = made_records(5, rows=400, members=6, classes=5, costs=costs)
    table, found = searched(records, combines=(combine,), scores=(score,), quantiles=30)
    best = {one.correct: one.integer_cost / found.cost_scale / found.rows for one in found.frontiers[RIGHT]}
    rng = np.random.default_rng(0)
    orderings = orderings_of(table.pool, combines=(combine,), scores=(score,), max_stages=4)
    for _ in range(800):
        ordering = orderings[rng.integers(len(orderings))]
        thresholds = []
        for stage in range(len(ordering.groups) - 1):
            never = [None] if ordering.may_never_exit or not ordering.may_exit(stage) else []
            scores = table.score(combine, score, asked=ordering.asked(stage), subset=ordering.subset(stage))
            grid = thresholds_from_scores(scores, 30) if ordering.may_exit(stage) else []
            thresholds.append(rng.choice(np.array([*grid, *never], object)))
        plan = candidate_from_ordering(ordering, thresholds)
        answers = answers_of(plan, table)
        right = int((answers.label == records.labels).sum())
        cost = answers.mean_cost
        cheapest = min(least for many, least in best.items() if many >= right)
        assert cheapest <= cost + 1e-9


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("score", SCORES)
def test_every_plan_of_a_frontier_replays_to_the_same_answers_and_cost(combine: str, score: str) -> None:
    records = made_records(7, rows=200, members=4)
    table, found = searched(records, combines=(combine,), scores=(score,), quantiles=12)
    for one in found.frontiers[RIGHT][:: max(1, len(found.frontiers[RIGHT]) // 6)]:
        spec = dataclasses.replace(
            pool_of(records), stages=spec_stages(one, table.pool), combine=combine, score=score
        )
        done, answers = replay(spec, records), answers_of(one, table)
        assert np.array_equal(done.label, answers.label)
        assert np.array_equal(done.exit_stage, answers.stage)
        assert int((done.label == records.labels).sum()) == one.correct
        assert done.cost.mean() == pytest.approx(one.integer_cost / found.cost_scale / found.rows, rel=1e-6)


def test_thresholds_keep_their_distance_from_every_score() -> None:
    records = made_records(3, rows=3000)
    table, found = searched(records)
    for one in found.frontiers[RIGHT]:
        asked: tuple[int, ...] = ()
        for stage, threshold in zip(one.stages, one.thresholds, strict=False):
            asked = (*asked, *stage)
            scores = table.score("mean_logit", "max_prob", asked=asked, subset=asked)
            assert np.abs(scores - np.float32(threshold)).min() >= 0.9e-5


def test_ties_go_to_the_lower_worst_cost_then_fewer_members_then_names() -> None:
    # Four members that say the same: whatever is added to one of them changes no answer.
    same = made_records(1, rows=60, members=1).outputs["a"]
    labels = made_records(1, rows=60, members=1).labels
    outputs = dict.fromkeys(("d", "b", "c", "a"), same)
    records = Records(ids=np.arange(60), labels=labels, outputs=outputs, cost=dict.fromkeys(outputs, 2.0))
    table, found = searched(records)
    (one,) = found.frontiers[RIGHT]
    assert [table.pool[place].name for place in one.members] == ["a"]


def test_costs_that_are_no_whole_numbers_tie_exactly() -> None:
    costs, scale = integers_from_costs([0.1, 0.2, 0.3], 50_000)
    assert (costs.tolist(), scale) == ([1, 2, 3], 10)
    costs, scale = integers_from_costs([1 / 3, 2e11 / 7], 50_000)
    assert np.array_equal(costs, np.round(costs))
    assert costs / scale == pytest.approx([1 / 3, 2e11 / 7], abs=1e-11 * 2e11)
    assert costs.sum() * 50_000 <= 2**53


def test_the_same_records_in_another_order_give_the_same_frontier() -> None:
    records = made_records(11, rows=300)
    order = np.random.default_rng(0).permutation(300)
    shuffled = dataclasses.replace(
        records,
        ids=records.ids[order],
        labels=records.labels[order],
        outputs={name: records.outputs[name][order] for name in ("c", "a", "b")},
    )
    assert searched(records)[1].frontiers == searched(shuffled)[1].frontiers


def test_a_worst_cost_leaves_out_committees_that_can_exceed_it() -> None:
    records = made_records(2, rows=300, members=4)
    table, found = searched(records, worst=sum(list(COSTS.values())[:2]))
    assert {place for one in found.frontiers[RIGHT] for place in one.members} == {0, 1}
    assert not orderings_of(table.pool, combines=("last",), scores=("max_prob",), max_stages=4, max_worst_cost=0.5)


@pytest.mark.parametrize("combine", ["mean_logit", "last"])
def test_no_plan_has_more_stages_than_asked_but_may_have_more_members(combine: str) -> None:
    records = made_records(2, rows=300, members=4)
    _, found = searched(records, combines=(combine,), max_stages=2)
    sizes = {(len(one.stages), len(one.members)) for one in found.frontiers[RIGHT]}
    assert max(stages for stages, _ in sizes) == 2
    assert max(members for _, members in sizes) > 2


def test_neighbours_that_never_exit_are_one_stage() -> None:
    ordering = orderings_of(
        pool_of(made_records(0, members=4)).members, combines=("vote",), scores=("max_prob",), max_stages=4
    )[-1]
    assert candidate_from_ordering(ordering, [None, 0.5, None]) == CandidatePlan(
        combine="vote", score="max_prob", stages=((0, 1), (2, 3)), thresholds=(0.5,)
    )


def test_of_equal_cost_and_worst_cost_the_plan_with_fewer_members_is_taken() -> None:
    # c says what a and b together say, and costs what both cost.
    records = made_records(1, rows=80, members=2)
    outputs = {**records.outputs, "c": (records.outputs["a"] + records.outputs["b"]) / np.float32(2)}
    records = dataclasses.replace(records, outputs=outputs, cost={"a": 1.0, "b": 2.0, "c": 3.0})
    table, found = searched(records, max_stages=1, worst=3.0)
    best = found.frontiers[RIGHT][0]
    assert [table.pool[place].name for place in best.members] == ["c"]


def test_of_tuples_that_do_the_same_the_most_careful_one_is_taken() -> None:
    frontier = Frontier(10)
    frontier.add(0, np.array([[4, 7], [7, 2]], np.int32), np.array([[1.0, 5.0], [5.0, 9.0]]))
    assert frontier.corners() == [(0, 2, 7, 5.0), (0, 0, 4, 1.0)]


def test_a_score_at_the_threshold_exits_as_it_does_in_serving() -> None:
    records = made_records(9, rows=50, members=2)
    table = table_from_records(pool_of(records), records)
    scores = table.score("mean_logit", "max_prob", asked=(0,), subset=(0,))
    threshold = float(np.sort(scores)[20])
    plan = CandidatePlan(combine="mean_logit", score="max_prob", stages=((0,), (1,)), thresholds=(threshold,))
    done = replay(dataclasses.replace(pool_of(records), stages=spec_stages(plan, table.pool)), records)
    assert np.array_equal(answers_of(plan, table).stage, done.exit_stage)
    assert (bins_from_scores(scores, np.array([threshold], np.float32)) == 1 - done.exit_stage).all()
    assert (done.exit_stage == 0).sum() == 30


POOL = pool_of(made_records(0))


@pytest.mark.parametrize("unit", [1e-30, 1e-14, 3e-13, 1e-9, 1.0, 7e20, 1e29])
def test_costs_keep_their_proportions_whatever_their_unit(unit: float) -> None:
    integers, scale = integers_from_costs([0.0, unit, 3 * unit, 10 * unit], 50_000)
    assert integers[0] == 0
    assert integers[1:] / integers[1] == pytest.approx([1, 3, 10], rel=1e-9)
    assert integers / scale == pytest.approx([0, unit, 3 * unit, 10 * unit], rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    costs=st.lists(st.floats(LEAST_COST, MOST_COST) | st.just(0.0), min_size=1, max_size=8),
    rows=st.integers(1, 10**6),
)
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
