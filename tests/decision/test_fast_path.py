"""The short way of stage 0 says what the long one says, to the bit."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.decision import DEFAULT, CascadeRun, Combiner, Evaluator, arrivals_from_policies
from orchestrator.spec import CascadeSpec, Gear, Gears, InputSpec, Member, Stage

GEARS = Gears(cheaper=(Gear(thresholds=(0.4,), mean_cost=1.0),))


def first_stage(members: int, weights: list[float], *, low: float | None, combine: str) -> CascadeSpec:
    asked = tuple(
        Member(name=f"m{index}", output="logits", cost=1.0, weight=weights[index]) for index in range(members)
    )
    last = Stage(members=(Member(name="last", output="logits", cost=9.0),))
    return CascadeSpec(
        name="cascade",
        input=InputSpec(name="x", dtype="FP32", dims=(3,)),
        classes=4,
        stages=(Stage(members=asked, threshold=0.6, low=low), last),
        combine=combine,
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[CascadeSpec, list[np.ndarray], int]:
    members = draw(st.integers(1, 3))
    weights = draw(st.lists(st.sampled_from([1.0, 0.5, 3.0]), min_size=members, max_size=members))
    spec = first_stage(
        members,
        weights,
        low=draw(st.sampled_from([None, 0.3])),
        combine=draw(st.sampled_from(["mean_logit", "mean_prob", "vote", "last"])),
    )
    if draw(st.booleans()):
        spec = replace(spec, gears=GEARS)
    rows = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    outputs = [rng.normal(0, 2, (rows, 4)).astype(np.float32) for _ in range(members)]
    if draw(st.booleans()):
        outputs[0][0, draw(st.integers(0, 3))] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -0.0]))
    return spec, outputs, draw(st.integers(0, 1)) if spec.gears is not None else 0


@given(cases())
@settings(max_examples=300, deadline=None)
def test_what_it_answers_at_once_is_what_the_table_would_have_answered(
    case: tuple[CascadeSpec, list[np.ndarray], int],
) -> None:
    spec, outputs, gear = case
    rows = len(outputs[0])
    run = CascadeRun(spec)
    arrivals = arrivals_from_policies(
        [0], [rows], policies=[DEFAULT], now_ns=[0], default_deadline_us=1000, gear=gear
    )
    judge = Evaluator(spec)
    sure = judge.sure(judge.look(rows, outputs), gear)
    outcome = run.admit(arrivals, outputs)
    if len(outcome.failures):
        # Then nobody is answered the short way: the long one knows what a failure means.
        assert not sure.exits.any()
        return
    answers = outcome.answers
    assert np.flatnonzero(sure.exits).tolist() == answers.row.tolist()
    for name in ("probabilities", "label", "confidence"):
        assert getattr(sure, name)[sure.exits].tobytes() == getattr(answers, name).tobytes(), name
    status = np.zeros(rows, np.int32) if sure.status is None else sure.status
    assert status[sure.exits].tolist() == answers.status.tolist()
    assert (answers.cost == np.float32(spec.stages[0].cost)).all()


@given(cases())
@settings(max_examples=300, deadline=None)
def test_a_first_stage_is_summed_as_any_other(case: tuple[CascadeSpec, list[np.ndarray], int]) -> None:
    spec, outputs, _ = case
    rows = len(outputs[0])
    combiner = Combiner(spec)
    tally, hurt, _ = combiner.begin(rows, outputs)
    long = combiner.empty(rows)
    long_hurt = combiner.add_stage(long, 0, outputs)
    for field in fields(tally):
        mine, other = getattr(tally, field.name), getattr(long, field.name)
        # Equal as numbers: a zero may have either sign, which no softmax shows.
        assert (mine is None) == (other is None)
        assert mine is None or np.array_equal(mine, other)
    assert [None if part is None else part.tolist() for part in hurt] == [
        None if part is None else part.tolist() for part in long_hurt
    ]
