import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.client.answers import (
    OutputKinds,
    ServedAnswers,
    answers_from_outputs,
    joined,
    parameters_from_policy,
    status_words,
)
from orchestrator.decision import Policy, softmax
from orchestrator.errors import ServerFaultError
from orchestrator.spec.served_model import ModelInfo, TensorInfo


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


def answered(info: ModelInfo, outputs: dict[str, np.ndarray], *, rows: int) -> ServedAnswers:
    return answers_from_outputs(info, [(outputs, rows)], kinds=OutputKinds())


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


P = np.array([[0.2, 0.5, 0.3], [0.1, 0.8, 0.1]], np.float32)


@pytest.mark.parametrize("name", ["logits", "probabilities", "scores"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_the_kind_of_scores_comes_from_the_configuration_whatever_the_tensor_is_called(
    name: str, kind: str
) -> None:
    info = dataclasses.replace(model(**{name: ("FP32", (3,))}), output_kind=kind)
    answers = answered(info, {name: P}, rows=2)
    assert answers.confidence == pytest.approx(
        P.max(axis=1) if kind == "probabilities" else softmax(P).max(axis=1)
    )


@pytest.mark.parametrize("name", ["logits", "probabilities", "scores"])
def test_the_kind_of_scores_comes_from_the_values_where_nobody_says_it(name: str) -> None:
    info = model(**{name: ("FP32", (3,))})
    assert answered(info, {name: P}, rows=2).confidence == pytest.approx([0.5, 0.8])
    assert answered(info, {name: 3 * P}, rows=2).confidence == pytest.approx(softmax(3 * P).max(axis=1))


def test_rows_asked_one_by_one_get_their_kind_from_all_that_were_seen() -> None:
    kinds, chance = OutputKinds(), np.array([[0.2, 0.3, 0.5]], np.float32)
    answers_from_outputs(LOGITS, [({"logits": np.array([[4, 0, 0]], np.float32)}, 1)], kinds=kinds)
    answers = answers_from_outputs(LOGITS, [({"logits": chance}, 1)], kinds=kinds)
    assert answers.confidence == pytest.approx(softmax(chance).max(axis=1))
    kinds.forget("m")
    assert answers_from_outputs(LOGITS, [({"logits": chance}, 1)], kinds=kinds).confidence == pytest.approx([0.5])


def test_a_note_says_how_scores_were_taken_where_the_configuration_does_not_or_is_wrong() -> None:
    def note(output_kind: str | None, scores: np.ndarray) -> str | None:
        info, kinds = dataclasses.replace(LOGITS, output_kind=output_kind), OutputKinds()
        answers_from_outputs(info, [({"logits": scores}, len(scores))], kinds=kinds)
        return kinds.note(info)

    many = softmax(np.random.default_rng(0).normal(0, 3, (30, 3)).astype(np.float32))
    assert note("probabilities", many) is None
    assert note("logits", 9 * many) is None
    assert "taken for probabilities by their values" in str(note(None, many))
    assert "no logits as parameter output_kind of its configuration says" in str(note("logits", many))
    assert "no probabilities as" in str(note("probabilities", 9 * many))
    assert "or neither, as sigmoids" in str(note(None, many**2))


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
    names = list(ServedAnswers.__dataclass_fields__)
    parts = [
        ServedAnswers(**{n: getattr(whole, n)[end - size : end] for n in names})
        for size, end in zip(sizes, ends, strict=True)
    ]
    for name in names:
        assert np.array_equal(getattr(joined(parts), name), getattr(whole, name))


def test_status_bits_have_names() -> None:
    assert status_words(0) == ""
    assert status_words(1 | 8) == "degraded, capped"
    assert status_words(2 | 4) == "deadline, abstained"
