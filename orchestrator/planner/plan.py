"""From records and a goal to a plan: split, temperatures, table, search, guarantee, each in its own module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.calibration import CalibrationResult, calibrate
from orchestrator.planner.candidates import CandidatePlan, answers_of
from orchestrator.planner.certify import UnmetConstraint
from orchestrator.planner.dataset_split import DatasetSplit, kept_origin, records_of_rows, split_from_ids
from orchestrator.planner.decide import Decision, RowSet, decide
from orchestrator.planner.gears import gears_of
from orchestrator.planner.goal import ENSEMBLE, Goal, SearchOptions, reference_of
from orchestrator.planner.intervals import clopper_pearson
from orchestrator.planner.records import Records, random_members
from orchestrator.planner.replay import replay
from orchestrator.planner.search import RIGHT, Found, SearchResult
from orchestrator.planner.subset_table import in_cost_order, mode_of, table_from_records
from orchestrator.progress import Progress, no_progress
from orchestrator.spec import CascadeSpec, Fit, Gears, Member, Stage


def plan_from_records(
    base: CascadeSpec,
    records: Records,
    goal: Goal,
    *,
    options: SearchOptions | None = None,
    progress: Progress = no_progress,
) -> PlanResult | Infeasible:
    """The best plan for a goal, or the best reachable one where there is none.

    Args:
        base: gives name, input, classes, labels and cost unit; its stages' members are the pool.
        records: n rows of every member of the pool.
        goal: what is wanted.
        options: how to look.
        progress: shows what takes long.

    Raises:
        DataError: records that cannot be planned with for this goal.
    """
    options = options or SearchOptions()
    goal = _checked(goal, base, records)
    share = options.certify_share if goal.certify else 0.0
    split = split_from_ids(records.ids, certify_share=share, seed=options.seed)
    trial = CalibrationResult(kept=False, reason="not asked for")
    if options.calibrate:
        trial = calibrate(base, records, goal, split=split, options=options, progress=progress)
        base = trial.applied(base)
    modes = len({mode_of(combine) for combine in options.combines})
    with progress("combining members", modes * records.rows) as advance:
        table = table_from_records(
            base, records, combines=options.combines, scores=options.scores, advance=advance
        )
    everything = RowSet(table=table, yardstick=reference_of(goal, table, records, combine=options.combines[0]))
    chosen_on, judged_on = everything.take(split.search), everything.take(split.certify)
    decision = decide(chosen_on, judged_on, goal, options, progress=progress)
    origin = Origin(base=base, records=records, split=split, trial=trial, goal=goal, combine=options.combines[0])
    found = result_from_decision(decision, chosen_on, origin)
    if isinstance(found, Infeasible):
        return found
    return _geared(found, decision.choice, chosen_on, options, labelled=not goal.label_free)


def _geared(
    planned: PlanResult, choice: CandidatePlan, part: RowSet, options: SearchOptions, *, labelled: bool
) -> PlanResult:
    """The plan with its cheaper gears, where some are wanted and there are any."""
    cheaper = gears_of(choice, part, count=options.gears, quantiles=options.quantiles)
    if not cheaper:
        return planned
    if not labelled:
        cheaper = tuple(dataclasses.replace(gear, accuracy=None) for gear in cheaper)
    return dataclasses.replace(planned, spec=dataclasses.replace(planned.spec, gears=Gears(cheaper=cheaper)))


def _checked(goal: Goal, base: CascadeSpec, records: Records) -> Goal:
    """The goal with its reference settled."""
    names = [member.name for member in in_cost_order(base.members)]
    if ENSEMBLE in names:
        raise DataError(
            "plan",
            got=f"a member named {ENSEMBLE}",
            expected="another name: this one means all members together",
            fix="rename it, or leave it out with `members`",
        )
    random = [name for name in random_members(records) if name in names]
    if random:
        raise DataError(
            "plan",
            got=f"members with random weights, {', '.join(random)}",
            expected="trained ones: accuracy of random weights is no result",
            fix="for cost and speed work use `impose_exits`",
        )
    if records.labels is None and not goal.label_free:
        fix = "record labelled data, or use `label_free` to certify agreement instead"
        raise DataError("records", got="no labels", expected="labels int64 (n,)", fix=fix)
    if goal.label_free and goal.reference is None:
        goal = dataclasses.replace(goal, reference=names[-1])
    if goal.reference is not None and goal.reference not in (*names, ENSEMBLE):
        raise DataError(
            "plan `reference`", got=goal.reference, expected=f"one of {', '.join(names)}, or {ENSEMBLE}"
        )
    return goal


# More corners than this tell a reader nothing; the first and the last are always there.
FRONTIER_ROWS = 200
# The search and the served core are the same arithmetic; so many rows are replayed to see that they are.
REPLAYED_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class FrontierRow:
    """One plan nothing beats in both accuracy and cost, on the search part.

    Args:
        members: names in plan order.
        stages: the same by stage.
        thresholds: one per stage but the last.
        combine: combine mode.
        score: score.
        accuracy: share of rows right; of rows that agree with the reference where labels are not looked at.
        mean_cost: per row.
        worst_cost: of a row that goes through every stage.
    """

    members: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    thresholds: tuple[float, ...]
    combine: str
    score: str
    accuracy: float
    mean_cost: float
    worst_cost: float


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """A plan with what it achieves.

    Args:
        spec: the plan, with `fit` filled in.
        accuracy: on the search part; agreement with the reference where labels are not looked at.
        accuracy_lower: lower bound of it from the certify part; None where nothing was certified.
        mean_cost: per row, on the search part.
        exit_share: per stage, on the search part.
        frontier: dearest first.
        pool: all members that were chosen from, with the temperatures and costs that were planned with.
        instead: why the reference itself had to be taken; None where it had not.
    """

    spec: CascadeSpec
    accuracy: float
    accuracy_lower: float | None
    mean_cost: float
    exit_share: tuple[float, ...]
    frontier: tuple[FrontierRow, ...]
    pool: tuple[Member, ...]
    instead: UnmetConstraint | None = None

    @property
    def worst_cost(self) -> float:
        """Cost of a row that goes through every stage."""
        return self.spec.worst_cost


@dataclass(frozen=True, kw_only=True)
class Infeasible:
    """No plan does what was asked.

    Args:
        best: the best reachable one.
        shortfall: why.
    """

    best: PlanResult
    shortfall: UnmetConstraint


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a plan is made of, and with which rows.

    Args:
        base: gives everything a plan has besides stages.
        records: all rows.
        split: which of them were used for what.
        trial: how the temperatures came about.
        goal: what was asked.
        combine: mode of the reference "ensemble".
    """

    base: CascadeSpec
    records: Records
    split: DatasetSplit
    trial: CalibrationResult
    goal: Goal
    combine: str


