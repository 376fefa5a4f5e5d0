import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decision.combine import softmax
from orchestrator.errors import DataError
from orchestrator.planner.dataset_split import split_from_ids
from orchestrator.planner.goal import ENSEMBLE, Goal, SearchOptions
from orchestrator.planner.intervals import clopper_pearson, paired_difference
from orchestrator.planner.plan import PlanResult, plan_from_records
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.report.data import Report, reliability_curve, report_from_records, threshold_curve
from orchestrator.report.inputs import stage_outputs_from_plan
from orchestrator.spec import COMBINES, SCORES, CascadeSpec, Stage
from tests.planner import builders as plain
from tests.report.builders import COSTS, FRONTIER, made_fit, made_plan, made_records, member, with_facts


def with_thresholds(spec: CascadeSpec, thresholds: tuple[float | None, ...]) -> CascadeSpec:
    stages = tuple(
        dataclasses.replace(stage, threshold=threshold)
        for stage, threshold in zip(spec.stages, (*thresholds, None), strict=True)
    )
    return dataclasses.replace(spec, stages=stages)


def replayed(spec: CascadeSpec, records: Records) -> tuple[int, float, list[int]]:
    """Right rows, mean cost, rows that stop per stage: by the served core."""
    done = replay(spec, records)
    stops = np.bincount(done.exit_stage, minlength=len(spec.stages))
    return int((done.label == records.labels).sum()), float(done.cost.astype(np.float64).mean()), stops.tolist()


@given(
    seed=st.integers(0, 2**16),
    combine=st.sampled_from(COMBINES),
    score=st.sampled_from(SCORES),
    places=st.tuples(st.integers(0, 59), st.integers(0, 59)),
    low=st.booleans(),
)
def test_every_tuple_of_thresholds_stops_rows_where_the_served_core_does(
    seed: int, combine: str, score: str, places: tuple[int, int], low: bool
) -> None:
    records = made_records(seed, rows=60)
    spec = made_plan((("tiny", "small"), ("medium",), ("large",)), combine=combine, score=score)
    outputs = stage_outputs_from_plan(spec, records)
    # Scores themselves as thresholds: ties have to exit.
    thresholds = tuple(float(np.sort(outputs.score[stage])[place]) for stage, place in enumerate(places))
    if low:
        first = dataclasses.replace(spec.stages[0], low=float(np.float32(thresholds[0] - 0.1)), threshold=None)
        spec = dataclasses.replace(spec, stages=(first, *spec.stages[1:]))
        outputs = stage_outputs_from_plan(spec, records)
    spec = with_thresholds(spec, thresholds)
    done = replay(spec, records)
    at = outputs.exit_stage(thresholds)
    assert np.array_equal(at, done.exit_stage)
    assert np.array_equal(outputs.label[at, np.arange(60)], done.label)
    assert np.array_equal(outputs.score[at, np.arange(60)], done.confidence)
    assert np.allclose(outputs.cost[at], done.cost, rtol=1e-6)


@pytest.mark.parametrize("low", [None, 0.45])
@pytest.mark.parametrize("stage", [0, 1])
def test_a_curve_is_the_replay_of_every_threshold_with_the_others_fixed(stage: int, low: float | None) -> None:
    records, spec = made_records(3, rows=150), made_plan()
    if low is not None:
        stages = tuple(
            dataclasses.replace(one, low=low) if number == stage else one for number, one in enumerate(spec.stages)
        )
        spec = dataclasses.replace(spec, stages=stages)
    outputs = stage_outputs_from_plan(spec, records)
    curve = threshold_curve(outputs, outputs.label == records.labels, stage=stage)
    assert curve.threshold[curve.planned] == np.float32(spec.stages[stage].threshold)
    assert curve.threshold[-1] == np.inf
    for threshold, quality, cost in zip(curve.threshold, curve.quality, curve.mean_cost, strict=True):
        if low is not None and threshold <= low:
            continue
        own = [one.threshold for one in spec.stages[:-1]]
        own[stage] = None if np.isinf(threshold) else float(threshold)
        right, mean_cost, _ = replayed(with_thresholds(spec, tuple(own)), records)
        assert quality == pytest.approx(right / 150)
        assert cost == pytest.approx(mean_cost)


@pytest.fixture(scope="module")
def report() -> Report:
    return report_from_records(made_plan(), made_records())


