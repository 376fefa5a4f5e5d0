from __future__ import annotations

from perf.overload.watch import Reading, pressure_between, reading_from_text

SAID = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="geared",version="1"} 40
nv_inference_request_success{model="plain",version="1"} 7
nv_inference_queue_duration_us{model="geared",version="1"} 80000
committee_gear_shifts_total{model="geared",direction="cheaper"} 3
committee_gear_shifts_total{model="geared",direction="dearer"} 1
"""


def test_counters_of_the_model_alone_are_read() -> None:
    assert reading_from_text(SAID, "geared") == Reading(served=40, queue_us=80000, cheaper=3, dearer=1)
    assert reading_from_text(SAID, "plain") == Reading(served=7, queue_us=0, cheaper=0, dearer=0)


def test_the_wait_is_of_what_was_served_in_between() -> None:
    before = reading_from_text(SAID, "geared")
    after = Reading(served=50, queue_us=180000, cheaper=3, dearer=2)
    pressure = pressure_between(before, after)
    assert (pressure.queue_ms, pressure.cheaper, pressure.dearer) == (10.0, 0, 1)


def test_nothing_served_has_no_wait() -> None:
    one = reading_from_text(SAID, "geared")
    assert pressure_between(one, one).queue_ms is None
