import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.decision import Policy
from orchestrator.planner.records import Records
from orchestrator.planner.replay import explain_rows, replay
from orchestrator.spec import COMBINES, CascadeSpec, InputSpec, Member, Stage

NAMES = ("a", "b", "c", "d")


def plan(combine: str, score: str, thresholds: list[float | None], low: float | None) -> CascadeSpec:
    members = [Member(name=name, output="z", cost=1.0) for name in NAMES]
    stages = (members[:2], members[2:3], members[3:])
    return CascadeSpec(
        name="p",
        inputs=(InputSpec(name="x", dtype="FP32", dims=(1,)),),
        classes=4,
        combine=combine,
        score=score,
        stages=tuple(
            Stage(members=tuple(part), threshold=threshold, low=low if index == 0 and threshold else None)
            for index, (part, threshold) in enumerate(zip(stages, [*thresholds, None], strict=True))
        ),
    )


@given(
    logits=hnp.arrays(np.float32, (4, 6, 4), elements=st.floats(-4, 4, width=16)),
    combine=st.sampled_from(COMBINES),
    score=st.sampled_from(["max_prob", "top2_gap", "neg_entropy", "agreement"]),
    thresholds=st.lists(st.one_of(st.none(), st.floats(0.3, 0.9)), min_size=2, max_size=2),
    low=st.one_of(st.none(), st.just(0.28)),
    policy=st.builds(
        Policy,
        min_stage=st.integers(0, 1),
        max_stage=st.one_of(st.none(), st.integers(1, 2)),
        threshold_shift=st.floats(-0.3, 0.3),
    ),
)
def test_the_explanation_exits_where_the_replay_of_the_same_outputs_does(
    logits: np.ndarray, combine: str, score: str, thresholds: list[float | None], low: float | None, policy: Policy
) -> None:
    spec = plan(combine, score, thresholds, low)
    outputs = dict(zip(NAMES, logits, strict=True))
    records = Records(
        ids=np.arange(6), labels=np.zeros(6, np.int64), outputs=outputs, cost=dict.fromkeys(NAMES, 1.0), meta={}
    )
    answered = replay(spec, records, policy)
    explained = explain_rows(spec, outputs, policy=policy)
    assert [(one.row, one.stage) for one in explained] == [(row, stage) for row in range(6) for stage in range(3)]
    for row in range(6):
        stages = explained[3 * row : 3 * row + 3]
        exits = [one.stage for one in stages if one.exits]
        assert exits == [answered.exit_stage[row]]
        assert [one.reached for one in stages] == [stage <= exits[0] for stage in range(3)]
        here = stages[exits[0]]
        assert here.score == answered.confidence[row]
        top = [label for label, _ in here.top]
        if combine != "vote":
            assert top[0] == answered.label[row]
        assert [p for _, p in here.top] == sorted(answered.probabilities[row], reverse=True)[:3]


def test_thresholds_are_shown_with_the_shift_and_never_as_nothing() -> None:
    spec = plan("mean_prob", "max_prob", [0.5, None], None)
    outputs = {name: np.zeros((1, 4), np.float32) for name in NAMES}
    shown = [one.threshold for one in explain_rows(spec, outputs, policy=Policy(threshold_shift=0.25))]
    assert shown[0] == pytest.approx(0.75)
    assert shown[1:] == [None, None]
