from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.local.sessions import LocalMembers
from perf.studies.reproduce.choices import ChosenPlan
from perf.studies.reproduce.evaluate import ChoiceEvaluator, TimingLoad, ask_cascade, ask_single, spread_of, timed
from perf.studies.reproduce.parts import PartRecorder, TestPart
from tests.perf.studies.reproduce import builders

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
def test_what_is_timed_answers_as_the_replay_that_is_judged(
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
    figures = timed(
        [single, CASCADES[0], single],
        part.base,
        members=members,
        images=part.images,
        load=TimingLoad(batch=32, rows=64, rounds=3),
        say=said.append,
    )
    assert list(figures) == [single, CASCADES[0]]
    assert all(len(rounds) == 3 and min(rounds) > 0 for rounds in figures.values())
    assert len(said) == 3


def test_a_spread_is_the_median_with_both_ends() -> None:
    assert spread_of([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
