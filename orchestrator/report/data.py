"""Everything the report shows, as plain numbers; nothing here draws or writes."""

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.planner.dataset_split import split_from_ids
from orchestrator.planner.intervals import clopper_pearson_ends, paired_difference
from orchestrator.planner.plan import FrontierPoint
from orchestrator.planner.predict import Prediction
from orchestrator.planner.records import Records
from orchestrator.report.inputs import (
    F32,
    F64,
    I64,
    Bools,
    Criterion,
    QualityAndCost,
    ReportInput,
    Share,
    StageOutputs,
    report_input_from_records,
    share_of,
    values_at,
)
from orchestrator.spec import CascadeSpec, Member

# Beyond this many rows the page would grow by megabytes and the numbers by a digit nobody needs.
MOST_ROWS = 20_000
ARROW = " → "
RELIABILITY_BINS = 15
HISTOGRAM_BINS = 40


@dataclass(frozen=True, kw_only=True)
class ThresholdCurve:
    """Quality and cost while the threshold of one stage moves and the others stay as planned.

    Args:
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

    `stage_correct` is bool (s, n): whether the answer of each stage is correct.
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
        confidence: mean probability of the answer, per bin that is not empty.
        right: share right, per such bin.
        error: expected calibration error over all bins.
    """

    name: str
    confidence: tuple[float, ...]
    right: tuple[Share, ...]
    error: float


def reliability_curve(name: str, probability: F32, *, right: Bools) -> ReliabilityCurve:
    """Bins of equal width over the probability of the answer, float32 (n,); `right` is bool (n,)."""
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
        right, reference: rows that the cascade gets right, and the reference.
        difference: right minus reference, as a share, with its 95 % interval from the paired rows.
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


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """One stage of the plan, over the recorded rows.

    Args:
        members: names, joined.
        threshold: None for never, and for the last stage.
        low: the plan's abstain threshold, if it has one.
        cost: of asking the stage about one row.
        total_cost: of a row that exits here.
        exits: rows that exit here, of all rows.
        correct: correct answers, of the rows that exit here.
    """

    members: str
    threshold: float | None
    low: float | None
    cost: float
    total_cost: float
    exits: Share
    correct: Share


@dataclass(frozen=True, kw_only=True)
class ReferenceComparison:
    """The plan against its reference, row by row.

    Args:
        difference: accuracy of the plan minus that of the reference, with its 95 % interval.
        losses: rows only the reference gets right.
        gains: rows only the plan gets right.
    """

    reference: QualityAndCost
    difference: float
    interval: tuple[float, float]
    losses: int
    gains: int


@dataclass(frozen=True, kw_only=True)
class FrontierPlan(QualityAndCost):
    """A plan of the search's frontier, as the planner found it, with its quality on the rows of the search."""

    plan: FrontierPoint


@dataclass(frozen=True, kw_only=True)
class Report:
    """All numbers of one report; n rows, s stages.

    Args:
        data: name of the data.
        criterion: what makes an answer correct.
        plan: what the plan achieves on all rows.
        mean_cost_ci95: normal interval of its mean cost.
        certify_quality: of the plan on the rows kept to certify; None where those are not known.
        baselines: members and ensembles on the same rows.
        frontier: plans of the search, on the rows of the search.
        comparison: the plan and its reference; None without accuracy.
        reliability: members, then the plan; empty without accuracy.
        classes: empty without accuracy.
        certificate, calibration, clock: facts of the planner, as JSON values; empty if there are none.
        outputs: answers of all stages, for the sliders.
        stage_correct: bool (s, n), whether the answer of each stage is correct.
    """

    spec: CascadeSpec
    data: str
    rows: int
    criterion: Criterion
    plan: QualityAndCost
    mean_cost_ci95: tuple[float, float]
    certify_quality: Share | None
    stages: tuple[StageFacts, ...]
    baselines: tuple[QualityAndCost, ...]
    frontier: tuple[FrontierPlan, ...]
    comparison: ReferenceComparison | None
    threshold_curves: tuple[ThresholdCurve, ...]
    reliability: tuple[ReliabilityCurve, ...]
    classes: tuple[ClassFacts, ...]
    histograms: tuple[ScoreHistogram, ...]
    certificate: Mapping[str, Any]
    calibration: Mapping[str, Any]
    clock: Mapping[str, Any]
    outputs: StageOutputs = field(repr=False)
    stage_correct: Bools = field(repr=False)

    @property
    def fit_rows(self) -> int:
        """Rows the plan and the frontier were chosen on, as far as the plan says."""
        return self.rows if self.spec.fit is None else self.spec.fit.rows

    @property
    def certify_rows_chose(self) -> bool:
        """Whether the rows kept to certify chose the plan from a list, so that they flatter it."""
        is_reference = self.certificate.get("method") == "identity" and "tested" in self.certificate
        return is_reference or self.certificate.get("candidates", 1) > 1


