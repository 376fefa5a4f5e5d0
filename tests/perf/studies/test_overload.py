import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from orchestrator.errors import ServerFaultError
from orchestrator.spec.answer import DEADLINE, GEARED
from perf.__main__ import app
from perf.load.poisson import TURNED_AWAY, WARM_S, OpenLoop
from perf.studies.overload import score as score_module
from perf.studies.overload.command import report_path
from perf.studies.overload.run import DIGITS, GLYPHS, VARIANTS, OverloadSource, make_setup
from perf.studies.overload.score import (
    CounterReading,
    SentRequests,
    counters_at_rest,
    counters_from_text,
    medians,
    sent_from_open_loop,
)
from perf.studies.overload.score import score_of as _score_of


def score_of(sent: SentRequests, *, deadline_ms: float) -> dict[str, Any]:
    return {**_score_of(sent, deadline_ms=deadline_ms), "queue_ms": 7.0, "shifts": [2, 1]}


def sent(**changes: object) -> SentRequests:
    given = {
        "latency_ms": np.array([10.0, 90.0, 120.0, math.nan]),
        "lag_ms": np.array([0.1, 0.1, 0.2, math.nan]),
        "right": np.array([4, 3, 4, 0]),
        "answered": np.array([True, True, True, False]),
        "exits": np.array([9, 3]),
        "status": {0: 7, GEARED: 2, DEADLINE: 2, DEADLINE | GEARED: 1},
        "batch": 4,
    }
    return SentRequests(**{**given, **changes})


def test_a_request_turned_away_or_late_counts_against_what_was_sent() -> None:
    score = score_of(sent(), deadline_ms=100.0)
    assert score["in_time"] == 2 / 4
    assert score["answered"] == 3 / 4
    # Accuracy is of what was answered, late or not; good rows are of all that was sent.
    assert score["accuracy"] == 11 / 12
    assert score["good"] == 7 / 16


def test_bits_count_wherever_they_stand_together() -> None:
    score = score_of(sent(), deadline_ms=100.0)
    assert score["cut"] == 3 / 12
    assert score["geared"] == 3 / 12
    assert score["exits"] == [9 / 12, 3 / 12]


def test_a_variant_that_answers_nothing_still_has_a_score() -> None:
    nothing = sent(
        latency_ms=np.full(4, math.nan),
        right=np.zeros(4, int),
        answered=np.zeros(4, bool),
        exits=np.zeros(0, int),
        status={},
    )
    score = score_of(nothing, deadline_ms=100.0)
    assert (score["in_time"], score["good"], score["p50_ms"]) == (0.0, 0.0, None)
    assert medians(pd.DataFrame([score, score]))["p50_ms"] is None


def test_rounds_of_unequal_depth_are_summed_stage_by_stage() -> None:
    deep = score_of(sent(exits=np.array([6, 3, 3])), deadline_ms=100.0)
    flat = score_of(sent(), deadline_ms=100.0)
    assert medians(pd.DataFrame([deep, flat, flat]))["exits"] == [0.75, 0.25, 0.0]


def test_refusals_are_no_answers() -> None:
    times = np.array([0.001, 0.002])
    done = OpenLoop(due_s=np.full(2, WARM_S), sent_s=times, done_s=times, answers=[TURNED_AWAY, None])
    found = sent_from_open_loop(done, labels=np.zeros(3, np.int64), batch=2)
    assert len(found.answered) == 2
    assert not found.answered.any()
    assert np.isnan(found.latency_ms).all()


def test_shifts_add_up_over_rounds_and_waits_are_medians() -> None:
    found = medians(pd.DataFrame([score_of(sent(), deadline_ms=100.0)] * 3))
    assert found["shifts"] == [6, 3]
    assert found["queue_ms"] == {"median": 7.0, "min": 7.0, "max": 7.0}


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
    assert counters_from_text(SAID, "geared") == CounterReading(
        served=40, queue_us=80000, cheaper=3, dearer=1, gear=2
    )
    assert counters_from_text(SAID, "plain") == CounterReading(served=7, queue_us=0, cheaper=0, dearer=0)


