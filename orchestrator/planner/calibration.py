"""Temperatures: fitted per member, and kept only where they make the committee better on rows of its own.

A temperature never changes a member's own answer, but it changes how members mix and which rows exit, and scaling
is known to make cascades worse as often as better. So plans with and without temperatures, made from each half of
the search rows, are compared on the other half.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from orchestrator.decision import softmax
from orchestrator.decision.combine import scaled_logits
from orchestrator.planner.candidates import answers_of, in_cost_order
from orchestrator.planner.dataset_split import DatasetSplit, records_of_rows, shuffled_halves
from orchestrator.planner.goal import (
    ENSEMBLE,
    Goal,
    SearchOptions,
    rows_from_records,
    rows_wanted,
    wanted_orderings,
)
from orchestrator.planner.records import Records
from orchestrator.planner.search import RIGHT, search
from orchestrator.progress import Progress, no_progress
from orchestrator.spec import CascadeSpec, Member, Stage

F32 = npt.NDArray[np.float32]
Truth = npt.NDArray[np.int64]

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0
# Fewer rows than this on either side would decide by luck; more would add minutes and no certainty.
FEWEST, MOST = 200, 2000
# A coarse grid will do to see a difference worth having.
TRIAL_QUANTILES = 25
# Cheaper by less than this is noise.
WORTH = 0.01


@dataclass(frozen=True, kw_only=True)
class TemperatureFit:
    """One member's temperature.

    Args:
        temperature: minimises the negative log-likelihood of the fitting rows.
        ece_before: expected calibration error on other rows, at the member's own temperature.
        ece_after: that error at the new temperature.
    """

    temperature: float
    ece_before: float
    ece_after: float


def temperature_of(z: F32, labels: Truth) -> float:
    """The temperature with the least negative log-likelihood, of finite logits float32 (n, k) and labels (n,)."""
    peak = z.max(axis=1)
    lowered = z - peak[:, None]
    hit = lowered[np.arange(len(z)), labels].astype(np.float64)

    def loss(log_temperature: float) -> float:
        scale = np.float32(np.exp(-log_temperature))
        spread = np.log(np.exp(lowered * scale).sum(axis=1, dtype=np.float64))
        return float((spread - float(scale) * hit).mean())

    best = minimize_scalar(
        loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-3}
    )
    # Four digits: more would be noise, and a plan is read by people.
    return float(f"{np.exp(best.x):.4g}")


def calibration_error(p: F32, labels: Truth) -> float:
    """Expected calibration error of the top answer, of p float32 (n, k) and labels int64 (n,), in equal bins."""
    top = p.argmax(axis=1)
    sure = p[np.arange(len(p)), top].astype(np.float64)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    gap = np.bincount(place, weights=(top == labels) - sure, minlength=BINS)
    return float(np.abs(gap).sum() / len(p))


def temperature_fit_of(member: Member, *, fit: tuple[F32, Truth], check: tuple[F32, Truth]) -> TemperatureFit:
    """A member's temperature, fitted on some rows and judged on others.

    Rows are given by outputs float32 (n, k) as recorded, and labels int64 (n,).
    """
    z, _ = scaled_logits(member, fit[0])
    factor = temperature_of(z, fit[1])
    other, _ = scaled_logits(member, check[0])
    return TemperatureFit(
        temperature=float(np.clip(member.temperature * factor, 1e-3, 1e3)),
        ece_before=calibration_error(softmax(other), check[1]),
        ece_after=calibration_error(softmax(other / np.float32(factor)), check[1]),
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """Whether temperatures are used, and why.

    Args:
        kept: whether the plan uses them.
        reason: why, in words.
        fits: member name -> its temperature and calibration errors.
        without, with_: what plans without and with temperatures achieved, per half that judged.
    """

    kept: bool
    reason: str
    fits: dict[str, TemperatureFit] = field(default_factory=dict)
    without: tuple[float | None, ...] = ()
    with_: tuple[float | None, ...] = ()

    def applied(self, base: CascadeSpec) -> CascadeSpec:
        """The pool with the temperatures, if they were kept."""
        return scaled(base, self.fits) if self.kept else base

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        facts: dict[str, Any] = {"kept": self.kept, "reason": self.reason}
        if self.fits:
            facts["members"] = {name: dataclasses.asdict(fit) for name, fit in self.fits.items()}
            facts["without"], facts["with"] = list(self.without), list(self.with_)
        return facts


def scaled(base: CascadeSpec, fits: Mapping[str, TemperatureFit]) -> CascadeSpec:
    """The pool with other temperatures."""
    members = (dataclasses.replace(member, temperature=fits[member.name].temperature) for member in base.members)
    return dataclasses.replace(base, stages=tuple(Stage(members=(member,)) for member in members))


def calibrate(
    base: CascadeSpec,
    records: Records,
    goal: Goal,
    *,
    split: DatasetSplit,
    options: SearchOptions,
    progress: Progress = no_progress,
) -> CalibrationResult:
    """Fits temperatures on each half of the search rows and compares plans with and without them on the other.

    Of the split only the search part is looked at; `progress` shows one step per half.
    """
    why_not = ""
    if records.labels is None or goal.label_free:
        why_not = "no labels to fit temperatures on"
    elif goal.reference == ENSEMBLE:
        why_not = "temperatures would change the reference, an average of all members"
    elif len(split.search) // 2 < FEWEST:
        why_not = f"{len(split.search)} search rows, fewer than {2 * FEWEST}"
    if why_not:
        return CalibrationResult(kept=False, reason=why_not)
    parts = shuffled_halves(records, split.search, seed=split.seed)
    one, other = (records_of_rows(records, np.sort(part[:MOST])) for part in parts)
    folds = []
    with progress("trying temperatures", 2) as advance:
        for halves in ((one, other), (other, one)):
            folds.append(_fold(base, *halves, goal=goal, options=options))
            advance(1)
    kept = all(_better(goal, fold) for fold in folds)
    figures = ", ".join(f"{_figure(fold.with_)} against {_figure(fold.without)} without" for fold in folds)
    noun = "accuracy within the budget" if goal.has_budget else "mean cost of a plan that is good enough"
    return CalibrationResult(
        kept=kept,
        reason=f"{noun}, on each half of the search rows: {figures}",
        fits=_pooled([fold.fits for fold in folds]),
        without=tuple(fold.without for fold in folds),
        with_=tuple(fold.with_ for fold in folds),
    )


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """What plans fitted on one half achieve on the other."""

    fits: dict[str, TemperatureFit]
    without: float | None
    with_: float | None


def _fold(base: CascadeSpec, fit: Records, check: Records, *, goal: Goal, options: SearchOptions) -> _Fold:
    assert fit.labels is not None
    assert check.labels is not None
    fits = {
        member.name: temperature_fit_of(
            member, fit=(fit.outputs[member.name], fit.labels), check=(check.outputs[member.name], check.labels)
        )
        for member in base.members
    }
    without = _achieved(base, fit, check, goal=goal, options=options)
    with_ = _achieved(scaled(base, fits), fit, check, goal=goal, options=options)
    return _Fold(fits=fits, without=without, with_=with_)


def _pooled(folds: Sequence[dict[str, TemperatureFit]]) -> dict[str, TemperatureFit]:
    """Per member the geometric mean of both halves' temperatures, and the mean of the errors they left."""
    return {
        name: TemperatureFit(
            temperature=float(f"{math.sqrt(math.prod(fold[name].temperature for fold in folds)):.4g}"),
            ece_before=sum(fold[name].ece_before for fold in folds) / len(folds),
            ece_after=sum(fold[name].ece_after for fold in folds) / len(folds),
        )
        for name in folds[0]
    }


