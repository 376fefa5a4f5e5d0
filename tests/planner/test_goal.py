import pytest

from orchestrator.planner.candidates import CandidatePlan, in_cost_order
from orchestrator.planner.goal import ENSEMBLE, Goal, SearchOptions, is_reference, reference_alone
from tests.planner.builders import made_records, pool_of

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
