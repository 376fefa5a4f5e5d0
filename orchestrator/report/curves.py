"""What the charts draw, as numbers: curves of thresholds and of confidence, histograms of scores, classes."""

from dataclasses import dataclass

import numpy as np

from orchestrator.planner.intervals import paired_difference
from orchestrator.report.inputs import ReportInput, Share, share_of
from orchestrator.report.stage_outputs import F32, F64, I64, Bools, StageOutputs, values_at

RELIABILITY_BINS = 15
HISTOGRAM_BINS = 40


@dataclass(frozen=True, kw_only=True)
class ThresholdCurve:
    """Quality and cost while the threshold of one stage moves and the others stay as planned.

    Args:
        stage: whose threshold.
        threshold: float32 (t,), ascending, the last is +inf.
        rows_below: float64 (t,), share of all rows whose score is below the threshold.
        quality: float64 (t,), share of correct answers.
        mean_cost: float64 (t,).
        planned: index of the plan's threshold.
    """

    stage: int
    threshold: F32
    rows_below: F64
    quality: F64
    mean_cost: F64
    planned: int


def threshold_curve(outputs: StageOutputs, stage_correct: Bools, *, stage: int) -> ThresholdCurve:
    """The curve of one stage, by one sort of its scores instead of a replay per threshold.

    Args:
        outputs: n rows.
        stage_correct: bool (s, n).
        stage: whose threshold moves.
    """
    grid = outputs.threshold_grid(stage)
    thresholds = list(outputs.thresholds)
    own, thresholds[stage] = thresholds[stage], None
    without = outputs.exit_stage(thresholds)
    # Only these rows change with the threshold: it stops those whose score reaches it, and the others go on.
    moved = without > stage
    correct, cost = values_at(stage_correct, without), outputs.cost[without]
    gain = stage_correct[stage][moved].astype(np.int64) - correct[moved]
    saved = cost[moved] - outputs.cost[stage]
    score = outputs.score[stage][moved]
    order = np.argsort(-score, kind="stable")
    stopped = len(order) - np.searchsorted(score[order][::-1], grid, side="left")
    return ThresholdCurve(
        stage=stage,
        threshold=grid,
        rows_below=np.searchsorted(np.sort(outputs.score[stage]), grid, side="left") / outputs.rows,
        quality=(np.count_nonzero(correct) + np.append(0, np.cumsum(gain[order]))[stopped]) / outputs.rows,
        mean_cost=(cost.sum() - np.append(0.0, np.cumsum(saved[order]))[stopped]) / outputs.rows,
        planned=int(np.searchsorted(grid, np.float32(np.inf if own is None else own))),
    )


@dataclass(frozen=True, kw_only=True)
class ReliabilityCurve:
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


def reliability_curve(name: str, probability: F32, *, right: Bools) -> ReliabilityCurve:
    """Bins of equal width over the probability of the answer.

    Args:
        name: whose answers.
        probability: float32 (n,), of the answer.
        right: bool (n,).
    """
    exact = probability.astype(np.float64)
    place = np.clip((exact * RELIABILITY_BINS).astype(int), 0, RELIABILITY_BINS - 1)
    rows, hits, total = (
        np.bincount(place, weights=weights, minlength=RELIABILITY_BINS) for weights in (None, right, exact)
    )
    filled = np.flatnonzero(rows)
    return ReliabilityCurve(
        name=name,
        confidence=tuple(float(total[one] / rows[one]) for one in filled),
        right=tuple(Share(hits=int(hits[one]), rows=int(rows[one])) for one in filled),
        error=float(np.abs(hits - total).sum() / len(exact)),
    )


@dataclass(frozen=True, kw_only=True)
class ScoreHistogram:
    """Scores of the rows that reach a stage, split by whether their answer there is correct.

    Args:
        stage: which.
        edges: float64 (b + 1,).
        correct, wrong: int64 (b,), rows.
        threshold: of the plan; None where no row exits by it.
        last: whether the stage answers every row that reaches it.
    """

    stage: int
    edges: F64
    correct: I64
    wrong: I64
    threshold: float | None
    last: bool


def score_histogram(found: ReportInput, stage: int) -> ScoreHistogram:
    """Histogram of a stage's scores under the plan's thresholds."""
    outputs = found.outputs
    reached = found.exit_stage >= stage
    # Rounding lifts a few scores a hair above 1, where a histogram would drop them.
    score = np.clip(outputs.score[stage][reached].astype(np.float64), 0, 1)
    correct = found.stage_correct[stage][reached]
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return ScoreHistogram(
        stage=stage,
        edges=edges,
        correct=np.histogram(score[correct], edges)[0].astype(np.int64),
        wrong=np.histogram(score[~correct], edges)[0].astype(np.int64),
        threshold=None if stage == outputs.last else outputs.thresholds[stage],
        last=stage == outputs.last,
    )


@dataclass(frozen=True, kw_only=True)
class ClassFacts:
    """What the cascade does to the rows of one class.

    Args:
        name: of the class; "class 7" where it has none.
        right: rows the cascade gets right.
        reference: rows the reference gets right.
        difference: right minus reference, as a share.
        interval: 95 % interval of the difference, from the paired rows.
        deferred: rows that went past the first stage.
    """

    name: str
    right: Share
    reference: Share
    difference: float
    interval: tuple[float, float]
    deferred: Share


def class_facts(found: ReportInput) -> tuple[ClassFacts, ...]:
    """Facts of every class that has rows, those that lose most first, ties by number; empty without accuracy."""
    if not found.criterion.by_labels or found.reference is None:
        return ()
    labels, reference = found.target, found.reference.label == found.target
    names = found.outputs.spec.labels
    order = np.argsort(labels, kind="stable")
    numbers, starts = np.unique(labels[order], return_index=True)
    facts = []
    for number, rows in zip(numbers, np.split(order, starts[1:]), strict=True):
        difference, interval = paired_difference(found.correct[rows], reference[rows])
        of_class = ClassFacts(
            name=f"class {number}" if names is None else names[number],
            right=share_of(found.correct[rows]),
            reference=share_of(reference[rows]),
            difference=difference,
            interval=interval,
            deferred=share_of(found.exit_stage[rows] > 0),
        )
        facts.append(of_class)
    # The sort is stable, and the facts stand in the order of class numbers.
    return tuple(sorted(facts, key=lambda one: one.difference))
