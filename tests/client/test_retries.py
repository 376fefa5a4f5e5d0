from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.client.error_mapping import RetryPolicy

FRACTION = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 50), FRACTION, st.floats(0, 10))
def test_a_pause_is_within_its_bounds_and_before_the_time_limit(
    attempt: int, jitter: float, elapsed: float
) -> None:
    policy = RetryPolicy(timeout_s=5, retries=8, first_delay_s=0.1, max_delay_s=1)
    pause = policy.delay_s(attempt, elapsed_s=elapsed, jitter=jitter)
    if attempt >= 8:
        assert pause is None
    if pause is not None:
        base = min(1, 0.1 * 2**attempt)
        # The largest jitter below 1 rounds to the bound itself.
        assert base * 0.5 <= pause <= base * 1.5
        assert elapsed + pause < 5


@given(st.integers(0, 6), FRACTION)
def test_pauses_double_until_the_longest(attempt: int, jitter: float) -> None:
    policy = RetryPolicy(timeout_s=1000, retries=100, first_delay_s=0.1, max_delay_s=1000)
    now = policy.delay_s(attempt, elapsed_s=0, jitter=jitter)
    later = policy.delay_s(attempt + 1, elapsed_s=0, jitter=jitter)
    assert now is not None
    assert later is not None
    assert abs(later / now - 2) < 1e-9


def test_no_retries_means_no_second_attempt() -> None:
    assert RetryPolicy(retries=0).delay_s(0, elapsed_s=0, jitter=0) is None
