"""Results of a live run: one row per model and load, with medians and spread over the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from perf.harness.machine import machine_here


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One route at one concurrency.

    Args:
        route: model name.
        concurrency: requests in flight.
        requests_per_s: one figure per round.
        p50_ms: one figure per round.
        p99_ms: one figure per round.
    """

    route: str
    concurrency: int
    requests_per_s: tuple[float, ...]
    p50_ms: tuple[float, ...]
    p99_ms: tuple[float, ...]

    @property
    def spread(self) -> float:
        """(max - min) / median of requests/s over the rounds: how far to trust the cell."""
        return float((max(self.requests_per_s) - min(self.requests_per_s)) / np.median(self.requests_per_s))


def document_from_cells(cells: Sequence[Cell], *, triton_version: str) -> dict[str, Any]:
    """What is written to results.json."""
    return {
        "machine": machine_here(),
        "triton_version": triton_version,
        "cells": [{**asdict(cell), "spread": cell.spread} for cell in cells],
    }


def table_from_cells(cells: Sequence[Cell]) -> Table:
    """Medians, one line per route and concurrency."""
    table = Table(title="medians over rounds; spread is (max - min) / median of req/s", box=box.SIMPLE_HEAD)
    table.add_column("route", no_wrap=True)
    for name in ("in flight", "req/s", "spread", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        table.add_row(
            cell.route,
            str(cell.concurrency),
            f"{np.median(cell.requests_per_s):.0f}",
            f"{100 * cell.spread:.0f} %",
            f"{np.median(cell.p50_ms):.2f}",
            f"{np.median(cell.p99_ms):.2f}",
        )
    return table
