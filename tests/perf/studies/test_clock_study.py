import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from perf.__main__ import app
from perf.studies.clock import command
from perf.studies.clock.command import HERE, is_disturbed, md_from_results, outcome_of
from perf.studies.clock.run import OtherWork, mixed_rows, quietest


def point(ratio: float, **changes: Any) -> dict[str, Any]:
    return {
        "committee": "digits",
        "load": "batches of 8, one at a time",
        "batch": 8,
        "rate": None,
        "stages": [["small"], ["large", "other"]],
        "predicted_reach": [1.0, 0.125],
        "predicted_ms": 2.0,
        "busiest": None,
        "passes_ms": [1.9 * ratio, 2 * ratio, 2.1 * ratio],
        "measured": {"ms": 2 * ratio, "rival_ms": 5 * ratio, "others_cores": 0.25},
        "rival": "large",
        "rival_ratio": 1.02,
        "ratio": ratio,
        **changes,
    }


def test_rows_that_are_asked_about_exit_as_all_do() -> None:
    stages = np.array([0] * 900 + [1] * 80 + [2] * 20)
    rng = np.random.default_rng(0)
    for count in (50, 400, 2500):
        found = mixed_rows(stages, count, rng)
        counts = np.bincount(stages[found], minlength=3) / count
        assert len(found) == count
        assert counts == pytest.approx([0.9, 0.08, 0.02], abs=1 / count + 1e-9)
        assert np.any(np.diff(stages[found]) < 0), "in any order"


def test_passes_that_other_work_disturbed_do_not_count() -> None:
    passes = [{"ms": float(place), "others_cores": used} for place, used in enumerate((0.5, 0.1, 0.0, 2.0, 0.2))]
    assert [one["ms"] for one in quietest(passes)] == [2, 1, 4]


def test_other_work_is_neither_ours_nor_the_server_s() -> None:
    busy = "import time\nend = time.time() + 30\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", busy], start_new_session=True) as process:
        try:
            time.sleep(0.3)
            counted, seen = OtherWork(0), OtherWork(process.pid)
            time.sleep(0.7)
            # It has at least a part of a core whatever else runs, which both see.
            assert counted.cores() > seen.cores() + 0.1
        finally:
            process.kill()


def test_the_worst_ratio_is_the_farthest_from_1_either_way() -> None:
    found = outcome_of([point(1.0), point(1.1), point(1.4), point(0.6)])
    assert (found["within"], found["share"], found["worst"]["ratio"]) == (2, 0.5, 0.6)


def results() -> dict[str, Any]:
    machine = {"cpu": "a processor", "platform": "Linux", "python": "3.11", "cores_in_use": 0.1, "commit": "abc"}
    rate = point(
        1.3,
        rival_ratio=None,
        batch=None,
        rate=50.0,
        load="50 rows/s on one server",
        measured={"ms": 2.6, "others_cores": 0.5},
    )
    line = {
        "batch": 1,
        "target": 2.0,
        "note": "",
        "one": {"plan": "b1, then b5"},
        "other": {"plan": "b5"},
        "difference": 0.001,
        "difference_ci95": [-0.001, 0.003],
        "ms": {"median": 0.2, "min": 0.1, "max": 0.3},
        "predicted_ms": 0.19,
        "members_ms": 0.1,
        "ratio": 1.05,
        "other_ms": {"median": 0.38},
        "other_ratio": 1.01,
        "times_as_fast": {"median": 1.9, "min": 1.8, "max": 2.0},
    }
    without = {**line, "batch": 32, "one": None, "note": "none is ahead", "times_as_fast": None}
    parts = {
        "digits": {"machine": machine, "passes": 3, "points": [point(1.0), rate]},
        HERE: {"loads": [line, without]},
    }
    return {"format": 1, "parts": parts}


def test_the_page_says_how_many_are_kept_and_which_is_the_worst() -> None:
    page = md_from_results(results(), command="python -m perf clock")
    assert "All: 1 of 2 plans within 0.9 to 1.1 (50%; goal 90%, not met); worst 1.30, digits, 50 rows/s" in page
    assert "Requests one at a time: 1 of 1 plans" in page
    assert "| small, then large + other | 100 / 12.5 | 2 | 2 | 1.9 to 2.1 | 1.00 | 2.50 (1.02) |" in page
    assert "| 0.19, 0.1 | 0.2 (1.05) | 0.38 (1.01) | 1.90 (1.80 to 2.00) | 2, not met |" in page
    assert "none is ahead" in page
    assert "**The machine was not quiet** while these were measured: digits." in page


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(name: str, *_: object) -> dict[str, Any]:
        asked.append(name)
        if name == "glyphs" and len(asked) == 2:
            raise KeyboardInterrupt
        return {
            **results()["parts"]["digits"],
            "points": [point(1.0, committee=name, measured={"ms": 2.0, "rival_ms": 5.0, "others_cores": 0.1})],
        }

    monkeypatch.setattr(command, "_measured", measured)
    words = ["clock", "--quick", "--only", "digits", "--only", "glyphs", "--output", str(tmp_path), "--json"]
    assert CliRunner().invoke(app, words).exit_code != 0
    said = CliRunner().invoke(app, words)
    assert asked == ["digits", "glyphs", "glyphs"]
    assert list(json.loads(said.stdout)["parts"]) == ["digits", "glyphs"]
    assert {path.name for path in tmp_path.glob("clock.*")} == {"clock.md", "clock.json", "clock.png"}
    CliRunner().invoke(app, [*words, "--again"])
    assert asked[3:] == ["digits", "glyphs"]


def test_a_committee_that_other_work_disturbed_is_measured_anew() -> None:
    part = results()["parts"]["digits"]
    quiet = {**part, "points": [point(1.0, measured={"others_cores": 0.1})]}
    assert not is_disturbed(quiet)
    assert is_disturbed(part), "half a core at a rate"
    assert is_disturbed({**quiet, "machine": {"cores_in_use": 1.0}})
    assert not is_disturbed(results()["parts"][HERE]), "its times are processor time"
