"""The whole command, short: figures of a machine that is busy with tests are of no interest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perf.__main__ import app


@pytest.mark.triton
def test_a_short_run_measures_every_variant_and_writes_its_report(tmp_path: Path) -> None:
    report = tmp_path / "docs" / "OVERLOAD.md"
    command = ["overload", "--quick", "--output", str(tmp_path / "out"), "--report", str(report), "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "overload.json").read_text())
    assert [one["variant"] for one in document["results"]] != []
    found = {one["variant"]: one for one in document["results"]}
    assert set(found) == {"gears", "no_gears", "turning_away"}
    assert found["no_gears"]["geared"]["max"] == 0
    assert found["turning_away"]["answered"]["max"] < 1
    for one in found.values():
        assert 0.5 < one["accuracy"]["median"] <= 1
    assert "| 2 x capacity | gears |" in report.read_text()
    assert (report.parent / "plots" / "overload.png").is_file()