def report_from_records(
    spec: CascadeSpec,
    records: Records,
    *,
    frontier: Sequence[FrontierPoint] = (),
    pool: Sequence[Member] = (),
) -> Report:
    """All numbers of a report; see `write_report` for the arguments.

    Raises:
        DataError: the records do not fit the plan.
    """
    extra: Mapping[str, Any] = {} if spec.fit is None else spec.fit.extra
    found = report_input_from_records(spec, records, planned=pool)
    outputs = found.outputs
    spent = outputs.cost[found.exit_stage]
    mean, reach = float(spent.mean()), 1.96 * float(spent.std()) / math.sqrt(records.rows)
    return Report(
        spec=spec,
        data=str(records.meta.get("data") or (spec.fit.split if spec.fit else "") or "unnamed data"),
        rows=records.rows,
        criterion=found.criterion,
        plan=QualityAndCost(name=spec.name, kind="cascade", quality=share_of(found.correct), mean_cost=mean),
        mean_cost_ci95=(mean - reach, mean + reach),
        certify_quality=_certify_quality(spec, records, found.correct),
        stages=_stages(found),
        baselines=tuple(one.judged(found.target) for one in (*found.members, *found.ensembles)),
        frontier=_frontier(frontier, spec, found),
        comparison=_comparison(found),
        threshold_curves=tuple(
            threshold_curve(outputs, found.stage_correct, stage=stage) for stage in range(outputs.last)
        ),
        reliability=_reliability(found),
        classes=class_facts(found),
        histograms=tuple(score_histogram(found, stage) for stage in range(len(spec.stages))),
        certificate=extra.get("guarantee", {}),
        calibration=extra.get("calibration", {}),
        clock=_clock(extra),
        outputs=outputs,
        stage_correct=found.stage_correct,
    )