def _better(goal: Goal, fold: _Fold) -> bool:
    """Whether temperatures helped on one half; one lucky row is enough for that, hence two halves."""
    if fold.with_ is None or fold.without is None:
        return fold.with_ is not None
    if goal.has_budget:
        return fold.with_ > fold.without
    return fold.with_ < fold.without * (1 - WORTH)


def _figure(value: float | None) -> str:
    return "no plan" if value is None else f"{value:.6g}"


def _achieved(
    base: CascadeSpec, fit: Records, check: Records, *, goal: Goal, options: SearchOptions
) -> float | None:
    """Best accuracy within the budget, or least cost that is good enough, of plans from `fit` seen on `check`."""
    orderings = wanted_orderings(goal, in_cost_order(base.members), options)
    if not orderings:
        return None
    chosen_on, seen_on = (rows_from_records(goal, base, part, options) for part in (fit, check))
    result = search(
        chosen_on.table,
        orderings,
        measures={RIGHT: chosen_on.right},
        max_stages=goal.max_stages,
        quantiles=min(TRIAL_QUANTILES, options.quantiles),
    )
    wanted = rows_wanted(goal, seen_on)
    best: float | None = None
    for plan in result.frontiers[RIGHT]:
        answers = answers_of(plan, seen_on.table)
        right = int(seen_on.right(answers.label).sum())
        if goal.max_mean_cost is not None:
            accuracy = right / seen_on.table.rows
            if answers.mean_cost <= goal.max_mean_cost and (best is None or accuracy > best):
                best = accuracy
        elif right >= wanted and (best is None or answers.mean_cost < best):
            best = answers.mean_cost
    return best
