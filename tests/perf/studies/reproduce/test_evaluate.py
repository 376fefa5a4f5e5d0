from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from perf.studies.reproduce.choices import Choices, ChosenPlan, PlanComparison
from perf.studies.reproduce.evaluate import ChoiceEvaluator, evaluate_choices, ratio_of_means
from tests.perf.studies.reproduce.builders import judging_part

CASCADE = ChosenPlan(stages=(("glyphs_b0_s0",), ("glyphs_b2_s0",)), thresholds=(0.9,))
SINGLE = ChosenPlan(stages=(("glyphs_b2_s0",),))
PAIR = ChosenPlan(stages=(("glyphs_b1_s0", "glyphs_b1_s1"),))


def test_a_line_has_the_numbers_of_doing_it_by_hand() -> None:
    part = judging_part(rows=800)
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
    line = ChoiceEvaluator(judging_part(rows=100)).line(
        PlanComparison(claim="1", label="x", one=PAIR, other=SINGLE)
    )
    assert line["macs_factor"] == pytest.approx(2)
    assert line["macs_factor_ci95"] == [line["macs_factor"]] * 2


def test_a_line_without_a_plan_keeps_its_reason_and_what_it_was_held_against() -> None:
    empty = PlanComparison(claim="3", label="x", one=None, other=SINGLE, note="nothing cheaper")
    found = evaluate_choices(
        Choices(source={}, comparisons=(empty,), picture={"single": (SINGLE,)}),
        judging_part(rows=50),
        say=lambda text: None,
    )
    line = found["claims"]["3"][0]
    assert line["one"] is None
    assert line["note"] == "nothing cheaper"
    assert line["other"]["n"] == 50
    assert found["picture"]["single"][0]["plan"] == "b2_s0"


def test_a_plan_held_against_itself_has_no_interval() -> None:
    itself = dataclasses.replace(SINGLE, accuracy=0.7)
    line = ChoiceEvaluator(judging_part(rows=50)).line(
        PlanComparison(claim="7", label="x", one=itself, other=SINGLE)
    )
    assert line["difference_ci95"] == [0.0, 0.0]
    other = dataclasses.replace(CASCADE, thresholds=(1e9,))
    line = ChoiceEvaluator(judging_part(rows=50)).line(
        PlanComparison(claim="7", label="x", one=other, other=CASCADE)
    )
    assert line["difference_ci95"][0] < line["difference_ci95"][1]


def test_the_headline_stands_beside_the_single_model_that_the_test_part_favours() -> None:
    part = judging_part(rows=800)
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
