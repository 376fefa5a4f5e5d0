import dataclasses
from pathlib import Path

import numpy as np
import pytest

from orchestrator.local import LocalMembers
from perf.studies.reproduce.evaluate import (
    ChoiceEvaluator,
    TimingLoad,
    ask_cascade,
    ask_single,
    evaluate_choices,
    ratio_of_means,
    spread_of,
    timed,
)
from perf.studies.reproduce.parts import PartRecorder, TestPart
from perf.studies.reproduce.plans import Choices, ChosenPlan, PlanComparison
from tests.perf.studies.reproduce import builders
from tests.perf.studies.reproduce.builders import evaluation_part

CASCADE = ChosenPlan(stages=(("glyphs_b0_s0",), ("glyphs_b2_s0",)), thresholds=(0.9,))
SINGLE = ChosenPlan(stages=(("glyphs_b2_s0",),))
PAIR = ChosenPlan(stages=(("glyphs_b1_s0", "glyphs_b1_s1"),))


def test_a_line_has_the_numbers_of_doing_it_by_hand() -> None:
    part = evaluation_part(rows=800)
    records = part.records
    small, big = records.outputs["glyphs_b0_s0"], records.outputs["glyphs_b2_s0"]
    p = np.exp(small - small.max(axis=1, keepdims=True))
    sure = (p.max(axis=1) / p.sum(axis=1)) >= 0.9
    right = np.where(sure, small.argmax(axis=1), (small + big).argmax(axis=1)) == records.labels
    alone = big.argmax(axis=1) == records.labels
    line = ChoiceEvaluator(part).line(PlanComparison(claim="3", label="x", one=CASCADE, other=SINGLE))
    assert line["one"]["right"] == right.sum()
    assert line["one"]["exit_share"] == pytest.approx([sure.mean(), 1 - sure.mean()])
    assert line["one"]["mean_cost"] == pytest.approx(1 + 16 * (1 - sure.mean()))
    assert line["difference"] == pytest.approx(right.mean() - alone.mean())
    assert line["gains"] - line["losses"] == right.sum() - alone.sum()
    assert line["macs_factor"] == pytest.approx(16 / (1 + 16 * (1 - sure.mean())))
    assert line["worst_cost_factor"] == pytest.approx(16 / 17)


def test_an_average_costs_its_sum_and_its_factor_has_no_interval() -> None:
    line = ChoiceEvaluator(evaluation_part(rows=100)).line(
        PlanComparison(claim="1", label="x", one=PAIR, other=SINGLE)
    )
    assert line["macs_factor"] == pytest.approx(2)
    assert line["macs_factor_ci95"] == [line["macs_factor"]] * 2


def test_a_line_without_a_plan_keeps_its_reason_and_what_it_was_held_against() -> None:
    empty = PlanComparison(claim="3", label="x", one=None, other=SINGLE, note="nothing cheaper")
    choices = Choices(source={}, comparisons=(empty,), picture={"single": (SINGLE,)})
    found = evaluate_choices(choices, evaluation_part(rows=50), say=lambda text: None)
    line = found["claims"]["3"][0]
    assert line["one"] is None
    assert line["note"] == "nothing cheaper"
    assert line["other"]["n"] == 50
    assert found["picture"]["single"][0]["plan"] == "b2_s0"


def test_a_plan_held_against_itself_has_no_interval() -> None:
    itself = dataclasses.replace(SINGLE, accuracy=0.7)
    other = dataclasses.replace(CASCADE, thresholds=(1e3,))
    evaluator = ChoiceEvaluator(evaluation_part(rows=50))
    line = evaluator.line(PlanComparison(claim="7", label="x", one=itself, other=SINGLE))
    assert line["difference_ci95"] == [0.0, 0.0]
    line = evaluator.line(PlanComparison(claim="7", label="x", one=other, other=CASCADE))
    assert line["difference_ci95"][0] < line["difference_ci95"][1]