def test_the_plan_and_its_stages_are_what_the_core_replays(report: Report) -> None:
    records = made_records()
    right, cost, stops = replayed(report.spec, records)
    assert (report.plan.quality.hits, report.plan.quality.rows) == (right, 600)
    assert report.plan.mean_cost == pytest.approx(cost)
    assert [stage.exits.hits for stage in report.stages] == stops
    assert sum(stage.correct.hits for stage in report.stages) == right
    assert [stage.correct.rows for stage in report.stages] == stops
    assert report.stages[1].total_cost == COSTS["tiny"] + COSTS["small"] + COSTS["medium"]
    assert report.spec.worst_cost == sum(COSTS.values())
    assert report.plan.quality.interval == clopper_pearson(right, 600)


def test_single_members_have_the_accuracy_of_their_largest_output(report: Report) -> None:
    records = made_records()
    for one in report.baselines:
        if one.kind == "member":
            assert one.quality.hits == (records.outputs[one.name].argmax(axis=1) == records.labels).sum()
            assert one.mean_cost == COSTS[one.name]


def test_ensembles_are_the_plan_cut_after_each_stage(report: Report) -> None:
    records = made_records()
    found = {one.name: one for one in report.baselines if one.kind == "ensemble"}
    assert list(found) == ["tiny + small + medium", "tiny + small + medium + large"]
    mean = sum(records.outputs[name] for name in ("tiny", "small", "medium")) / np.float32(3)
    first = found["tiny + small + medium"]
    assert first.quality.hits == (mean.argmax(axis=1) == records.labels).sum()
    assert first.mean_cost == COSTS["tiny"] + COSTS["small"] + COSTS["medium"]


def test_a_member_outside_the_plan_makes_an_ensemble_of_all() -> None:
    report = report_from_records(made_plan((("tiny",), ("large",)), (0.9,)), made_records())
    names = [one.name for one in report.baselines if one.kind == "ensemble"]
    assert names == ["tiny + large", "all 4 members"]


def test_the_reference_is_the_most_accurate_member_unless_another_is_asked_for(report: Report) -> None:
    assert report.comparison is not None
    assert report.comparison.reference.name == "large"
    named = [with_facts(made_plan(), guarantee={"reference": name}) for name in ("small", "ensemble")]
    other, everybody = (report_from_records(spec, made_records()).comparison for spec in named)
    assert other is not None
    assert other.reference.name == "small"
    records = made_records()
    done = replay(report.spec, records)
    small = records.outputs["small"].argmax(axis=1) == records.labels
    assert (other.difference, other.interval) == paired_difference(done.label == records.labels, small)
    assert other.gains - other.losses == round(other.difference * 600)
    assert everybody is not None
    assert everybody.reference.name == "tiny + small + medium + large"


def test_classes_are_counted_row_by_row(report: Report) -> None:
    records = made_records()
    done = replay(report.spec, records)
    assert sorted(one.name for one in report.classes) == [f"class {number}" for number in range(4)]
    for one in report.classes:
        rows = records.labels == int(one.name.removeprefix("class "))
        assert one.right.hits == (rows & (done.label == records.labels)).sum()
        assert one.reference.hits == (rows & (records.outputs["large"].argmax(axis=1) == records.labels)).sum()
        assert one.deferred.hits == (rows & (done.exit_stage > 0)).sum()
        assert one.right.rows == one.reference.rows == one.deferred.rows == rows.sum()
        assert one.difference == pytest.approx(one.right.value - one.reference.value)
    assert [one.difference for one in report.classes] == sorted(one.difference for one in report.classes)


def test_reliability_bins_hold_every_row_once_and_give_the_calibration_error() -> None:
    rng = np.random.default_rng(5)
    sure = rng.random(400).astype(np.float32)
    sure[:3] = (0.0, 1.0, np.float32(1 + 1e-6))
    right = rng.random(400) < sure
    found = reliability_curve("a", sure, right=right)
    assert sum(one.rows for one in found.right) == 400
    error = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, 16)):
        inside = (sure >= low) & ((sure < high) | (high == 1))
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - sure[inside].astype(np.float64).mean())
    assert found.error == pytest.approx(error, abs=1e-6)


def test_histograms_hold_the_rows_that_come_to_a_stage(report: Report) -> None:
    reached = 600
    for stage, found in zip(report.stages, report.histograms, strict=True):
        assert found.correct.sum() + found.wrong.sum() == reached
        assert found.last == (found.threshold is None)
        reached -= stage.exits.hits


