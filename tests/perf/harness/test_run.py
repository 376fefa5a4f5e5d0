import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from perf.harness.machine import bench_machine, code_hash, cores_in_use_now
from perf.harness.report import table_from_cells, table_from_targets
from perf.harness.run import Results
from perf.studies.bench.report import report_from_results, write_report
from perf.studies.bench.targets import verdicts
from tests.perf.harness.builders import cell_row, frame_of

MACHINE = bench_machine(triton="2.51.0", perf_analyzer="2.45.0", cores_in_use=0.1)


def results_of(**changes: object) -> Results:
    cells = frame_of(
        cell_row("committee", requests_per_s=400.0, bound=500.0),
        cell_row("tutorial", requests_per_s=200.0, unstable=True, reach_is_off=True, failed=3),
        cell_row("committee", share=0.8, of_route="tutorial", rate=160.0),
        cell_row("committee", deferral=1.0, bound=float("inf")),
    )
    given = {
        "kind": "quick",
        "command": "python -m perf run",
        "machine": MACHINE,
        "seconds": 10.0,
        "rounds": 3,
        "minutes": 7.0,
        "scenarios": {"three_cnn": "Three CNNs"},
        "cells": cells,
        "targets": verdicts(cells, members=3, predicted_speedup=None, leak=None),
        "failures": {"three_cnn/onefile/c16": "no such model"},
        **changes,
    }
    return Results(**given)


def test_results_read_back_as_json_and_as_csv(tmp_path: Path) -> None:
    results_of().write(tmp_path)
    document = json.loads((tmp_path / "results.json").read_text())
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["route"] for row in rows] == [cell["route"] for cell in document["cells"]]
    assert list(rows[0]) == list(document["cells"][0])
    assert document["cells"][0]["efficiency"] == pytest.approx(0.8)
    assert float(rows[0]["requests_per_s"]) == 400.0
    assert document["machine"]["cores"] >= 1


def test_files_hold_no_figure_that_json_does_not_know(tmp_path: Path) -> None:
    results_of().write(tmp_path)

    def refuse(text: str) -> None:
        raise AssertionError(text)

    for name in ("results.json", "verdict.json"):
        json.loads((tmp_path / name).read_text(), parse_constant=refuse)
    assert {tuple(one) for one in json.loads((tmp_path / "verdict.json").read_text())} == {
        ("target", "needed", "measured", "interval", "met", "note")
    }


def test_a_priority_other_than_the_usual_one_is_named() -> None:
    assert "priority" not in replace(MACHINE, priority=0).words
    assert replace(MACHINE, priority=-15).words.endswith("priority -15 (nice)")


def test_the_targets_of_a_busy_machine_say_so(tmp_path: Path) -> None:
    busy = replace(MACHINE, cores_in_use=float(MACHINE.cores))
    results_of(machine=busy).write(tmp_path)
    notes = [one["note"] for one in json.loads((tmp_path / "verdict.json").read_text())]
    assert all(note.startswith("the machine was busy") for note in notes)


def test_the_report_names_machine_command_targets_cells_and_what_is_wrong_with_them() -> None:
    text = report_from_results(results_of(), pictures=["plots/a.png"])
    for words in (
        "`python -m perf run`", MACHINE.words, "best rival, 16 in flight | at least 1.05 | 2 |  | not judged |",
        "unstable, exit mix off by over 1 point, 3 requests failed", "send lag p50 0.1, p99 2", "80 % (large)",
        "`three_cnn/onefile/c16`: no such model", "![a](plots/a.png)",
    ):  # fmt: skip
        assert words in text
    assert "busy" not in text


def test_a_busy_machine_is_confessed() -> None:
    busy = replace(MACHINE, cores_in_use=3.0)
    assert "The machine was busy" in report_from_results(results_of(machine=busy), pictures=[])


def test_tables_have_a_line_per_cell_and_per_target() -> None:
    results = results_of()
    assert table_from_cells(results.cells).row_count == 4
    assert table_from_targets(results.targets).row_count == len(results.targets)


@pytest.mark.slow
def test_plots_lie_beside_the_report_and_repeat_byte_for_byte(tmp_path: Path) -> None:
    written = write_report(results_of(), tmp_path / "RESULTS.md")
    names = sorted(path.name for path in written)
    assert "three_cnn-throughput.png" in names
    assert "three_cnn-tails.png" in names
    first = {path: path.read_bytes() for path in written}
    write_report(results_of(), tmp_path / "RESULTS.md")
    assert {path: path.read_bytes() for path in written} == first
    assert all(
        f"(plots/{name})" in (tmp_path / "RESULTS.md").read_text() for name in names if name.endswith("png")
    )


def test_a_changed_runtime_is_other_code_and_a_changed_document_is_not(tmp_path: Path) -> None:
    model = tmp_path / "orchestrator" / "bls" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("one")
    before = code_hash(tmp_path)
    (tmp_path / "README.md").write_text("news")
    assert code_hash(tmp_path) == before
    model.write_text("two")
    assert code_hash(tmp_path) != before


def test_a_busy_processor_is_seen_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            assert cores_in_use_now(0.5) > 0.3
        finally:
            busy.kill()
