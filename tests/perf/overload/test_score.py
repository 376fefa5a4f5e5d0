from __future__ import annotations

import math

import numpy as np

from orchestrator.decision import DEADLINE, GEARED
from perf.overload.score import medians, score_of
from perf.overload.send import TURNED_AWAY, Sent, _sent


def sent(**changes: object) -> Sent:
    given = {
        "latency_ms": np.array([10.0, 90.0, 120.0, math.nan]),
        "right": np.array([4, 3, 4, 0]),
        "answered": np.array([True, True, True, False]),
        "exits": np.array([9, 3]),
        "status": {0: 7, GEARED: 2, DEADLINE: 2, DEADLINE | GEARED: 1},
        "batch": 4,
    }
    return Sent(**{**given, **changes})


def test_a_request_turned_away_or_late_counts_against_what_was_sent() -> None:
    score = score_of(sent(), deadline_ms=100.0)
    assert score.in_time == 2 / 4
    assert score.answered == 3 / 4
    # Accuracy is of what was answered, late or not; good rows are of all that was sent.
    assert score.accuracy == 11 / 12
    assert score.good == 7 / 16


def test_bits_count_wherever_they_stand_together() -> None:
    score = score_of(sent(), deadline_ms=100.0)
    assert score.cut == 3 / 12
    assert score.geared == 3 / 12
    assert score.exits == (9 / 12, 3 / 12)


def test_a_variant_that_answers_nothing_still_has_a_score() -> None:
    nothing = sent(
        latency_ms=np.full(4, math.nan),
        right=np.zeros(4, int),
        answered=np.zeros(4, bool),
        exits=np.zeros(0, int),
        status={},
    )
    score = score_of(nothing, deadline_ms=100.0)
    assert (score.in_time, score.good, score.p50_ms) == (0.0, 0.0, None)
    assert medians([score, score])["p50_ms"] is None


def test_rounds_of_unequal_depth_are_summed_stage_by_stage() -> None:
    deep = score_of(sent(exits=np.array([6, 3, 3])), deadline_ms=100.0)
    flat = score_of(sent(), deadline_ms=100.0)
    assert medians([deep, flat, flat])["exits"] == [0.75, 0.25, 0.0]


def test_refusals_are_no_answers() -> None:
    found = _sent(np.arange(2), np.array([1.0, 2.0]), [TURNED_AWAY, None], labels=np.zeros(3, np.int64), batch=2)
    assert not found.answered.any()
    assert np.isnan(found.latency_ms).all()