def test_the_headline_stands_beside_the_single_model_that_the_test_part_favours() -> None:
    part = evaluation_part(rows=800)
    singles = tuple(
        ChosenPlan(stages=((name,),), mean_cost=part.records.cost[name]) for name in part.records.outputs
    )
    right = {
        name: int((scores.argmax(1) == part.records.labels).sum()) for name, scores in part.records.outputs.items()
    }
    best = max(right, key=lambda name: right[name])
    # The headline is held against another one, as it was on the plan part.
    other = next(one for one in singles if one.members != (best,))
    headline = PlanComparison(claim="headline", label="the headline plan", one=CASCADE, other=other)
    choices = Choices(source={}, comparisons=(headline,), picture={"single": singles})
    line = evaluate_choices(choices, part, say=lambda text: None)["against_test_best"]
    assert line["other"]["stages"] == [[best]]
    assert line["other"]["right"] == right[best]
    none = dataclasses.replace(choices, comparisons=(dataclasses.replace(headline, one=None),))
    assert evaluate_choices(none, part, say=lambda text: None)["against_test_best"] is None


def test_a_ratio_of_costs_has_the_interval_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    below = np.where(rng.random(2000) < 0.2, 11.0, 1.0)
    above = np.where(rng.random(2000) < 0.5, below * 2, 5.0)
    ratio, (low, high) = ratio_of_means(above, below)
    rows = rng.integers(0, 2000, (1000, 2000))
    again = above[rows].mean(axis=1) / below[rows].mean(axis=1)
    assert ratio == pytest.approx(above.mean() / below.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * again.std(), rel=0.1)


CASCADES = (
    ChosenPlan(stages=(("glyphs_b0_s0",), ("glyphs_self_low",), ("glyphs_b1_s0",)), thresholds=(0.8, 0.9)),
    ChosenPlan(stages=(("glyphs_b0_s0", "glyphs_b0_s1"), ("glyphs_b1_s1",)), thresholds=(1.0,), score="agreement"),
    ChosenPlan(stages=(("glyphs_b0_s0", "glyphs_b1_s1"),)),
    ChosenPlan(stages=(("glyphs_b0_s0",), ("glyphs_b1_s0",)), thresholds=(0.7,), combine="last"),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[TestPart, LocalMembers]:
    root: Path = tmp_path_factory.mktemp("timing")
    names = tuple(builders.MEMBERS)
    builders.write_members(root / "repository")
    recorder = PartRecorder(
        repository=root / "repository",
        names=names,
        draw=builders.draw,
        rows=203,
        cache=root,
        say=lambda text: None,
    )
    plan = recorder.plan_part()
    (root / "choices.json").write_text("{}")
    part = recorder.test_part(plan=plan, choices=root / "choices.json")
    return part, LocalMembers(root / "repository", names)


@pytest.mark.parametrize("batch", [1, 7, 32, 500])
@pytest.mark.parametrize("plan", CASCADES, ids=lambda plan: plan.text)
def test_what_is_timed_answers_as_the_replay_that_is_evaluated(
    recorded: tuple[TestPart, LocalMembers], plan: ChosenPlan, batch: int
) -> None:
    part, members = recorded
    label = ask_cascade(members, plan.spec_of(part.base), part.images, batch=batch)
    assert label.min() >= 0
    assert np.array_equal(label == part.records.labels, ChoiceEvaluator(part).outcome(plan).right)


def test_a_row_that_waits_alone_at_the_end_is_asked_about(recorded: tuple[TestPart, LocalMembers]) -> None:
    part, members = recorded
    last = int(np.flatnonzero(ChoiceEvaluator(part).outcome(CASCADES[0]).stage == 2)[0])
    label = ask_cascade(members, CASCADES[0].spec_of(part.base), part.images[last : last + 1], batch=32)
    assert (label == part.records.labels[last]) == ChoiceEvaluator(part).outcome(CASCADES[0]).right[last]
    assert label[0] >= 0


def test_a_single_model_is_asked_for_every_row(recorded: tuple[TestPart, LocalMembers]) -> None:
    part, members = recorded
    label = ask_single(members, "glyphs_b1_s0", part.images, batch=32)
    assert np.array_equal(label, part.records.outputs["glyphs_b1_s0"].argmax(axis=1))


def test_every_plan_is_timed_once_per_round(recorded: tuple[TestPart, LocalMembers]) -> None:
    part, members = recorded
    single = ChosenPlan(stages=(("glyphs_b1_s0",),))
    said: list[str] = []
    load = TimingLoad(batch=32, rows=64, rounds=3)
    figures = timed([single, CASCADES[0], single], part, members=members, load=load, say=said.append)
    assert list(figures) == [single, CASCADES[0]]
    assert all(len(rounds) == 3 and min(rounds) > 0 for rounds in figures.values())
    assert len(said) == 3


def test_a_spread_is_the_median_with_both_ends() -> None:
    assert spread_of([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
