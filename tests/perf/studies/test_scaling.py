import json
from pathlib import Path

import numpy as np
import pytest
import typer

from orchestrator.commandline import run_program
from orchestrator.planner.queueing import QueueStage
from orchestrator.spec.timing import json_from_timing
from perf.routes.recipes import RECIPES
from perf.studies.scaling.served import full_per_ms, table_of
from tests.cli.planning import plan, write_made
from tests.perf.routes.tiny import TINY
from tests.planner.test_clock import timing_of

pytest.importorskip("simpy", reason="comes with the extra `perf`")


def test_every_rate_has_its_servers_and_a_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from perf.__main__ import app  # imports every study

    timing, output = tmp_path / "timing.json", tmp_path / "cascade.json"
    timing.write_text(json_from_timing(timing_of()), encoding="utf-8")
    goal = ("--reference", "c", "--epsilon", "0.01", "--no-certify", "--calibrate", "off")
    records = write_made(tmp_path / "made.npz", rows=900)
    assert plan(records, *goal, "--timing", timing, "--batch", 8, "-o", output) == 0
    capsys.readouterr()
    words = ["scaling", str(output), "--timing", str(timing), "--rates", "10,20000", "--rows", "2000", "--json"]
    words += ["--figures", str(tmp_path / "figures")]
    assert run_program(typer.main.get_command(app), "python -m perf", words) == 0
    slow, fast = json.loads(capsys.readouterr().out)["rates"]
    assert slow["servers"] == 1
    assert fast["servers"] > 1
    assert fast["simulated_rows_per_s"] == pytest.approx(20000, rel=0.15)
    assert slow["simulated_p50_ms"] == pytest.approx(slow["p50_ms"], rel=0.25)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "scaling-cores.png",
        "scaling-parts.png",
    ]


def test_every_row_is_answered_once_and_no_batch_is_too_large() -> None:
    from perf.studies.scaling.simulation import simulated  # needs simpy

    stage = QueueStage(ms=np.append(0.0, np.full(4, 1.0)), reach=1.0)
    # Far more comes than the 4 rows a millisecond that it can answer.
    seen = simulated([stage], per_ms=100.0, cores=1, rows=1000)
    assert len(seen.times_ms) == 900
    assert seen.times_ms.max() == pytest.approx(1000 / 4, rel=0.05)
    assert seen.batches[0] == pytest.approx(4, rel=0.05)


def test_a_server_is_full_when_its_busiest_stage_or_its_cores_are() -> None:
    def stage(ms: float, reach: float) -> QueueStage:
        return QueueStage(ms=np.array([0.0, ms]), reach=reach)

    stages = [stage(1.0, 1.0), stage(6.0, 0.5)]
    # The second stage takes 3 ms of an instance for every row that comes, and both together 4 ms of the cores.
    assert full_per_ms(stages, cores=4) == pytest.approx(1 / 3)
    assert full_per_ms(stages, cores=1) == pytest.approx(1 / 4)


def test_the_table_has_what_was_measured_and_predicted_and_their_ratio() -> None:
    found = [
        {"load": None, "rate": 450.0, "predicted_rate": 500.0},
        {"load": 0.5, "rate": 250.0, "predicted_rate": 250.0, "p50_ms": 3.0, "predicted_p50_ms": 2.0,
         "p99_ms": 40.0, "predicted_p99_ms": 50.0},
    ]  # fmt: skip
    assert table_of(found)[2:] == [
        "| closed loop, 64 in flight | 450 | 500 | 0.9 |  |  |  |  |  |  |",
        "| 50 % | 250 | 250 | 1 | 3 | 2 | 1.5 | 40 | 50 | 0.8 |",
    ]


@pytest.mark.triton
@pytest.mark.slow  # half a minute of load
@pytest.mark.timeout(300)
def test_a_served_cascade_is_held_against_its_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from perf.__main__ import app  # imports every study

    monkeypatch.setitem(RECIPES, "three_cnn", TINY)
    words = ["size", "--seconds", "2", "--rounds", "1", "--output", str(tmp_path), "--json"]
    assert run_program(typer.main.get_command(app), "python -m perf", words) == 0
    closed, *opened = json.loads(capsys.readouterr().out)["loads"]
    assert closed["rate"] > 50
    assert [one["load"] for one in opened] == [0.2, 0.5, 0.8]
    for one in opened:
        assert one["rate"] == pytest.approx(one["predicted_rate"], rel=0.3)
        assert 0 < one["predicted_p50_ms"] < one["predicted_p99_ms"]
    assert json.loads((tmp_path / "size.json").read_text())["loads"] == [closed, *opened]
