"""What the pictures draw, as numbers: trades of thresholds, reliability, confidence, classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.planner.intervals import paired_difference
from orchestrator.report.ladder import F32, F64, I64, Bools, Ladder, picked
from orchestrator.report.shares import Share, share_of

RELIABILITY_BINS = 15
CONFIDENCE_BINS = 40


@dataclass(frozen=True, kw_only=True)
class Trade:
    """One threshold moved, the others as planned.

    Args:
        stage: whose threshold.
        threshold: float32 (t,), ascending, the last is +inf.
        place: float64 (t,), share of all rows whose score is below the threshold.
        quality: float64 (t,), share of good answers.
        mean_cost: float64 (t,).
        own: which of them is the plan's.
    """

    stage: int
    threshold: F32
    place: F64
    quality: F64
    mean_cost: F64
    own: int


def trade_of(ladder: Ladder, good: Bools, stage: int) -> Trade:
    """How accuracy and cost answer to one threshold.

    Args:
        ladder: n rows.
        good: bool (s, n).
        stage: whose threshold moves.
    """
    grid = ladder.grid(stage)
    own = ladder.thresholds[stage]
    planned = ladder.exits(ladder.thresholds)
    onward = ladder.exits(ladder.thresholds, after=stage)
    reached = planned >= stage
    # Below `low` a row leaves whatever the threshold is.
    onward[ladder.wants_out(stage, None)] = stage
    here, there = reached & (onward != stage), np.where(reached, onward, planned)
    gain = (good[stage].astype(np.int64) - picked(good, there))[here]
    saved = (ladder.cost[there] - ladder.cost[stage])[here]
    score = ladder.score[stage][here]
    order = np.argsort(-score, kind="stable")
    leaving = len(order) - np.searchsorted(score[order][::-1], grid, side="left")
    base_good, base_cost = int(np.count_nonzero(picked(good, there))), float(ladder.cost[there].sum())
    return Trade(
        stage=stage,
        threshold=grid,
        place=np.searchsorted(np.sort(ladder.score[stage]), grid, side="left") / ladder.rows,
        quality=(base_good + np.append(0, np.cumsum(gain[order]))[leaving]) / ladder.rows,
        mean_cost=(base_cost - np.append(0.0, np.cumsum(saved[order]))[leaving]) / ladder.rows,
        own=int(np.searchsorted(grid, np.float32(np.inf if own is None else own))),
    )


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often answers of a given confidence are right.

    Args:
        name: whose answers.
        confidence: mean probability of the answer, per bin that is not empty.
        right: share right, per such bin.
        error: expected calibration error over all bins.
    """

    name: str
    confidence: tuple[float, ...]
    right: tuple[Share, ...]
    error: float


def reliability_of(name: str, sure: F32, right: Bools) -> Reliability:
    """Bins of equal width over the probability of the answer.

    Args:
        name: whose answers.
        sure: float32 (n,), probability of the answer.
        right: bool (n,).
    """
    sure64 = sure.astype(np.float64)
    place = np.clip((sure64 * RELIABILITY_BINS).astype(int), 0, RELIABILITY_BINS - 1)
    rows = np.bincount(place, minlength=RELIABILITY_BINS)
    hits = np.bincount(place, weights=right, minlength=RELIABILITY_BINS)
    total = np.bincount(place, weights=sure64, minlength=RELIABILITY_BINS)
    full = np.flatnonzero(rows)
    return Reliability(
        name=name,
        confidence=tuple(float(total[one] / rows[one]) for one in full),
        right=tuple(Share(hits=int(hits[one]), rows=int(rows[one])) for one in full),
        error=float(np.abs(hits - total).sum() / len(sure)),
    )


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Scores of the rows that come to a stage, split by what their answer there is worth.

    Args:
        stage: which.
        edges: float64 (b + 1,).
        good, bad: int64 (b,), rows whose answer at this stage is good, or not.
        threshold: of the plan; None where no row leaves by it.
        last: whether it answers all that come.
    """

    stage: int
    edges: F64
    good: I64
    bad: I64
    threshold: float | None
    last: bool


def confidence_of(ladder: Ladder, good: Bools, stage: int) -> Confidence:
    """Histogram of a stage's scores under the plan's thresholds.

    Args:
        ladder: n rows.
        good: bool (s, n).
        stage: which.
    """
    here = ladder.exits(ladder.thresholds) >= stage
    score, fine = ladder.score[stage][here].astype(np.float64), good[stage][here]
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    # Rounding lifts a few scores a hair above 1, where a histogram would drop them.
    score = np.clip(score, 0, 1)
    return Confidence(
        stage=stage,
        edges=edges,
        good=np.histogram(score[fine], edges)[0].astype(np.int64),
        bad=np.histogram(score[~fine], edges)[0].astype(np.int64),
        threshold=None if stage == ladder.last else ladder.thresholds[stage],
        last=stage == ladder.last,
    )


@dataclass(frozen=True, kw_only=True)
class ClassFacts:
    """What the cascade means for the rows of one class.

    Args:
        number: which class.
        right: rows the cascade gets right.
        reference: rows the reference gets right.
        difference: right minus reference, as a share.
        interval: 95 % interval of it, from the paired rows.
        deferred: rows that went past the first stage.
    """

    number: int
    right: Share
    reference: Share
    difference: float
    interval: tuple[float, float]
    deferred: Share


def classes_of(
    labels: I64, right: Bools, *, reference: Bools, exit_stage: npt.NDArray[np.intp]
) -> tuple[ClassFacts, ...]:
    """Facts of every class that has rows, those that pay most first; ties by number.

    Args:
        labels: int64 (n,), the true classes.
        right: bool (n,), of the cascade.
        reference: bool (n,), of what it is compared with.
        exit_stage: intp (n,).
    """
    order = np.argsort(labels, kind="stable")
    numbers, starts = np.unique(labels[order], return_index=True)
    found = []
    for number, rows in zip(numbers, np.split(order, starts[1:]), strict=True):
        difference, interval = paired_difference(right[rows], reference[rows])
        facts = ClassFacts(
            number=int(number),
            right=share_of(right[rows]),
            reference=share_of(reference[rows]),
            difference=difference,
            interval=interval,
            deferred=share_of(exit_stage[rows] > 0),
        )
        found.append(facts)
    return tuple(sorted(found, key=lambda one: (one.difference, one.number)))
