from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.errors import DataError
from perf.studies.reproduce.choices import Choices, ChosenPlan, PlanComparison, choices_from_path, write_choices
from tests.perf.studies.reproduce.builders import plan_part

PLAN = ChosenPlan(
    stages=(("glyphs_b0_s0",), ("glyphs_b1_s0", "glyphs_b1_s1")), thresholds=(0.25,), accuracy=0.9, mean_cost=3.0
)
SINGLE = ChosenPlan(stages=(("glyphs_b2_s0",),))
CHOICES = Choices(
    source={"rows": 3},
    comparisons=(
        PlanComparison(claim="3", label="a", one=PLAN, other=SINGLE, guarantee={"delta": 0.05}),
        PlanComparison(claim="3", label="b", one=None, other=SINGLE, note="nothing"),
    ),
    picture={"single": (SINGLE,)},
    margin_validation=({"margin_se": 2.0},),
)


def test_choices_read_back_are_the_choices_written(tmp_path: Path) -> None:
    path = write_choices(CHOICES, tmp_path)
    assert choices_from_path(path) == CHOICES


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": 1}), json.dumps({"format": 2})])
def test_a_file_that_holds_no_choices_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "choices.json").write_text(text)
    with pytest.raises(DataError, match=r"python -m perf reproduce"):
        choices_from_path(tmp_path / "choices.json")


def test_a_plan_becomes_the_cascade_that_is_served() -> None:
    spec = PLAN.spec_of(plan_part(rows=20).base)
    assert [[member.name for member in stage.members] for stage in spec.stages] == [list(s) for s in PLAN.stages]
    assert [stage.threshold for stage in spec.stages] == [0.25, None]
    assert PLAN.text == "b0_s0, then b1_s0 + b1_s1"
