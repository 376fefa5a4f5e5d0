from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.errors import DataError
from perf.__main__ import app


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_a_small_run_exports_serves_loads_and_reports_and_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ["gpu", "--small", "--provider", "cpu", "--family", "vit", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["small"] is True
    assert document["precision"] == "fp16"
    assert document["device"]["active"] == ["CPUExecutionProvider"]
    (comparison,) = document["comparisons"]
    assert comparison["exit_mix"] == "imposed"
    assert comparison["measured_reach"] == pytest.approx([1.0, 0.15], abs=0.03)
    assert comparison["online_speedup"] > 0
    assert comparison["offline_speedup"] > 0
    assert comparison["macs_speedup"] > comparison["alone_speedup"] > 1
    assert comparison["paper_speedup"] is None
    assert len(document["cells"]) == 6
    assert not document["failures"]
    with (tmp_path / "alone.csv").open() as file:
        alone = list(csv.DictReader(file))
    assert {(one["member"], one["batch"]) for one in alone} == {
        (f"tiny_vit_{letter}_fp16", batch) for letter in "ab" for batch in ("4", "8")
    }
    text = (tmp_path / "GPU.md").read_text()
    assert "toy's size" in text
    assert "| tiny_vit_a -> tiny_vit_b | 100.0 %, 15.0 % |" in text
    assert all((tmp_path / "plots" / f"gpu-{name}.png").stat().st_size > 5000 for name in ("alone", "speedups"))

    journal = tmp_path / "full-tiny_vit.jsonl"
    before = journal.read_text()
    assert json.loads(before.splitlines()[1])["requests"] > 0
    other = CliRunner().invoke(app, [*words, "--seconds", "3", "--resume"])
    assert isinstance(other.exception, DataError)
    assert "differs in seconds" in str(other.exception)
    assert journal.read_text() == before
