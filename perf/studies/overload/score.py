"""What a load came to: how many were served in time, and how many of those rightly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.spec.answer import DEADLINE, GEARED
from perf.studies.overload.send import Sent
from perf.studies.overload.watch import Pressure

FIGURES = (
    "in_time", "answered", "accuracy", "good", "p50_ms", "p99_ms", "cut", "geared", "lag_p99_ms", "queue_ms",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Score:
    """One round of one variant; shares are of what was sent, from 0 to 1.

    Args:
        in_time: requests answered within the deadline.
        answered: requests answered at all.
        accuracy: of the rows of answered requests, how many are right.
        good: rows answered in time and right.
        p50_ms, p99_ms: of answered requests, from the moment they were due; None where there are none.
        cut: of answered rows, those that had to be answered at their deadline.
        geared: of answered rows, those a cheaper gear let out.
        exits: of answered rows, by stage.
        status: answered rows by the bits they carry, 0 for none.
        lag_p99_ms: how late our own client sent; a large one makes the figures worthless.
        queue_ms: mean wait in Triton's queue in front of the cascade, of requests that were served.
        shifts: of the gear, to a cheaper one and back.
    """

    in_time: float
    answered: float
    accuracy: float
    good: float
    p50_ms: float | None
    p99_ms: float | None
    cut: float
    geared: float
    exits: tuple[float, ...]
    status: dict[int, int]
    lag_p99_ms: float | None
    queue_ms: float | None
    shifts: tuple[int, int]


def score_of(sent: Sent, *, deadline_ms: float, pressure: Pressure) -> Score:
    """The score of a round.

    Args:
        sent: what was sent.
        deadline_ms: the client's.
        pressure: what the server counted meanwhile.
    """
    in_time = sent.answered & (np.nan_to_num(sent.latency_ms, nan=np.inf) <= deadline_ms)
    rows = max(1, int(sent.answered.sum()) * sent.batch)
    latencies = sent.latency_ms[sent.answered]
    return Score(
        in_time=float(in_time.mean()),
        answered=float(sent.answered.mean()),
        accuracy=float(sent.right.sum() / rows),
        good=float(sent.right[in_time].sum() / (len(sent.answered) * sent.batch)),
        p50_ms=_percentile(latencies, 50),
        p99_ms=_percentile(latencies, 99),
        cut=_with_bit(sent, DEADLINE) / rows,
        geared=_with_bit(sent, GEARED) / rows,
        exits=tuple((sent.exits / rows).tolist()),
        status=dict(sent.status),
        lag_p99_ms=_percentile(sent.lag_ms[~np.isnan(sent.lag_ms)], 99),
        queue_ms=pressure.queue_ms,
        shifts=(pressure.cheaper, pressure.dearer),
    )


def _percentile(values: npt.NDArray[np.float64], percent: int) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def _with_bit(sent: Sent, bit: int) -> int:
    return sum(count for bits, count in sent.status.items() if bits & bit)


def medians(scores: Sequence[Score]) -> dict[str, Any]:
    """Each figure as its median over rounds, with the smallest and the largest; shifts of all rounds together."""
    found: dict[str, Any] = {}
    for name in FIGURES:
        values = [value for score in scores if (value := getattr(score, name)) is not None]
        found[name] = (
            {"median": float(np.median(values)), "min": min(values), "max": max(values)} if values else None
        )
    found["shifts"] = [sum(score.shifts[way] for score in scores) for way in range(2)]
    stages = max(len(score.exits) for score in scores)
    padded = [(*score.exits, *([0.0] * (stages - len(score.exits)))) for score in scores]
    found["exits"] = np.median(np.array(padded), axis=0).tolist()
    return found


def rounds_json(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Every round as results hold it."""
    return [asdict(score) for score in scores]
