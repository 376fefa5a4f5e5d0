"""How many rows a request gets, by a clock that the test turns."""

from collections.abc import Callable

import pytest

from orchestrator.predictor.pacing import RequestRows, request_rows


def settled(size: RequestRows, rows_per_s: Callable[[int], float]) -> int:
    """The size after a minute of requests that are answered at such rates."""
    now_s = 0.0
    while now_s < 60:
        now_s += size.rows / rows_per_s(size.rows)
        size.answered(size.rows, now_s=now_s)
    return size.rows


def paced(**more: int | None) -> RequestRows:
    return request_rows(None, **{"limit": 1024, "row_bytes": 4, "in_flight": 8} | more)


def test_a_size_is_kept_that_is_worth_it_and_not_one_more() -> None:
    assert settled(paced(), lambda rows: min(rows, 256) * 100.0) == 256
    assert settled(paced(), lambda rows: 5000.0) == 32
    # Not stopped by a disturbance on the way.
    assert settled(paced(), lambda rows: 6000.0 if rows == 64 else rows * 190.0) == 1024
    assert settled(paced(limit=64), lambda rows: rows * 100.0) == 64
    assert settled(paced(row_bytes=1 << 16), lambda rows: rows * 100.0) == 64


def test_a_slow_model_gets_no_requests_that_come_near_a_time_limit() -> None:
    assert settled(paced(), lambda rows: 10.0 * rows**0.5) == 32


@pytest.mark.parametrize("fixed", [1, 7, 5000])
def test_a_size_that_was_asked_for_stays(fixed: int) -> None:
    size = request_rows(fixed, limit=64, row_bytes=4, in_flight=2)
    assert settled(size, lambda rows: rows * 100.0) == fixed


def test_requests_of_another_size_say_nothing() -> None:
    size = paced()
    for place in range(1000):
        size.answered(7, now_s=float(place))
    assert size.rows == 32
