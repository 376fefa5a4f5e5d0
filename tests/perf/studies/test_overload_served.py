"""The whole command, short: figures of a machine that is busy with tests are of no interest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perf.__main__ import app
from perf.studies.overload.command import report_path
from perf.studies.overload.run import VARIANTS

pytestmark = [pytest.mark.triton, pytest.mark.alone]


@dataclass(frozen=True)
class Short:
    """What a short run left."""

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


def test_twice_the_capacity_moves_the_gear(short: Short) -> None:
    assert short.found["gears"]["geared"]["max"] > 0
    # It began in the plan's own gear.
    assert short.found["gears"]["shifts"][0] > 0