def test_the_wait_is_of_what_was_served_in_between_and_nothing_served_has_none() -> None:
    before = counters_from_text(SAID, "geared")
    after = CounterReading(served=50, queue_us=180000, cheaper=3, dearer=2)
    assert after.since(before) == {"queue_ms": 10.0, "shifts": [0, 1]}
    assert before.since(before) == {"queue_ms": None, "shifts": [0, 0]}


def test_a_load_begins_when_nothing_is_counted_and_the_gear_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([(1, 2), (5, 2), (5, 2), (5, 1), (5, 0), (5, 0), (6, 0)])
    monkeypatch.setattr(score_module, "SETTLE_S", 0.0)
    monkeypatch.setattr(
        score_module,
        "read_counters",
        lambda *_: CounterReading(**dict(zip(("served", "gear"), next(seen), strict=True)), **NOTHING),
    )
    assert counters_at_rest("nowhere", "geared").served == 5
    assert next(seen) == (6, 0)


def test_a_server_that_does_not_come_to_rest_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "SETTLE_S", 0.0)
    monkeypatch.setattr(score_module, "read_counters", lambda *_: CounterReading(served=1, gear=3, **NOTHING))
    with pytest.raises(ServerFaultError, match=r"idle server within 0\.01 s"):
        counters_at_rest("nowhere", "geared", timeout_s=0.01)


@pytest.mark.parametrize("source", [GLYPHS, DIGITS], ids=lambda source: source.name)
def test_no_row_that_is_sent_was_planned_on(source: OverloadSource) -> None:
    plan, test = (source.draw(part, 50) for part in ("plan", "test"))
    assert len(plan.images) == len(test.labels) == 50
    assert not set(plan.ids.tolist()) & set(test.ids.tolist())


def test_digits_have_a_plan_with_gears_and_waits_follow_the_wish(tmp_path: Path) -> None:
    folder, cache = tmp_path / "models", tmp_path / "recordings"
    setup = make_setup(folder, source=DIGITS, cache=cache, say=lambda _: None, raise_wait_us=5000)
    gears = setup.spec.gears
    assert gears is not None
    assert (gears.raise_wait_us, gears.lower_wait_us) == (5000, 1000)
    assert {"geared", "plain"} < {path.name for path in folder.iterdir()}


@dataclass(frozen=True)
class Short:
    """What a short run left; its figures, of a machine that is busy with tests, are of no interest."""

    folder: Path
    report: Path
    found: dict[str, Any]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Short:
    folder = tmp_path_factory.mktemp("overload")
    report = folder / "docs" / "OVERLOAD.md"
    command = ["overload", "--quick", "--output", str(folder / "out"), "--report", str(report), "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document = json.loads((folder / "out" / "overload.json").read_text())
    return Short(folder=folder, report=report, found={one["variant"]: one for one in document["results"]})


@pytest.mark.triton
@pytest.mark.alone
def test_a_short_run_measures_every_variant_and_writes_its_report(short: Short) -> None:
    assert set(short.found) == {variant.name for variant in VARIANTS}
    assert short.found["no_gears"]["geared"]["max"] == 0
    assert short.found["turning_away"]["answered"]["max"] < 1
    for one in short.found.values():
        assert 0.5 < one["accuracy"]["median"] <= 1
    assert "| 2 x capacity | gears |" in short.report.read_text()
    assert (short.report.parent / "plots" / "overload.png").is_file()


def test_a_quick_look_leaves_the_report_of_a_whole_run_alone(tmp_path: Path) -> None:
    assert report_path(None, output=tmp_path, quick=True) == tmp_path / "OVERLOAD.md"
    assert report_path(None, output=tmp_path, quick=False) == Path("perf/OVERLOAD.md")
    assert report_path(Path("mine.md"), output=tmp_path, quick=True) == Path("mine.md")


@pytest.mark.triton
@pytest.mark.alone
def test_twice_the_capacity_moves_the_gear(short: Short) -> None:
    assert short.found["gears"]["geared"]["max"] > 0
    # It began in the plan's own gear.
    assert short.found["gears"]["shifts"][0] > 0
