import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec.output_kind import ScoreEvidence

seeds, sizes, classes = st.integers(0, 2**32 - 1), st.integers(4, 60), st.integers(2, 40)


def seen(scores: np.ndarray) -> ScoreEvidence:
    return ScoreEvidence().with_scores(scores)


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@given(seeds, sizes, classes, st.floats(0.1, 30), st.sampled_from([np.float16, np.float32, np.float64]))
def test_a_softmax_of_any_precision_gives_probabilities(
    seed: int, rows: int, k: int, scale: float, dtype: type[np.floating]
) -> None:
    p = softmax(np.random.default_rng(seed).normal(0, scale, (rows, k))).astype(dtype)
    assert seen(p).kind == "probabilities"
    # Rows that hardly differ, as saturated ones of the same class, are one row again and again.
    assert seen(p).contradicts("logits") or np.ptp(p.astype(np.float64), axis=0).max() < 0.05
    assert not seen(p).contradicts("probabilities")


@given(seeds, sizes, classes, st.floats(0.5, 30))
def test_logits_and_log_probabilities_are_logits(seed: int, rows: int, k: int, scale: float) -> None:
    z = np.random.default_rng(seed).normal(0, scale, (rows, k))
    for scores in (z, np.log(softmax(z))):
        assert seen(scores).kind == "logits"
        assert not seen(scores).contradicts("logits")
        assert seen(scores).contradicts("probabilities")


@given(seeds, st.integers(4, 60), st.floats(1e-5, 0.01))
def test_weak_logits_of_two_classes_near_a_half_do_not_speak_against_logits(
    seed: int, rows: int, scale: float
) -> None:
    z = 0.5 + np.random.default_rng(seed).uniform(-scale, scale, (rows, 2))
    assert not seen(z).contradicts("logits")


@pytest.mark.parametrize("row", [[0.0, 0.0], [0.5, 0.5], [0.3, 0.7], [1.0, 0.0], [0.2, 0.3]])
def test_one_row_again_and_again_does_not_speak_against_logits(row: list[float]) -> None:
    assert not seen(np.tile(row, (100, 1))).contradicts("logits")


def test_scores_that_fill_the_unit_interval_are_no_logits() -> None:
    sigmoids = 1 / (1 + np.exp(-np.random.default_rng(0).normal(0, 4, (64, 5))))
    assert seen(sigmoids).contradicts("logits")
    assert seen(sigmoids).contradicts("probabilities")
    # Few scores, or some that leave it, may be anything.
    assert not seen(sigmoids[:3]).contradicts("logits")
    assert not seen(np.vstack([sigmoids, sigmoids[:1] + 1])).contradicts("logits")


@given(seeds, sizes, st.integers(1, 10))
def test_rows_count_the_same_in_any_parts(seed: int, rows: int, size: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(rows, 3))
    whole, parts = seen(scores), ScoreEvidence()
    for start in range(0, rows, size):
        parts = parts.with_scores(scores[start : start + size])
    assert parts == whole


def test_rows_that_are_not_finite_are_left_out() -> None:
    scores = np.array([[0.2, 0.8], [np.nan, 0.5], [np.inf, 0.0], [-np.inf, 3.0], [0.6, 0.4]])
    assert seen(scores) == seen(scores[[0, 4]])
    nothing = seen(scores[1:2])
    assert (nothing.rows, nothing.kind) == (0, "logits")
    assert not nothing.contradicts("probabilities")


def test_the_text_names_the_values() -> None:
    assert str(seen(np.array([[0.25, 0.75], [0.5, 0.5]]))) == "values from 0.25 to 0.75 in 2 rows that add up to 1"


@given(seed=st.integers(0, 99), rows=st.integers(4, 40), k=st.integers(2, 20), scale=st.floats(0.1, 30))
def test_only_negative_logs_of_distributions_are_taken_for_such(
    seed: int, rows: int, k: int, scale: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=(rows, k)) * scale
    logs = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    logs -= logits.max(axis=1, keepdims=True)
    assert seen(-logs).is_negative_log
    assert not seen(-logs).adds_up
    for other in (logs, logits, np.exp(logs), -logits):
        assert not seen(other).is_negative_log
    affine = seen(2 * np.exp(logs) - 1)
    assert affine.adds_up_otherwise == (k != 2 and k != 1)
    assert not any(
        seen(other).adds_up_otherwise for other in (np.exp(logs), logits - logits.mean(axis=1, keepdims=True))
    )
