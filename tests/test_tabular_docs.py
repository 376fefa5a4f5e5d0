"""docs/tabular.md: its figures are those of the command that writes them, and its commands run as they stand."""

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.rows.digits import digits_split
from perf.studies.tables import COLUMNS, block_from_figures, csv_from_split, features
from tests.pages import ROOT, blocks, on_free_ports, run_commands, write_programs

PAGE = (ROOT / "docs/tabular.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_committed_figures() -> None:
    figures = json.loads((ROOT / "docs/tabular.json").read_text(encoding="utf-8"))
    assert block_from_figures(figures) in PAGE
    assert figures["rows"] == len(digits_split("test").ids)
    for part in ("train", "plan", "test"):
        assert str(len(digits_split(part).ids)) in PAGE


def test_a_part_as_csv_is_what_was_there() -> None:
    split = digits_split("plan")
    lines = [line.split(",") for line in csv_from_split(split).splitlines()]
    assert lines[0] == ["id", *COLUMNS, "label"]
    read = np.array(lines[1:], int)
    np.testing.assert_array_equal(read[:, 0], split.ids)
    np.testing.assert_array_equal(read[:, 1:-1], features(split))
    np.testing.assert_array_equal(read[:, -1], split.labels)


@pytest.mark.slow  # it trains, exports and measures: minutes
@pytest.mark.export
@pytest.mark.triton
@pytest.mark.timeout(600)
def test_every_command_of_the_page_runs_and_the_figures_can_be_written(tmp_path: Path) -> None:
    import pyarrow.parquet

    write_programs(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/tabular.md").write_text(PAGE, encoding="utf-8")
    written = ".venv/bin/python -m perf tables -o build/tables --page docs/tabular.md"
    assert written.removeprefix(".venv/bin/") in PAGE
    commands = "\n".join(blocks(PAGE)).splitlines()
    run_commands(tmp_path, ["set -euo pipefail", *on_free_ports(commands), written], timeout_s=560)
    figures = json.loads((tmp_path / "docs/tabular.json").read_text())
    # Training takes other ways on other machines; a plan that loses more than it may has no certificate.
    assert figures["plans"][0]["stages"] == [["boosted"], ["network"]]
    assert all(plan["accuracy"] > 0.93 for plan in figures["plans"])
    answers = pyarrow.parquet.read_table(tmp_path / "build/tables/answers.parquet").to_pydict()
    assert np.mean(np.array(answers["label"]) == np.array(answers["input_label"], int)) > 0.93
