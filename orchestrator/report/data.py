"""Everything the report shows, as plain numbers; nothing here draws or writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.planner.dataset_split import split_from_ids
from orchestrator.planner.intervals import paired_difference
from orchestrator.planner.records import Records
from orchestrator.report.basis import Achieved, Basis, Measure, basis_from_records
from orchestrator.report.curves import (
    ClassFacts,
    Confidence,
    Reliability,
    Trade,
    classes_of,
    confidence_of,
    reliability_of,
    trade_of,
)
from orchestrator.report.ladder import Bools, Ladder, picked
from orchestrator.report.rivals import FrontierPoint, point_from_row
from orchestrator.report.shares import Share, share_of
from orchestrator.spec import CascadeSpec, Member


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """One stage of the plan, as the recorded rows met it.

    Args:
        members: names.
        threshold: None for never, and for the last stage.
        cost: of asking the stage about one row.
        total_cost: of a row that stops here.
        exits: rows that stop here, of all rows.
        good: rows answered well, of those that stop here.
    """

    members: tuple[str, ...]
    threshold: float | None
    cost: float
    total_cost: float
    exits: Share
    good: Share


@dataclass(frozen=True, kw_only=True)
class Against:
    """The plan against a reference, row by row.

    Args:
        reference: what it is.
        difference: good answers of the plan minus those of the reference, as a share.
        interval: 95 % interval of it.
        losses: rows only the reference answers well.
        gains: rows only the plan does.
    """

    reference: Achieved
    difference: float
    interval: tuple[float, float]
    losses: int
    gains: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """All numbers of one report; n rows, s stages.

    Args:
        spec: the plan.
        data: name of the data.
        rows: n.
        measure: what a good answer is.
        plan: what the plan achieves on all rows.
        mean_cost_ci95: normal interval of its mean cost.
        worst_cost: of a row that goes through every stage.
        kept: the same quality on the rows kept to certify; None where none are known.
        stages: one per stage.
        rivals: members and ensembles on the same rows.
        frontier: plans of the search, on the rows of the search.
        against: the plan and its reference; None without accuracy.
        trades: one per threshold.
        reliability: members, then the cascade; empty without accuracy.
        classes: empty without accuracy.
        confidence: one per stage.
        certify, calibration: facts of the planner, as JSON values; empty if there are none.
        ladder: what the sliders need.
        good: bool (s, n), whether the answer of each stage is good.
    """

    spec: CascadeSpec
    data: str
    rows: int
    measure: Measure
    plan: Achieved
    mean_cost_ci95: tuple[float, float]
    worst_cost: float
    kept: Share | None
    stages: tuple[StageFacts, ...]
    rivals: tuple[Achieved, ...]
    frontier: tuple[FrontierPoint, ...]
    against: Against | None
    trades: tuple[Trade, ...]
    reliability: tuple[Reliability, ...]
    classes: tuple[ClassFacts, ...]
    confidence: tuple[Confidence, ...]
    certify: Mapping[str, Any]
    calibration: Mapping[str, Any]
    ladder: Ladder = field(repr=False)
    good: Bools = field(repr=False)

    @property
    def fit_rows(self) -> int:
        """Rows the plan and the frontier were chosen on, as far as the plan says."""
        return self.rows if self.spec.fit is None else self.spec.fit.rows

    @property
    def sifted(self) -> bool:
        """Whether the rows kept to certify chose from a list of plans, by which they flatter the one chosen."""
        instead = self.certify.get("method") == "identity" and "tested" in self.certify
        return instead or self.certify.get("candidates", 1) > 1


def report_from_records(
    spec: CascadeSpec,
    records: Records,
    *,
    frontier: Sequence[Mapping[str, Any]] = (),
    certify: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    pool: Sequence[Member] = (),
) -> Report:
    """All numbers of a report.

    Args:
        spec: the plan.
        records: n rows of all its members, and of any others it is compared with.
        frontier: rows as `committee plan --json` prints them.
        certify: facts of the guarantee; None takes those of the plan's `fit`. `reference` in it names a member
            or "ensemble".
        calibration: facts of the temperatures; None takes those of the plan's `fit`.
        pool: members the plan was chosen from, with the temperatures it was chosen with.

    Raises:
        DataError: the records do not fit the plan.
    """
    extra: Mapping[str, Any] = {} if spec.fit is None else spec.fit.extra
    certify = extra.get("guarantee", {}) if certify is None else certify
    basis = basis_from_records(spec, records, certify=certify, planned=pool)
    ladder, at, done = basis.ladder, basis.at, basis.done
    spent = ladder.cost[at]
    mean, reach = float(spent.mean()), 1.96 * float(spent.std()) / math.sqrt(records.rows)
    return Report(
        spec=spec,
        data=str(records.meta.get("data") or (spec.fit.split if spec.fit else "") or "unnamed data"),
        rows=records.rows,
        measure=basis.measure,
        plan=Achieved(name=spec.name, kind="cascade", quality=share_of(done), mean_cost=mean),
        mean_cost_ci95=(mean - reach, mean + reach),
        worst_cost=spec.worst_cost,
        kept=_kept(spec, records, done),
        stages=_stages(spec, basis),
        rivals=basis.achieved(),
        frontier=_frontier(frontier, spec, basis),
        against=_against(basis),
        trades=tuple(trade_of(ladder, basis.good, stage) for stage in range(ladder.last)),
        reliability=_reliability(spec, basis),
        classes=_classes(basis),
        confidence=tuple(confidence_of(ladder, basis.good, stage) for stage in range(ladder.last + 1)),
        certify=certify,
        calibration=extra.get("calibration", {}) if calibration is None else calibration,
        ladder=ladder,
        good=basis.good,
    )


def _kept(spec: CascadeSpec, records: Records, done: Bools) -> Share | None:
    """The rows kept to certify, where the plan says how they were drawn from these very records."""
    fit = spec.fit
    split = {} if fit is None else fit.extra.get("split", {})
    kept, chosen = split.get("certify_rows", 0), split.get("search_rows", 0)
    if fit is None or not kept or kept + chosen != records.rows:
        return None
    if fit.data_sha256 != str(records.meta.get("data_sha256", "")):
        return None
    again = split_from_ids(records.ids, certify_share=kept / records.rows, seed=split.get("seed", 0))
    return share_of(done[again.certify])


def _stages(spec: CascadeSpec, basis: Basis) -> tuple[StageFacts, ...]:
    return tuple(
        StageFacts(
            members=tuple(member.name for member in stage.members),
            threshold=stage.threshold,
            cost=stage.cost,
            total_cost=float(basis.ladder.cost[number]),
            exits=share_of(basis.at == number),
            good=share_of(basis.done[basis.at == number]),
        )
        for number, stage in enumerate(spec.stages)
    )


def _frontier(rows: Sequence[Mapping[str, Any]], spec: CascadeSpec, basis: Basis) -> tuple[FrontierPoint, ...]:
    if not basis.measure.frontier:
        return ()
    counted = len(basis.done) if spec.fit is None else spec.fit.rows
    return tuple(point_from_row(row, counted) for row in rows if isinstance(row.get("accuracy"), int | float))


def _against(basis: Basis) -> Against | None:
    other = basis.reference
    if not basis.measure.accuracy or other is None:
        return None
    fine = other.label == basis.target
    difference, interval = paired_difference(basis.done, fine)
    kind = "member" if other.members == 1 else "ensemble"
    return Against(
        reference=Achieved(name=other.name, kind=kind, quality=share_of(fine), mean_cost=other.cost),
        difference=difference,
        interval=interval,
        losses=int(np.count_nonzero(fine & ~basis.done)),
        gains=int(np.count_nonzero(basis.done & ~fine)),
    )


def _reliability(spec: CascadeSpec, basis: Basis) -> tuple[Reliability, ...]:
    if not basis.measure.accuracy:
        return ()
    single = [reliability_of(one.name, one.sure, one.label == basis.target) for one in basis.members]
    sure = picked(basis.ladder.sure, basis.at)
    return (*single, reliability_of(spec.name, sure, basis.done))


def _classes(basis: Basis) -> tuple[ClassFacts, ...]:
    if not basis.measure.accuracy or basis.reference is None:
        return ()
    fine = basis.reference.label == basis.target
    return classes_of(basis.target, basis.done, reference=fine, exit_stage=basis.at)
