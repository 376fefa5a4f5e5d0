from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.client.base import (
    Answers,
    OutputKinds,
    answers_from_outputs,
    host_and_port,
    joined,
    parameters_from_policy,
    status_words,
)
from orchestrator.client.models import ModelInfo, TensorInfo
from orchestrator.decision import Policy
from orchestrator.errors import ServerFaultError


def model(**outputs: tuple[str, tuple[int, ...]]) -> ModelInfo:
    return ModelInfo(
        name="m",
        platform="python",
        versions=("1",),
        max_batch_size=8,
        inputs=(TensorInfo(name="x", dtype="FP32", shape=(-1, 2)),),
        outputs=tuple(
            TensorInfo(name=name, dtype=dtype, shape=(-1, *dims)) for name, (dtype, dims) in outputs.items()
        ),
    )


LOGITS = model(logits=("FP32", (3,)))


def answered(info: ModelInfo, outputs: dict[str, np.ndarray], *, rows: int) -> Answers:
    return answers_from_outputs(info, [(outputs, rows)], OutputKinds())


@given(hnp.arrays(np.float32, (5, 3), elements=st.floats(-50, 50, width=32)))
def test_logits_become_a_distribution_whose_top_is_the_label(logits: np.ndarray) -> None:
    answers = answered(LOGITS, {"logits": logits}, rows=5)
    assert answers.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(answers.label, logits.argmax(axis=1))
    assert np.array_equal(answers.confidence, answers.probabilities.max(axis=1))


@pytest.mark.parametrize("bad", [[np.nan, 0, 0], [np.inf, 0, 0], [-np.inf] * 3])
def test_a_row_that_is_not_finite_has_no_label_and_harms_no_other(bad: list[float]) -> None:
    logits = np.array([[0, 2, 0], bad, [-np.inf, 0, 1]], np.float32)
    answers = answered(LOGITS, {"logits": logits}, rows=3)
    assert answers.label.tolist() == [1, -1, 2]
    assert answers.status.tolist() == [0, 1, 0]
    assert np.isnan(answers.confidence).tolist() == [False, True, False]
    assert np.isnan(answers.probabilities[1]).all()


def test_probabilities_are_taken_as_they_are_and_missing_columns_follow_from_them() -> None:
    info = model(probabilities=("FP32", (3,)))
    p = np.array([[0.2, 0.5, 0.3]], np.float32)
    answers = answered(info, {"probabilities": p}, rows=1)
    assert np.array_equal(answers.probabilities, p)
    assert (answers.label[0], answers.confidence[0]) == (1, np.float32(0.5))


def test_columns_a_model_gives_win_over_those_that_follow_from_its_scores() -> None:
    info = model(probabilities=("FP32", (3,)), label=("INT64", (1,)), confidence=("FP32", (1,)))
    outputs = {
        "probabilities": np.array([[0.5, 0.5, 0]], np.float32),
        "label": np.array([[1]]),
        "confidence": np.array([[0.25]], np.float32),
    }
    answers = answered(info, outputs, rows=1)
    assert (answers.label[0], answers.confidence[0]) == (1, np.float32(0.25))


@pytest.mark.parametrize("outputs", [{}, {"logits": np.zeros((2, 3), np.float32)}, {"logits": np.zeros(1)}])
def test_a_response_of_another_size_is_the_servers_fault(outputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(ServerFaultError, match="model m"):
        answered(LOGITS, outputs, rows=1)


def test_only_what_differs_from_the_default_is_sent_and_as_plain_numbers() -> None:
    assert parameters_from_policy(None) == parameters_from_policy(Policy()) == {}
    policy = Policy(min_stage=np.int64(2), threshold_shift=np.float32(0.5), max_stage=0)
    parameters = parameters_from_policy(policy)
    assert parameters == {"min_stage": 2, "max_stage": 0, "threshold_shift": 0.5}
    assert [type(value) for value in parameters.values()] == [int, int, float]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_joining_parts_keeps_every_row_in_order(sizes: list[int]) -> None:
    count = sum(sizes)
    whole = answered(LOGITS, {"logits": np.eye(3, dtype=np.float32)[np.arange(count) % 3]}, rows=count)
    ends = np.cumsum(sizes)
    names = list(Answers.__dataclass_fields__)
    parts = [
        Answers(**{n: getattr(whole, n)[end - size : end] for n in names})
        for size, end in zip(sizes, ends, strict=True)
    ]
    for name in names:
        assert np.array_equal(getattr(joined(parts), name), getattr(whole, name))


def test_status_bits_have_names() -> None:
    assert status_words(0) == ""
    assert status_words(1 | 8) == "degraded, capped"
    assert status_words(2 | 4) == "deadline, abstained"


@pytest.mark.parametrize("address", ["h:1", "http://h:1/", "grpc://h:1", "https://h:1"])
def test_a_scheme_is_taken_off_an_address(address: str) -> None:
    assert host_and_port(address) == "h:1"
