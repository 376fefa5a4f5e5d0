from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import DataError
from perf.harness.cells import Cell
from perf.harness.windows import Journal, reach_off
from perf.load.closed import Window
from tests.perf.harness.builders import record

CELL = Cell(scenario="three_cnn", route="committee", concurrency=16)


def test_records_survive_an_interruption_within_a_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {"seed": 1}, resume=False)
    kept = [record(CELL, round_number=number, lag_p50_ms=0.1) for number in (1, 2)]
    for one in kept:
        journal.add(one)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert Journal(path, {"seed": 1}, resume=True).records == kept[:1]
    for cut in (20, 1):
        path.write_bytes(whole[:-cut])
        resumed = Journal(path, {"seed": 1}, resume=True)
        resumed.add(kept[1])
        assert Journal(path, {"seed": 1}, resume=True).records == kept
    path.write_bytes(whole)
    assert Journal(path, {"seed": 1}, resume=True).records == kept


def test_another_runs_records_are_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {"seed": 1, "seconds": 10.0, "cells": ("a",)}, resume=False)
    with pytest.raises(DataError, match=r"differs in cells, seconds.*without `resume`"):
        Journal(path, {"seed": 1, "seconds": 18.0, "cells": ("b",)}, resume=True)


def test_a_file_that_is_no_journal_gives_one_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    for text in ("", "nonsense\n", "[]\n", '{"seed": 1}\n{"key": 3}\n'):
        path.write_text(text)
        with pytest.raises(DataError, match="without `resume`"):
            Journal(path, {"seed": 1}, resume=True)


def test_a_fresh_run_forgets_the_last_one_and_a_resumed_one_may_be_the_first(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {}, resume=False).add(record(CELL))
    assert Journal(path, {}, resume=False).of(CELL.key) == []
    assert Journal(tmp_path / "new.jsonl", {}, resume=True).records == []


def test_of_each_round_the_last_attempt_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", {}, resume=False)
    for number, attempt, rate in ((2, 0, 2.0), (1, 0, 1.0), (2, 1, 3.0)):
        journal.add(record(CELL, round_number=number, attempt=attempt, requests_per_s=rate))
    assert [one["requests_per_s"] for one in journal.of(CELL.key)] == [1.0, 3.0]


def test_reach_is_off_by_the_worst_stage() -> None:
    window = Window(latency_ms=np.ones(10), deferred=None, exits=np.array([6, 2, 2]), seconds=1.0, batch=1)
    reach, off = reach_off(window, (1.0, 0.3, 0.15))
    assert reach == pytest.approx((1.0, 0.4, 0.2))
    assert off == pytest.approx(0.1)
