"""Goals, members and plans; where the reference itself does what was asked, no goal is refused."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from orchestrator.decision import Policy
from orchestrator.errors import DataError, SpecError
from orchestrator.planner.candidates import CandidatePlan, in_cost_order
from orchestrator.planner.dataset_split import split_from_ids
from orchestrator.planner.goal import ENSEMBLE, Goal, SearchOptions, is_reference, reference_alone
from orchestrator.planner.plan import (
    Infeasible,
    PlanResult,
    check_probabilities,
    costs_from_path,
    kind_seen,
    plan_from_records,
)
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import Stage
from orchestrator.spec.validation import is_cost
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


def test_a_certified_plan_says_on_which_rows_it_was_chosen_and_certified() -> None:
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


def test_a_plan_says_how_many_groups_chose_it_and_how_many_certify() -> None:
    records = dataclasses.replace(made_records(0, rows=1000, members=3), groups=np.arange(1000) // 5)
    found = plan_from_records(pool_of(records), records, Goal(max_mean_cost=6.0))
    assert isinstance(found, PlanResult)
    split = found.spec.fit.extra["split"]
    assert (split["by"], split["search_groups"], split["certify_groups"]) == ("hash of group and seed", 100, 100)
    # Every group has five rows, so whole ones make the halves of equal size.
    assert (split["search_rows"], split["certify_rows"]) == (500, 500)


def _spoiled(records: Records) -> Records:
    """The same with wrong labels on the rows that certify."""
    labels = records.labels.copy()
    certify = split_from_ids(records.ids, certify_share=0.5).certify
    labels[certify] = (labels[certify] + 1) % records.classes
    return dataclasses.replace(records, labels=labels)


@pytest.mark.parametrize(
    ("arguments", "said"),
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
def test_goals_that_contradict_themselves_name_the_argument(arguments: dict, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Goal(**arguments)


EIGHT = SearchOptions(quantiles=8, calibrate=False)


def planned(goal: Goal, *, seed: int = 0) -> PlanResult | Infeasible:
    records = made_records(seed, rows=400, members=3)
    return plan_from_records(pool_of(records), records, goal, options=EIGHT)


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


def test_the_pool_that_was_planned_with_comes_with_the_plan() -> None:
    records = made_records(0, rows=400, members=3)
    base = pool_of(records)
    warm = dataclasses.replace(base.members[1], temperature=1.5)
    stages = (base.stages[0], dataclasses.replace(base.stages[1], members=(warm,)), base.stages[2])
    found = plan_from_records(
        dataclasses.replace(base, stages=stages), records, Goal(max_mean_cost=1.0), options=EIGHT
    )
    assert isinstance(found, PlanResult)
    assert [(member.name, member.temperature) for member in found.pool] == [("a", 1.0), ("b", 1.5), ("c", 1.0)]


def geared(seed: int, *, gears: int = 3, members: int = 3) -> tuple[PlanResult, object]:
    records = made_records(seed, rows=600, members=members)
    goal = Goal(max_mean_cost=6.0, certify=False)
    found = plan_from_records(pool_of(records), records, goal, options=SearchOptions(gears=gears, calibrate=False))
    assert isinstance(found, PlanResult)
    return found, records


@pytest.mark.parametrize("seed", range(4))
def test_every_gear_costs_and_does_what_it_says_by_replay(seed: int) -> None:
    found, records = geared(seed)
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
    found, records = geared(1, members=2)
    assert found.spec.gears is not None
    gear = found.spec.gears.cheaper[0]
    for threshold in np.linspace(0, 1, 201):
        stages = (dataclasses.replace(found.spec.stages[0], threshold=float(threshold)), *found.spec.stages[1:])
        done = replay(dataclasses.replace(found.spec, stages=stages, gears=None), records)
        if done.cost.mean() <= gear.mean_cost:
            # A hundred quantiles: a threshold between two of them may win a row or two.
            assert np.mean(done.label == records.labels) <= gear.accuracy + 4 / records.rows


def test_none_are_made_unless_asked_for_nor_where_there_is_one_stage() -> None:
    assert geared(0, gears=0)[0].spec.gears is None
    records = made_records(0, rows=200, members=1)
    goal = Goal(max_mean_cost=5.0, certify=False)
    found = plan_from_records(pool_of(records), records, goal, options=SearchOptions(gears=3, calibrate=False))
    assert isinstance(found, PlanResult)
    assert found.spec.gears is None


EVEN = np.full((4, 5), 0.2, np.float32)


def test_rows_that_add_up_to_one_are_probabilities_and_others_are_logits() -> None:
    assert kind_seen(EVEN) == "probabilities"
    assert kind_seen(EVEN * 2) == "logits"
    assert kind_seen(np.array([[2.0, -1.0]], np.float32)) == "logits"


def test_probabilities_may_be_rounded_and_need_not_add_up() -> None:
    check_probabilities("m", EVEN * 3, np.arange(4))
    check_probabilities("m", EVEN - np.eye(4, 5, dtype=np.float32) * np.float32(0.2000001), np.arange(4))


@pytest.mark.parametrize("row", [[-0.5, 0.5, 0.5, 0.5, 0.0], [0.0] * 5])
def test_rows_that_are_no_probabilities_are_named(row: list[float]) -> None:
    scores = EVEN.copy()
    scores[2] = row
    with pytest.raises(DataError, match=r"outputs of m: .*1 of 4 rows, id c.*output_kind"):
        check_probabilities("m", scores, np.array(["a", "b", "c", "d"]))


@pytest.mark.parametrize("cost", [0, 0.0, 1, 1e-30, 1e30, 10**29])
def test_costs_within_reason_are_costs(cost: float) -> None:
    assert is_cost(cost)


@pytest.mark.parametrize(
    "cost", [-1, float("nan"), float("inf"), 1e31, 1e-31, 10**400, True, "1", None, 1e308], ids=str
)
def test_costs_that_sums_cannot_hold_are_none(cost: object) -> None:
    assert not is_cost(cost)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"cost": {"a": 1' + "0" * 400 + '}, "unit": "ms"}', "a number of 401 digits"),
        ('{"cost": {"a": 1}, "unit": "\\ud800"}', "half a character"),
        ('{"cost": {"\\ud800": -1}, "unit": "ms"}', "half a character"),
        ('{"cost": {"a": 1e307}, "unit": "ms"}', "1e\\+307 for a"),
        ('{"cost": {"a": 1}, "unit": 1}', "other JSON"),
        ("{", "no JSON"),
        ("[1]", "other JSON"),
        ('{"cost": {"b": 1}, "unit": "ms"}', 'no cost of a, .* add "a": NUMBER'),
        ('{"cost": {"a": 1, "b": -1}, "unit": "ms"}', "-1 for b"),
    ],
    ids=["deep", "long", "unit", "name", "huge", "no unit", "cut", "list", "missing", "negative"],
)
def test_profiles_nobody_could_plan_with_are_one_short_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        costs_from_path(tmp_path / "p.json", ["a"])
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


POOL = in_cost_order(pool_of(made_records(0, members=3)).members)
BY_VOTE = SearchOptions(combines=("vote", "last"), scores=("top2_gap",))


def choice(*stages: tuple[int, ...], combine: str = "vote") -> CandidatePlan:
    return CandidatePlan(combine=combine, score="top2_gap", stages=stages, thresholds=(0.5,) * (len(stages) - 1))


@pytest.mark.parametrize(("reference", "places"), [("a", (0,)), ("c", (2,)), (ENSEMBLE, (0, 1, 2))])
def test_the_reference_alone_is_a_plan_of_one_stage(reference: str, places: tuple[int, ...]) -> None:
    goal = Goal(reference=reference, epsilon=0.1)
    assert reference_alone(goal, POOL, BY_VOTE) == choice(places)
    assert is_reference(choice(places), goal, POOL, combine="vote")
    assert not is_reference(choice((0,), (1,)), goal, POOL, combine="vote")
    assert not is_reference(choice((1,)), goal, POOL, combine="vote")


def test_an_ensemble_in_another_mode_is_another_one_and_a_single_member_is_not() -> None:
    for reference, same in ((ENSEMBLE, False), ("c", True)):
        goal = Goal(reference=reference, epsilon=0.1)
        plan = reference_alone(goal, POOL, BY_VOTE)
        assert plan is not None
        assert is_reference(plan, goal, POOL, combine="mean_logit") == same


def test_a_member_that_is_called_ensemble_is_never_taken_for_the_reference() -> None:
    # Planning refuses such a pool; the certificate may not rest on that.
    records = made_records(0, costs={ENSEMBLE: 1.0, "b": 3.0}, members=2)
    pool = in_cost_order(pool_of(records).members)
    assert not is_reference(choice((0,)), Goal(reference=ENSEMBLE, epsilon=0.1), pool, combine="vote")


@pytest.mark.parametrize(
    ("goal", "stands"),
    [
        (Goal(min_accuracy=0.5), False),
        (Goal(reference="c", epsilon=0.1, max_worst_cost=9.9), False),
        (Goal(reference="c", epsilon=0.1, max_worst_cost=10.0), True),
        (Goal(reference="c", epsilon=0.1, max_mean_cost=9.9), False),
        (Goal(reference="c", epsilon=0.1, max_mean_cost=10.0), True),
        (Goal(reference=ENSEMBLE, epsilon=0.1, max_worst_cost=13.0), False),
    ],
)
def test_a_reference_that_costs_too_much_does_not_stand_in(goal: Goal, stands: bool) -> None:
    assert (reference_alone(goal, POOL, SearchOptions()) is not None) == stands