def test_the_cascades_reliability_comes_from_the_stage_that_answered(report: Report) -> None:
    done = replay(report.spec, made_records())
    sure = done.probabilities[np.arange(600), done.label]
    wanted = reliability_curve("made_up", sure, right=done.label == made_records().labels)
    assert report.reliability[-1] == wanted
    assert [one.name for one in report.reliability] == [*COSTS, "made_up"]


def test_without_labels_nothing_is_called_accuracy() -> None:
    report = report_from_records(made_plan(), made_records(labelled=False))
    assert not report.criterion.by_labels
    assert report.criterion.name == "agreement with the last stage"
    assert report.criterion.why_not_labels == "the records hold no labels"
    assert report.comparison is None
    assert report.classes == report.reliability == ()
    done = replay(report.spec, made_records())
    last = replay(with_thresholds(report.spec, (None, None)), made_records())
    assert report.plan.quality.hits == (done.label == last.label).sum()
    assert report.stages[-1].correct.rows == report.stages[-1].correct.hits


def test_a_label_free_plan_is_measured_by_its_reference_even_where_labels_are() -> None:
    spec = made_plan(
        fit=made_fit(rows=300, accuracy=None, extra={"agreement": {"reference": "large", "share": 0.9}})
    )
    report = report_from_records(spec, made_records(), frontier=FRONTIER[:1])
    assert report.criterion.name == "agreement with large"
    large = made_records().outputs["large"].argmax(axis=1)
    assert report.plan.quality.hits == (replay(spec, made_records()).label == large).sum()
    assert [(one.name, one.kind, one.quality.hits) for one in report.frontier] == [("tiny", "member", 150)]


@pytest.mark.parametrize("where", ["records", "plan"])
def test_random_weights_leave_no_accuracy_anywhere(where: str) -> None:
    meta = {"data": "made", "members": {"small": {"random_weights": True}}} if where == "records" else None
    spec = made_plan(fit=made_fit(rows=300, random_weights=where == "plan"))
    report = report_from_records(spec, made_records(meta=meta), frontier=FRONTIER[:1])
    assert not report.criterion.by_labels
    assert "random" in str(report.criterion.why_not_labels)
    assert report.frontier == report.classes == report.reliability == ()


def test_rows_that_had_no_say_are_found_again() -> None:
    split = {"seed": 7, "search_rows": 400, "certify_rows": 200}
    report = report_from_records(made_plan(fit=made_fit(rows=300, extra={"split": split})), made_records())
    rows = split_from_ids(np.arange(600), certify_share=200 / 600, seed=7).certify
    done = replay(report.spec, made_records())
    assert report.certify_quality is not None
    assert (report.certify_quality.hits, report.certify_quality.rows) == (
        (done.label == made_records().labels)[rows].sum(),
        200,
    )
    elsewhere = made_records(meta={"data_sha256": "e" * 64})
    assert (
        report_from_records(made_plan(fit=made_fit(rows=300, extra={"split": split})), elsewhere).certify_quality
        is None
    )


def test_members_are_left_out_of_costs_where_the_plan_counts_another_unit() -> None:
    spec = made_plan((("tiny",), ("large",)), (0.9,), cost_unit="ms")
    timed = tuple(
        dataclasses.replace(stage, members=tuple(dataclasses.replace(one, cost=0.5) for one in stage.members))
        for stage in spec.stages
    )
    report = report_from_records(dataclasses.replace(spec, stages=timed), made_records())
    costs = {one.name: one.mean_cost for one in report.baselines}
    assert costs == {
        "tiny": 0.5, "small": None, "medium": None, "large": 0.5, "tiny + large": 1.0, "all 4 members": None,
    }  # fmt: skip


def test_a_member_that_was_not_recorded_is_one_clear_line() -> None:
    records = made_records()
    without = dataclasses.replace(
        records,
        outputs={name: one for name, one in records.outputs.items() if name != "large"},
        cost={name: one for name, one in records.cost.items() if name != "large"},
    )
    with pytest.raises(DataError, match="no outputs of large"):
        report_from_records(made_plan(), without)


def test_names_no_server_would_take_do_no_harm() -> None:
    records = made_records()
    outputs = {'<b>"x"': records.outputs["small"], **records.outputs}
    strange = dataclasses.replace(records, outputs=outputs, cost={'<b>"x"': 7.0, **records.cost})
    report = report_from_records(made_plan(), strange)
    assert report.baselines[0].name == '<b>"x"'


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