def result_from_decision(decision: Decision, part: RowSet, origin: Origin) -> PlanResult | Infeasible:
    """A plan, or the best reachable one, with its numbers on the search part.

    Args:
        decision: the choice and what is known of it.
        part: the search part.
        origin: what it was chosen from.
    """
    choice, table, base = decision.choice, part.table, origin.base
    outcome = answers_of(choice, table)
    counts = np.bincount(outcome.stage, minlength=len(choice.stages))
    share = tuple(float(count) / table.rows for count in counts)
    right = int(part.yardstick.right(outcome.label).sum())
    stages = spec_stages(choice, table.pool)
    spent = np.cumsum([stage.cost for stage in stages])
    mean_cost = float((counts * spent).sum()) / table.rows
    spec = dataclasses.replace(
        base, stages=stages, combine=choice.combine, score=choice.score, fit=None, fused_prefix=None
    )
    _check_by_replay(spec, outcome.label, origin)
    known = not origin.goal.label_free
    fit = Fit(
        data_sha256=str(origin.records.meta.get("data_sha256", "")),
        rows=table.rows,
        split=str(origin.records.meta.get("data", "")),
        target=origin.goal.text,
        accuracy=right / table.rows if known else None,
        accuracy_ci95=clopper_pearson(right, table.rows) if known else None,
        exit_share=share,
        mean_cost=mean_cost,
        extra=_extra(decision, origin, agreement=right / table.rows),
    )
    planned = PlanResult(
        spec=dataclasses.replace(spec, fit=fit),
        accuracy=right / table.rows,
        accuracy_lower=decision.accuracy_lower,
        mean_cost=mean_cost,
        exit_share=share,
        frontier=frontier_rows(decision.searched, table.pool),
        pool=table.pool,
        instead=decision.instead,
    )
    return planned if decision.shortfall is None else Infeasible(best=planned, shortfall=decision.shortfall)


