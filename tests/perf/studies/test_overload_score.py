from __future__ import annotations

import math

import numpy as np

from orchestrator.spec.answer import DEADLINE, GEARED
from perf.load.poisson import TURNED_AWAY, WARM_S, OpenLoop
from perf.studies.overload.score import Score, medians
from perf.studies.overload.score import score_of as _score_of
from perf.studies.overload.send import Sent, sent_from_open_loop
from perf.studies.overload.watch import Pressure


def score_of(sent: Sent, *, deadline_ms: float) -> Score:
    return _score_of(sent, deadline_ms=deadline_ms, pressure=Pressure(queue_ms=7.0, cheaper=2, dearer=1))


def sent(**changes: object) -> Sent:
    given = {
        "latency_ms": np.array([10.0, 90.0, 120.0, math.nan]),
        "lag_ms": np.array([0.1, 0.1, 0.2, math.nan]),
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
    times = np.array([0.001, 0.002])
    done = OpenLoop(due_s=np.full(2, WARM_S), sent_s=times, done_s=times, answers=[TURNED_AWAY, None])
    found = sent_from_open_loop(done, labels=np.zeros(3, np.int64), batch=2)
    assert len(found.answered) == 2
    assert not found.answered.any()
    assert np.isnan(found.latency_ms).all()


def test_shifts_add_up_over_rounds_and_waits_are_medians() -> None:
    found = medians([score_of(sent(), deadline_ms=100.0)] * 3)
    assert found["shifts"] == [6, 3]
    assert found["queue_ms"] == {"median": 7.0, "min": 7.0, "max": 7.0}
