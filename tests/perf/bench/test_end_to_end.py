from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.errors import DataError
from perf.__main__ import app
from perf.bench.leak import leak_percent_from
from perf.bench.scenarios import tools_of
from perf.bench.served import rows_in_file


def test_files_hold_fewer_rows_where_rows_are_large() -> None:
    assert [rows_in_file(size) for size in (256, 40_000, 3 * 300 * 300)] == [997, 419, 101]


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_a_quick_run_of_short_windows_leaves_results_verdict_and_report(tmp_path: Path) -> None:
    # A second is too short for perf_analyzer's three measurements where the machine is busy.
    load = ["--seconds", "2", "--rounds", "1", "--only", "*/[cp][18]*"]
    words = ["run", "--scenario", "digits", *load, "--output", str(tmp_path)]
    result = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "RESULTS.md")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "results.json").read_text())
    cells = {(one["route"], one["sender"], one["deferral"], one["concurrency"]): one for one in document["cells"]}
    ours = cells["committee", "closed", 0.15, 16]
    assert ours["requests_per_s"] > 50
    assert 0 < ours["easy_p50_ms"] < ours["hard_p99_ms"]
    assert float(ours["reach"].split()[-1]) == pytest.approx(0.15, abs=0.05)
    assert 0 < ours["efficiency"] < 1.5  # of the processor: no member was measured
    assert ours["cpu_ms_per_request"] > 0
    assert ours["resident_mib"] > 50
    open_loop = cells["committee", "poisson", 0.15, None]
    assert open_loop["requests_per_s"] == pytest.approx(open_loop["rate"], rel=0.5)
    assert open_loop["send_lag_p50_ms"] >= 0
    assert len(json.loads((tmp_path / "verdict.json").read_text())) == 12
    assert "Poisson, 80 % of tutorial" in (tmp_path / "RESULTS.md").read_text()

    again = CliRunner().invoke(app, [*words, "--seed", "1", "--resume"])
    assert isinstance(again.exception, DataError)
    assert "differs in seed" in str(again.exception)


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_the_glyphs_are_asked_in_large_requests_at_their_own_exits_and_held_against_their_promise(
    tmp_path: Path,
) -> None:
    words = ["run", "--scenario", "glyphs", "--rounds", "1", "--seconds", "3", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    cells = {one["route"]: one for one in json.loads((tmp_path / "results.json").read_text())["cells"]}
    ours, largest = cells["committee"], cells["member_3"]
    assert ours["batch"] == largest["batch"] == 32
    assert ours["deferral"] is None
    reach = [float(share) for share in ours["reach"].split()]
    # The plan was chosen to let most rows go early; what goes on is its own doing.
    assert 1 == reach[0] > reach[1] > reach[-1] > 0
    verdicts = json.loads((tmp_path / "verdict.json").read_text())
    (glyphs,) = [one for one in verdicts if one["target"].startswith("glyphs")]
    assert glyphs["measured"] > 0.2
    assert ours["requests_per_s"] > largest["requests_per_s"]


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_a_short_leak_run_says_how_far_memory_grew(tmp_path: Path) -> None:
    words = ["leak", "--scenario", "digits", "--requests", "1000", "--seconds", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "resident memory" in result.output
    document = json.loads((tmp_path / "leak.json").read_text())
    assert document["requests"] >= 1000 > document["warm_requests"] * 0
    assert document["warm_requests"] < document["requests"]
    assert leak_percent_from(tmp_path / "leak.json") == max(document["resident_percent"], document["shm_percent"])


def test_no_leak_run_is_no_figure(tmp_path: Path) -> None:
    assert leak_percent_from(tmp_path / "leak.json") is None


def test_an_unknown_scenario_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="digits"):
        tools_of("cats")