def spec_stages(choice: CandidatePlan, pool: Sequence[Member]) -> tuple[Stage, ...]:
    """The stages of a choice as cascade.json has them."""
    return tuple(
        Stage(members=tuple(pool[place] for place in group), threshold=threshold)
        for group, threshold in zip(choice.stages, (*choice.thresholds, None), strict=True)
    )


def frontier_rows(searched: SearchResult, pool: Sequence[Member]) -> tuple[FrontierRow, ...]:
    """The frontier of being right, thinned evenly where it is long."""
    frontier = searched.frontiers[RIGHT]
    places = np.unique(np.linspace(0, len(frontier) - 1, FRONTIER_ROWS).round().astype(int)) if frontier else ()
    return tuple(_row(frontier[place], searched, pool) for place in places)


def _row(found: Found, searched: SearchResult, pool: Sequence[Member]) -> FrontierRow:
    choice = found.choice
    stages = tuple(tuple(pool[place].name for place in group) for group in choice.stages)
    return FrontierRow(
        members=tuple(name for stage in stages for name in stage),
        stages=stages,
        thresholds=choice.thresholds,
        combine=choice.combine,
        score=choice.score,
        accuracy=found.right / searched.rows,
        mean_cost=searched.mean_cost(found),
        worst_cost=float(sum(pool[place].cost for place in choice.members)),
    )


def _extra(decision: Decision, origin: Origin, *, agreement: float) -> dict[str, Any]:
    split = origin.split
    extra: dict[str, Any] = {
        "split": {
            "by": "hash of id and seed",
            "seed": split.seed,
            "search_rows": len(split.search),
            "certify_rows": len(split.certify),
        },
        "calibration": origin.trial.facts(),
        # Of which recordings the rows are, so that `evaluate` knows the rest of one from the whole.
        **kept_origin(origin.records.meta),
    }
    recorded_with = _recorded_with(origin.records.meta)
    if recorded_with:
        extra["recorded_with"] = recorded_with
    if origin.goal.reference is not None:
        extra["reference"] = {"name": origin.goal.reference, "combine": origin.combine}
    if decision.guarantee is not None:
        extra["guarantee"] = decision.guarantee
    if origin.goal.label_free:
        extra["agreement"] = {"reference": origin.goal.reference, "share": agreement}
    return extra


def _recorded_with(meta: Mapping[str, Any]) -> dict[str, Any]:
    """On what the scores were computed, and which members need flags of a processor to give them again."""
    found = dict(meta.get("recorded_with", {}))
    members = meta.get("members", {})
    flags = {name: one["processor_flags"] for name, one in members.items() if one.get("processor_flags")}
    return {**found, "processor_flags": flags} if flags else found


def _check_by_replay(spec: CascadeSpec, label: npt.NDArray[np.int32], origin: Origin) -> None:
    few = origin.split.search[:REPLAYED_ROWS]
    done = replay(spec, records_of_rows(origin.records, few, spec.members))
    assert np.array_equal(done.label, label[: len(few)]), f"{spec.name}: replay answers otherwise than the search"