def _clock(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the planner predicted in time; nothing where that is missing, or was written by somebody else."""
    facts = extra.get("timing")
    # Plans made before a fact was predicted lack it.
    always = {field.name for field in dataclasses.fields(Prediction) if field.default is dataclasses.MISSING}
    known = always | {"machine", "asked", "alternatives"}
    return facts if isinstance(facts, dict) and known <= set(facts) else {}


def _certify_quality(spec: CascadeSpec, records: Records, correct: Bools) -> Share | None:
    """Quality on the rows kept to certify, where the plan says how they were drawn from these very records."""
    if spec.fit is None or spec.fit.data_sha256 != records.data_sha256:
        return None
    split = spec.fit.extra.get("split", {})
    kept = split.get("certify_rows", 0)
    if not kept or kept + split.get("search_rows", 0) != records.rows:
        return None
    groups = records.groups if "certify_groups" in split else None
    again = split_from_ids(
        records.ids, certify_share=kept / records.rows, seed=split.get("seed", 0), groups=groups
    )
    return share_of(correct[again.certify]) if len(again.certify) == kept else None


def _stages(found: ReportInput) -> tuple[StageFacts, ...]:
    spec = found.outputs.spec
    return tuple(
        StageFacts(
            members=" + ".join(member.name for member in stage.members),
            threshold=stage.threshold,
            low=stage.low,
            cost=cost,
            total_cost=float(found.outputs.cost[number]),
            exits=share_of(found.exit_stage == number),
            correct=share_of(found.correct[found.exit_stage == number]),
        )
        for number, (stage, cost) in enumerate(zip(spec.stages, spec.stage_costs, strict=True))
    )


def _frontier(rows: Sequence[FrontierPoint], spec: CascadeSpec, found: ReportInput) -> tuple[FrontierPlan, ...]:
    if not found.criterion.for_frontier:
        return ()
    counted = len(found.correct) if spec.fit is None else spec.fit.rows
    return tuple(
        FrontierPlan(
            name=ARROW.join(" + ".join(stage) for stage in row.stages),
            kind="cascade" if len(row.stages) > 1 else "ensemble" if len(row.members) > 1 else "member",
            quality=Share(hits=round(row.accuracy * counted), rows=counted),
            mean_cost=row.mean_cost,
            plan=row,
        )
        for row in rows
    )


def _comparison(found: ReportInput) -> ReferenceComparison | None:
    if not found.criterion.by_labels or found.reference is None:
        return None
    reference = found.reference.label == found.target
    difference, interval = paired_difference(found.correct, reference)
    return ReferenceComparison(
        reference=found.reference.judged(found.target),
        difference=difference,
        interval=interval,
        losses=int(np.count_nonzero(reference & ~found.correct)),
        gains=int(np.count_nonzero(found.correct & ~reference)),
    )


def _reliability(found: ReportInput) -> tuple[ReliabilityCurve, ...]:
    if not found.criterion.by_labels:
        return ()
    members = [
        reliability_curve(one.name, one.probability, right=one.label == found.target) for one in found.members
    ]
    probability = values_at(found.outputs.probability, found.exit_stage)
    return (*members, reliability_curve(found.outputs.spec.name, probability, right=found.correct))


def slider_data(report: Report) -> dict[str, Any]:
    """What the page's script needs to decide every row again, as JSON values.

    Scores and thresholds are the float32 numbers the exit rule compares, not rounded: a row whose score equals a
    threshold exits on the page because it exits in the core. The script gets the 95 % interval of every number of
    correct rows that any thresholds can give, so that it computes none. Arrays are little-endian, base64; flags
    are one bit a row, the lowest bit first.
    """
    outputs, rows = report.outputs, sampled_rows(report.rows)
    correct = report.stage_correct[:, rows]
    fewest, most = int(correct.all(axis=0).sum()), int(correct.any(axis=0).sum())
    low, high = clopper_pearson_ends(np.arange(fewest, most + 1), len(rows))
    stages: list[dict[str, Any]] = [
        {"cost": float(cost), "correct": _base64(np.packbits(flags, bitorder="little"))}
        for cost, flags in zip(outputs.cost, correct, strict=True)
    ]
    for curve, stage, facts in zip(report.threshold_curves, stages, report.stages, strict=False):
        stage |= {
            "score": _base64(outputs.score[curve.stage][rows].astype("<f4")),
            "grid": _base64(curve.threshold.astype("<f4")),
            "planned": curve.planned,
            "low": None if facts.low is None else float(np.float32(facts.low)),
        }
    return {
        "rows": len(rows),
        "unit": report.spec.cost_unit,
        "stages": stages,
        "intervals": {"fewest": fewest, "low": _base64(low.astype("<f8")), "high": _base64(high.astype("<f8"))},
    }


def sampled_rows(rows: int) -> npt.NDArray[np.intp]:
    """Indices of the rows the sliders work on: all, or an even draw from a fixed seed, ascending."""
    if rows <= MOST_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, MOST_ROWS, replace=False))


def _base64(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
