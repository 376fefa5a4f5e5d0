"""The shortcuts of stage 0 give what the general path gives, to the bit."""

from dataclasses import fields, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.decision import DEFAULT, CascadeRun, Evaluator, FastPath, arrivals_from_policies, plain_arrivals
from orchestrator.spec import CascadeSpec, Gear, Gears, InputSpec, Member, Stage

GEARS = Gears(cheaper=(Gear(thresholds=(0.4,), mean_cost=1.0),))
LAST = Stage(members=(Member(name="last", output="logits", cost=9.0),))


@st.composite
def members(draw: st.DrawFn) -> tuple[Member, ...]:
    count = draw(st.integers(1, 3))
    return tuple(
        Member(
            name=f"m{index}",
            output="logits",
            cost=1.0,
            weight=draw(st.sampled_from([1.0, 0.5, 3.0])),
            temperature=draw(st.sampled_from([1.0, 1.0, 1.7])),
            output_kind=draw(st.sampled_from(["logits", "logits", "probabilities"])),
        )
        for index in range(count)
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[CascadeSpec, list[np.ndarray | None], int]:
    asked = draw(members())
    scores = ["max_prob", "top2_gap", "neg_entropy", *(["agreement"] if len(asked) > 1 else [])]
    spec = CascadeSpec(
        name="cascade",
        inputs=(InputSpec(name="x", dtype="FP32", dims=(3,)),),
        classes=4,
        stages=(Stage(members=asked, threshold=0.6, low=draw(st.sampled_from([None, 0.3]))), LAST),
        combine=draw(st.sampled_from(["mean_logit", "mean_prob", "vote", "last"])),
        score=draw(st.sampled_from(scores)),
    )
    if draw(st.booleans()):
        spec = replace(spec, gears=GEARS)
    elif draw(st.booleans()):
        spec = replace(spec, stages=(replace(spec.stages[0], threshold=None, low=None),))
    rows = draw(st.integers(1, 6) | st.just(300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    outputs: list[np.ndarray | None] = [rng.normal(0, 2, (rows, 4)).astype(np.float32) for _ in asked]
    for index, member in enumerate(asked):
        if member.output_kind == "probabilities":
            outputs[index] = abs(outputs[index])
    oddity = draw(st.sampled_from([None, None, np.nan, np.inf, -np.inf, 3e38, -0.0]))
    if oddity is not None:
        outputs[0][0, draw(st.integers(0, 3))] = oddity
    if draw(st.sampled_from([False] * 9 + [True])):
        outputs[-1] = None
    return spec, outputs, draw(st.integers(0, 1)) if spec.gears is not None else 0


def assert_same(one: object, other: object) -> None:
    """Equal columns, as numbers: a zero may have either sign, which no softmax shows."""
    for field in fields(other):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        assert (mine is None) == (theirs is None), field.name
        assert mine is None or (mine.dtype == theirs.dtype and np.array_equal(mine, theirs)), field.name


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 2))
def test_arrivals_without_parameters_are_those_of_the_default_policy(counts: list[int], gear: int) -> None:
    tokens, now_ns = list(range(7, 7 + len(counts))), [100 * index for index in range(len(counts))]
    arguments = {"now_ns": now_ns, "default_deadline_us": 1000, "gear": gear}
    general = arrivals_from_policies(tokens, counts, policies=[DEFAULT] * len(counts), **arguments)
    assert_same(plain_arrivals(tokens, counts, **arguments), general)


@given(cases())
@settings(max_examples=400, deadline=None)
def test_the_fast_path_decides_as_the_general_path_to_the_bit(
    case: tuple[CascadeSpec, list[np.ndarray | None], int],
) -> None:
    spec, outputs, gear = case
    rows = max((len(output) for output in outputs if output is not None), default=2)
    evaluator = Evaluator(spec)
    fast = FastPath(evaluator)
    short = fast.stage0(rows, outputs)
    general = evaluator.add_stage(evaluator.combiner.empty(rows), 0, outputs)
    assert (short.failures is None) == (general.failures is None)
    assert_same(short.accumulator, general.accumulator)
    assert_same(short.answer, general.answer)
    arrivals = arrivals_from_policies(
        [0], [rows], policies=[DEFAULT], now_ns=[0], default_deadline_us=1000, gear=gear
    )
    answers = CascadeRun(spec).enter(arrivals, general).answers
    early = fast.early_exit(short, gear)
    if general.failures is not None:
        # Then nobody is answered the short way: the general path knows what a failure means.
        assert not early.exits.any()
        return
    assert np.flatnonzero(early.exits).tolist() == answers.row.tolist()
    for name in ("probabilities", "label", "confidence"):
        assert getattr(early.answer, name)[early.exits].tobytes() == getattr(answers, name).tobytes(), name
    status = np.zeros(rows, np.int32) if early.status is None else early.status
    assert status[early.exits].tolist() == answers.status.tolist()
    assert (answers.cost == np.float32(spec.stages[0].cost)).all()
