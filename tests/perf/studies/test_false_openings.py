"""How often breakers open for independent failures: what is counted, and that it can be counted again."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from perf.studies.false_openings import CALLS_PER_S, FAILED_SHARES, FalseOpenings, false_openings, measured


def cell(failed_share: float, calls_per_s: int, *, calls: int = 20_000, seed: int = 0) -> FalseOpenings:
    rng = np.random.default_rng(seed)
    return measured(failed_share, calls_per_s, calls=calls, starts=20, rng=rng)


def test_the_same_seed_gives_the_same_figures() -> None:
    assert cell(0.2, 1) == cell(0.2, 1)
    assert cell(0.2, 1) != cell(0.2, 1, seed=1)


def test_members_that_never_fail_open_nothing_and_those_that_fail_mostly_open_it_at_once() -> None:
    never, mostly = cell(0.0, 10), cell(0.9, 10)
    assert (never.openings, never.per_hour, never.open_share, never.starts_opened) == (0, 0, 0, 0)
    assert (never.per_hour_ci95[0], mostly.starts_opened) == (0, 1)
    assert mostly.open_share > 0.8
    low, high = mostly.per_hour_ci95
    assert low < mostly.per_hour < high


def test_a_tenth_of_failures_at_a_high_rate_opens_nothing_but_at_one_call_a_second_it_may() -> None:
    assert cell(0.1, 1000, calls=200_000).openings == 0
    few = cell(0.2, 1, calls=100_000)
    assert 5 < few.per_hour < 20
    assert few.open_share == pytest.approx(few.per_hour * 1.25 / 3600, rel=0.1), "a second, and one more in five"


def test_the_command_writes_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perf.studies.false_openings._HOUR_S", 1.0)
    app = typer.Typer()
    app.command()(false_openings)
    command = ["--calls", "1000", "--starts", "10", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "false_openings.json").read_text())
    assert len(found) == len(FAILED_SHARES) * len(CALLS_PER_S)
