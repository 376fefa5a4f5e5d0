import json
from pathlib import Path

import numpy as np
import pytest
import typer

from orchestrator.commandline import run_program
from orchestrator.planner.queueing import QueueStage
from orchestrator.spec.timing import json_from_timing
from tests.cli.planning import plan, write_made
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
    assert run_program(typer.main.get_command(app), "python -m perf", words) == 0
    slow, fast = json.loads(capsys.readouterr().out)["rates"]
    assert slow["servers"] == 1
    assert fast["servers"] > 1
    assert fast["simulated_rows_per_s"] == pytest.approx(20000, rel=0.15)
    assert slow["simulated_p50_ms"] == pytest.approx(slow["p50_ms"], rel=0.25)


def test_every_row_is_answered_once_and_no_batch_is_too_large() -> None:
    from perf.studies.scaling.simulation import simulated  # needs simpy

    stage = QueueStage(ms=np.append(0.0, np.full(4, 1.0)), reach=1.0)
    # Far more comes than the 4 rows a millisecond that it can answer.
    seen = simulated([stage], per_ms=100.0, cores=1, rows=1000)
    assert len(seen.times_ms) == 900
    assert seen.times_ms.max() == pytest.approx(1000 / 4, rel=0.05)
    assert seen.batches[0] == pytest.approx(4, rel=0.05)
