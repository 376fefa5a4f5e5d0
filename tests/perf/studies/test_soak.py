from pathlib import Path

import pytest

from orchestrator.serving.options import MIB
from perf.studies.soak import GROWTH_LIMITS, faults_from, growth_from, run_soak

COUNTS = {"right": 10, "flagged": 1, "wrong": 0, "lost": 0, "twice": 0, "UNAVAILABLE": 3}


def series(first: float, second: float) -> list[tuple[float, float]]:
    """A quantity that grows by `first` bytes a second until the middle of 100 s, and by `second` after it."""
    return [(s, 50 * MIB + first * min(s, 50) + second * max(0, s - 50)) for s in range(101)]


def test_growth_counts_from_the_middle_on() -> None:
    (settled,) = growth_from({("cascade", "resident"): series(MIB, 0)})
    assert settled.grown == pytest.approx(0, abs=1)
    (leak,) = growth_from({("cascade", "resident"): series(0, 0.1 * MIB)})
    assert leak.grown == pytest.approx(5 * MIB)
    assert faults_from(COUNTS, [settled], []) == []
    assert faults_from(COUNTS, [leak], []) == ["cascade: resident +5.00 MiB"]


def test_a_thread_that_stays_is_a_fault() -> None:
    points = [(float(s), 10.0 + s // 20) for s in range(101)]
    (grown,) = growth_from({("cascade", "threads"): points})
    assert grown.grown > GROWTH_LIMITS["threads"]


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"lost": 1}, "1 requests lost"),
        ({"wrong": 2}, "2 requests wrong"),
        ({"INTERNAL": 3}, "3 requests INTERNAL"),
        ({"right": 0}, "no request answered right"),
    ],
)
def test_what_became_of_requests_is_judged(counts: dict[str, int], says: str) -> None:
    assert faults_from(COUNTS | counts, [], []) == [says]


def test_what_should_have_been_refused_is_said_once() -> None:
    assert faults_from(COUNTS, [], ["answered", "answered"]) == ["answered"]


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(240)
def test_one_answer_kept_of_a_hundred_fails_the_run(tmp_path: Path) -> None:
    # Slow: a leak takes a minute to stand out from what allocators do.
    found = run_soak(tmp_path, seconds=60, negative_control=True, progress=lambda _: None)
    assert any(fault.startswith("faults_cascade: resident") for fault in found["faults"]), found
