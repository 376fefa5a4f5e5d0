"""The baselines decide as Committee does, to the bit, or comparing them would mean nothing."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage
from orchestrator.spec.cascade import MAX_STAGES
from perf.routes.baselines.deciding import OUTPUTS, BaselinePlan, Batch, plan_from_parameters
from perf.routes.rendering import is_plain, parameters_of


def cascade(thresholds: list[float]) -> CascadeSpec:
    stages = [
        Stage(members=(Member(name=f"m{index}", output="logits", cost=10.1 ** (index % 4)),), threshold=threshold)
        for index, threshold in enumerate([*thresholds, None])
    ]
    source = InputSpec(name="image", dtype="FP32", dims=(2,))
    return CascadeSpec(name="plain", inputs=(source,), classes=3, stages=tuple(stages))


def plan_of(spec: CascadeSpec) -> BaselinePlan:
    return plan_from_parameters(parameters_of(spec), input_name="image")


def answered(plan: BaselinePlan, logits: list[np.ndarray]) -> dict[str, np.ndarray]:
    batch = Batch(plan, len(logits[0]))
    for said in logits:
        batch.add(said[batch.open])
        if not len(batch.open):
            break
    return batch.answers


@settings(deadline=None, max_examples=60)
@given(
    thresholds=st.lists(st.floats(0.25, 1.25, width=32), min_size=0, max_size=3),
    rows=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    coarse=st.booleans(),
)
def test_it_answers_what_the_decision_core_answers(
    thresholds: list[float], rows: int, seed: int, coarse: bool
) -> None:
    spec = cascade(thresholds)
    logits = np.random.default_rng(seed).normal(size=(len(spec.stages), rows, 3), scale=2).astype(np.float32)
    if coarse:  # ties between classes
        logits = np.round(logits)
    names = [member.name for member in spec.members]
    records = Records(
        ids=np.arange(rows),
        labels=None,
        outputs=dict(zip(names, logits, strict=True)),
        cost=dict.fromkeys(names, 1.0),
    )
    expected = replay(spec, records)
    got = answered(plan_of(spec), list(logits))
    for name, dtype in OUTPUTS.items():
        wanted = getattr(expected, name)
        assert got[name].dtype == dtype, name
        np.testing.assert_array_equal(got[name], wanted if wanted.ndim == 2 else wanted[:, None], err_msg=name)


def test_thresholds_come_through_a_config_unchanged() -> None:
    for numbers in np.random.default_rng(0).uniform(size=(4, MAX_STAGES - 1)).astype(np.float32):
        spec = cascade([float(number) for number in numbers])
        assert list(plan_of(spec).thresholds) == list(numbers)


def test_a_deferred_row_holds_on_to_nothing_of_a_members_response() -> None:
    said = np.zeros((2, 3), np.float32)
    batch = Batch(plan_of(cascade([0.9])), 2)
    batch.add(said)
    said[:] = 100.0
    batch.add(np.array([[0, 1, 0], [0, 0, 1]], np.float32))
    assert batch.answers["label"][:, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    "other",
    [
        {"combine": "mean_prob"},
        {"score": "top2_gap"},
        {"stages": (Stage(members=(Member(name="a", output="o"), Member(name="b", output="o"))),)},
        {"stages": (Stage(members=(Member(name="a", output="o", temperature=2.0),)),)},
        {"stages": (Stage(members=(Member(name="a", output="o", inputs={"x": "image"}),)),)},
    ],
    ids=str,
)
def test_a_plan_the_baselines_do_not_know_is_told_apart(other: dict) -> None:
    assert is_plain(cascade([0.5]))
    assert not is_plain(dataclasses.replace(cascade([0.5]), **other))


def test_a_score_that_equals_the_threshold_exits() -> None:
    spec = cascade([float(np.float32(1) / np.float32(3))])
    even = np.zeros((1, 3), np.float32)
    assert answered(plan_of(spec), [even, even])["exit_stage"].tolist() == [[0]]
