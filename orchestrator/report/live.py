"""What the sliders of the page need: scores, and which answers are good, row by row and small enough to travel."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.report.data import Report

# Beyond this many rows the page would grow by megabytes and the numbers by a digit nobody needs.
MOST_ROWS = 20_000


def live_from_report(report: Report) -> dict[str, Any]:
    """JSON values for the page's script.

    Scores travel as the float32 numbers the exit rule compares, not rounded: a row whose score equals a threshold
    leaves on the page because it leaves in the core. Typed arrays are little-endian, base64; flags are one bit a
    row, the lowest bit first.
    """
    ladder = report.ladder
    rows = sampled_rows(report.rows)
    stages = []
    for stage in range(len(report.stages)):
        entry: dict[str, Any] = {
            "cost": float(ladder.cost[stage]),
            "good": _text(np.packbits(report.good[stage][rows], bitorder="little")),
        }
        if stage < ladder.last:
            grid = ladder.grid(stage)
            own, low = ladder.thresholds[stage], ladder.lows[stage]
            entry |= {
                "score": _text(ladder.score[stage][rows].astype("<f4")),
                "grid": _text(grid.astype("<f4")),
                "own": int(np.searchsorted(grid, np.float32(np.inf if own is None else own))),
                "low": None if low is None else float(np.float32(low)),
            }
        stages.append(entry)
    return {"rows": len(rows), "unit": report.spec.cost_unit, "stages": stages}


def sampled_rows(rows: int) -> npt.NDArray[np.intp]:
    """The rows that travel: all, or an even draw from a fixed seed, ascending."""
    if rows <= MOST_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, MOST_ROWS, replace=False))


def _text(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
