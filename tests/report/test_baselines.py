"""What a plan is compared with counts as the planner counted it."""

import dataclasses

import numpy as np
import pytest

from orchestrator.decision.combine import softmax
from orchestrator.planner.goal import ENSEMBLE, Goal, SearchOptions
from orchestrator.planner.plan import PlanResult, plan_from_records
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.report.data import Report, report_from_records
from orchestrator.spec import CascadeSpec, Stage
from tests.planner import builders as plain
from tests.report.builders import COSTS, made_plan, made_records, member


def spread(records: Records) -> Records:
    """The same with members of unlike confidence, so that combine modes differ."""
    factors = dict(zip(records.outputs, (0.3, 1.0, 6.0, 2.0), strict=True))
    outputs = {name: (scores * factors[name]).astype(np.float32) for name, scores in records.outputs.items()}
    return dataclasses.replace(records, outputs=outputs)


def as_probabilities(records: Records) -> Records:
    return dataclasses.replace(
        records, outputs={name: softmax(scores) for name, scores in records.outputs.items()}
    )


def together(base: CascadeSpec, records: Records, *, combine: str) -> np.ndarray:
    """Answers of all members in one stage, by the served core."""
    stage = Stage(members=base.members)
    return replay(dataclasses.replace(base, stages=(stage,), combine=combine), records).label


def reported(found: object, records: Records) -> Report:
    assert isinstance(found, PlanResult)
    return report_from_records(found.spec, records, pool=found.pool)


def test_probabilities_nobody_declared_are_combined_as_such_in_the_plan_and_around_it() -> None:
    records = as_probabilities(spread(made_records(classes=6)))
    pool = tuple(dataclasses.replace(member(name), output_kind="probabilities") for name in COSTS)
    base = dataclasses.replace(made_plan(classes=6), stages=tuple(Stage(members=(one,)) for one in pool))
    truth = together(base, records, combine="mean_logit") == records.labels
    as_logits = np.sum(list(records.outputs.values()), axis=0).argmax(axis=1) == records.labels
    assert truth.sum() != as_logits.sum()
    single = dataclasses.replace(base, stages=base.stages[:1])
    for planned in (pool, ()):
        report = report_from_records(single, records, pool=planned)
        hits = {one.name: one.quality.hits for one in report.baselines}
        assert hits["all 4 members"] == truth.sum()


def test_temperatures_of_members_outside_the_plan_count() -> None:
    records = made_records()
    pool = tuple(dataclasses.replace(member(name), temperature=3.0) for name in COSTS)
    warm = report_from_records(made_plan((("tiny",),), ()), records, pool=pool)
    large = next(one for one in warm.reliability if one.name == "large")
    scaled = dataclasses.replace(
        records, outputs=records.outputs | {"large": records.outputs["large"] / np.float32(3)}
    )
    wanted = report_from_records(made_plan((("tiny",),), ()), scaled)
    assert large == next(one for one in wanted.reliability if one.name == "large")


@pytest.mark.parametrize("certify", [True, False])
def test_the_reference_that_was_asked_for_is_the_one_on_the_page(certify: bool) -> None:
    records = plain.made_records(0, rows=300, members=3)
    goal = Goal(reference="b", epsilon=0.3, certify=certify)
    found = plan_from_records(plain.pool_of(records), records, goal, options=SearchOptions(quantiles=4))
    report = reported(found, records)
    assert report.comparison is not None
    assert report.comparison.reference.name == "b"


def test_without_a_reference_the_plan_is_compared_with_the_most_accurate_member() -> None:
    records = plain.made_records(0, rows=300, members=3)
    found = plan_from_records(plain.pool_of(records), records, Goal(max_mean_cost=4.0))
    report = reported(found, records)
    right = {name: (scores.argmax(axis=1) == records.labels).sum() for name, scores in records.outputs.items()}
    assert report.comparison is not None
    assert report.comparison.reference.name == max(right, key=lambda name: right[name])


@pytest.mark.parametrize("combines", [("mean_logit", "vote"), ("vote",), ("mean_prob", "last"), ("last",)])
@pytest.mark.parametrize("label_free", [False, True])
def test_the_ensemble_on_the_page_is_combined_as_the_planner_combined_it(
    combines: tuple[str, ...], label_free: bool
) -> None:
    records = spread(plain.made_records(3, rows=300, members=4))
    base = plain.pool_of(records)
    goal = Goal(reference=ENSEMBLE, epsilon=0.3, label_free=label_free)
    found = plan_from_records(base, records, goal, options=SearchOptions(combines=combines, quantiles=4))
    assert isinstance(found, PlanResult)
    # As if the search had taken the other mode.
    found = dataclasses.replace(found, spec=dataclasses.replace(found.spec, combine=combines[-1]))
    report = reported(found, records)
    answers = together(base, records, combine=combines[0])
    if label_free:
        assert report.plan.quality.hits == (replay(found.spec, records).label == answers).sum()
        return
    assert report.comparison is not None
    assert report.comparison.reference.quality.hits == (answers == records.labels).sum()
    assert report.comparison.reference.kind == "ensemble"
