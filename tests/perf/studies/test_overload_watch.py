from __future__ import annotations

import pytest

from orchestrator.errors import ServerFaultError
from perf.studies.overload import watch
from perf.studies.overload.watch import Reading, at_rest, pressure_between, reading_from_text

NOTHING = {"queue_us": 0, "cheaper": 0, "dearer": 0}
SAID = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="geared",version="1"} 40
nv_inference_request_success{model="plain",version="1"} 7
nv_inference_queue_duration_us{model="geared",version="1"} 80000
committee_gear_shifts_total{model="geared",direction="cheaper"} 3
committee_gear_shifts_total{model="geared",direction="dearer"} 1
committee_gear{model="geared"} 2
"""


def test_counters_of_the_model_alone_are_read() -> None:
    assert reading_from_text(SAID, "geared") == Reading(served=40, queue_us=80000, cheaper=3, dearer=1, gear=2)
    assert reading_from_text(SAID, "plain") == Reading(served=7, queue_us=0, cheaper=0, dearer=0)


def test_the_wait_is_of_what_was_served_in_between() -> None:
    before = reading_from_text(SAID, "geared")
    after = Reading(served=50, queue_us=180000, cheaper=3, dearer=2)
    pressure = pressure_between(before, after)
    assert (pressure.queue_ms, pressure.cheaper, pressure.dearer) == (10.0, 0, 1)


def test_nothing_served_has_no_wait() -> None:
    one = reading_from_text(SAID, "geared")
    assert pressure_between(one, one).queue_ms is None


def test_a_load_begins_when_nothing_is_counted_and_the_gear_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([(1, 2), (5, 2), (5, 2), (5, 1), (5, 0), (5, 0), (6, 0)])
    monkeypatch.setattr(watch, "SETTLE_S", 0.0)
    monkeypatch.setattr(
        watch, "read", lambda *_: Reading(**dict(zip(("served", "gear"), next(seen), strict=True)), **NOTHING)
    )
    assert at_rest("nowhere", "geared").served == 5
    assert next(seen) == (6, 0)


def test_a_server_that_does_not_come_to_rest_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SETTLE_S", 0.0)
    monkeypatch.setattr(watch, "read", lambda *_: Reading(served=1, gear=3, **NOTHING))
    with pytest.raises(ServerFaultError, match=r"idle server within 0\.01 s"):
        at_rest("nowhere", "geared", timeout_s=0.01)
