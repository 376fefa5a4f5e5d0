from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.errors import CommitteeError, DataError
from perf.__main__ import app
from perf.harness.cells import BASE_DEFERRAL
from perf.harness.serving import EARNED_ROWS, Inputs, rows_in_file, tools_of
from perf.load.inputs import next_prime
from perf.routes.recipes.trained import GLYPHS_POOL
from perf.routes.spec import BenchRows, Scenario
from perf.studies.bench.cells import default_scenarios
from perf.studies.leak import growth_from


def test_files_hold_fewer_rows_where_rows_are_large() -> None:
    assert [rows_in_file(size) for size in (256, 40_000, 3 * 300 * 300)] == [997, 419, 101]


def test_an_earned_file_is_nearly_the_whole_pool_and_is_held_against_its_own_mix(tmp_path: Path) -> None:
    asked: list[tuple[object, int]] = []

    def rows_for(*, reach: object, rows: int, seed: int) -> BenchRows:
        asked.append((reach, rows))
        exits = np.random.default_rng(seed).choice(2, rows, p=[0.6, 0.4]).astype(np.int32)
        return BenchRows(rows=np.zeros((rows, 1, 32, 32), np.uint8), exit_stage=exits)

    scenario = Scenario(name="glyphs", title="", members=("small", "large"), earned=True)
    inputs = Inputs(scenario, rows_for, folder=tmp_path, input_name="image", seed=0)
    file = inputs.at(BASE_DEFERRAL)
    assert [reach for reach, _ in asked] == [None, None]
    assert file.reach == file.rows.reach(2)
    assert file.reach[1] == pytest.approx(0.4, abs=0.05)
    assert file.path.name == "glyphs-earned.json"
    assert len(json.loads(file.path.read_text())["data"]) == EARNED_ROWS < GLYPHS_POOL
    assert next_prime(EARNED_ROWS) == EARNED_ROWS
    assert file.path.stat().st_size < 10 * 2**20


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
    words = ["run", "--scenario", "glyphs", "--rounds", "1", "--seconds", "2", "--output", str(tmp_path)]
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
    assert ours["cpu_ms_per_request"] < largest["cpu_ms_per_request"]
    report = (tmp_path / "RESULTS.md").read_text()
    assert "64 in flight, batch 32, earned mix" in report
    assert "by the server's processor time per request it is" in report


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_a_short_leak_run_says_how_far_memory_grew(tmp_path: Path) -> None:
    words = ["leak", "--scenario", "digits", "--requests", "1000", "--seconds", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "resident memory" in result.output
    document = json.loads((tmp_path / "leak.json").read_text())
    assert document["requests"] >= 1000
    assert 0 < document["warm_requests"] < document["requests"]
    own = document["model"]
    assert document["own_percent"] == pytest.approx(
        100 * document["grown_bytes"][own] / document["warm_bytes"][own]
    )
    assert {"server", "digits_small", "digits_large"} <= set(document["grown_bytes"])
    # Of the digits, and of too few requests: not what the target is about.
    assert growth_from(tmp_path / "leak.json") is None


def test_no_leak_run_is_no_figure(tmp_path: Path) -> None:
    assert growth_from(tmp_path / "leak.json") is None


def test_a_full_run_measures_the_glyphs_too() -> None:
    assert default_scenarios(full=True) == ("three_cnn", "efficientnet", "glyphs")
    assert default_scenarios(full=False) == ("three_cnn",)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "--scenario", "digits", "--scenario", "nope"], "got 'nope', expected one of three_cnn"),
        (["leak", "--scenario", "digits", "--route", "nope"], "got 'nope', expected one of member_0"),
        (
            ["leak", "--scenario", "digits", "--route", "client_sync"],
            "got 'client_sync', expected one of member_0",
        ),
    ],
)
def test_what_does_not_exist_is_said_before_anything_is_started(
    tmp_path: Path, words: list[str], text: str
) -> None:
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path)])
    assert isinstance(result.exception, CommitteeError)
    assert text in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scenario_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="digits"):
        tools_of("cats")
