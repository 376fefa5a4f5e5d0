"""Results as files for programs: results.json, results.csv and verdict.json."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perf.harness.machine import BenchMachine
from perf.harness.machine import write_results as write_document
from perf.harness.summary import Summary
from perf.studies.bench.targets import TargetVerdict

LATENCIES = tuple(f"{part}p{percent}_ms" for part in ("", "easy_", "hard_") for percent in (50, 95, 99))


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything a run leaves.

    Args:
        kind: "quick" or "full".
        command: that repeats it.
        machine: it ran on.
        seconds: of each window.
        rounds: windows per cell.
        minutes: the run took.
        scenarios: title by name; a title says so where the exit mix is imposed.
        summaries: of every cell.
        verdicts: of every target.
        failures: cells that could not be measured, and why.
    """

    kind: str
    command: str
    machine: BenchMachine
    seconds: float
    rounds: int
    minutes: float
    scenarios: dict[str, str]
    summaries: Sequence[Summary]
    verdicts: Sequence[TargetVerdict]
    failures: dict[str, str] = field(default_factory=dict)

    def targets_as_json(self) -> list[dict[str, Any]]:
        """As verdict.json holds them; those of a busy machine say so."""
        rows = [one.as_json() for one in self.verdicts]
        if self.machine.is_busy:
            for row in rows:
                row["note"] = "; ".join(["the machine was busy, do not trust this", *filter(None, [row["note"]])])
        return rows

    def as_json(self) -> dict[str, Any]:
        """As results.json holds it."""
        return {
            "kind": self.kind,
            "command": self.command,
            "machine": self.machine.as_json(),
            "seconds": self.seconds,
            "rounds": self.rounds,
            "minutes": round(self.minutes, 2),
            "scenarios": self.scenarios,
            "cells": [row_from_summary(one) for one in self.summaries],
            "targets": self.targets_as_json(),
            "failures": self.failures,
        }


def row_from_summary(one: Summary) -> dict[str, Any]:
    """A cell as one flat row, the same columns for every cell."""
    cell, bound = one.cell, one.bound
    row: dict[str, Any] = {
        "scenario": cell.scenario,
        "route": cell.route,
        "title": one.title,
        "sender": cell.sender,
        "concurrency": cell.concurrency,
        "rate": cell.rate,
        "share_of_capacity": cell.share,
        "of_route": cell.of_route,
        "batch": cell.batch,
        "deferral": None if cell.earned else cell.deferral,
        "rounds": one.rounds,
        "repeated": one.repeated,
        "unstable": one.unstable,
        "reach_is_off": one.reach_is_off,
        "spread": one.spread,
        "requests_per_s": one.requests_per_s,
        "rows_per_s": one.rows_per_s,
        **{name: one.latency_ms.get(name) for name in LATENCIES},
        "reach": " ".join(f"{share:.4f}" for share in one.reach) if one.reach else None,
        "cpu_ms_per_request": 1000 * one.cpu_s_per_request,
        "client_cpu_ms_per_request": 1000 * one.client_cpu_s_per_request,
        "mean_batch": " ".join(f"{name}={value:.2f}" for name, value in one.mean_batch.items()),
        "resident_mib": one.resident_bytes / 2**20,
        "shm_mib": one.shm_bytes / 2**20,
        "send_lag_p50_ms": one.lag_ms[0] if one.lag_ms else None,
        "send_lag_p99_ms": one.lag_ms[1] if one.lag_ms else None,
        "failed": one.failed,
        "bound_requests_per_s": bound.requests_per_s if bound else None,
        "bound_by": bound.by if bound else None,
        "efficiency": one.efficiency,
    }
    return {name: _rounded(value) for name, value in row.items()}


def _rounded(value: Any) -> Any:
    """Figures to five digits; what is not a number in JSON becomes null."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def write_results(results: Results, folder: Path) -> list[Path]:
    """Writes results.json, results.csv and verdict.json and returns their paths."""
    document, verdict, table = folder / "results.json", folder / "verdict.json", folder / "results.csv"
    write_document(results.as_json(), document)
    write_verdicts(results, verdict)
    rows = [row_from_summary(one) for one in results.summaries]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["scenario"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return [document, table, verdict]


def write_verdicts(results: Results, path: Path) -> None:
    """Writes verdict.json: target, needed, measured, met and note of each."""
    path.write_text(json.dumps(results.targets_as_json(), indent=2) + "\n", encoding="utf-8")
