"""What a plan is predicted to take by the clock: per row and stage, how much it carries, and where more stops."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.errors import DataError
from orchestrator.planner.candidates import CandidatePlan, SubsetTable, TableAnswers, answers_of
from orchestrator.planner.certify import decide
from orchestrator.planner.clock import ClockPricing
from orchestrator.planner.goal import Goal, MeasuredRows, SearchOptions
from orchestrator.planner.intervals import paired_difference
from orchestrator.planner.pricing import MOST_LOAD
from orchestrator.spec import CascadeSpec, Member, Stage

# Share of the rows that cost no more than the high figure beside the mean.
HIGH = 0.99
# A larger batch is worth it while time per row falls by more than this in all.
WORTH = 0.1


@dataclass(frozen=True, kw_only=True)
class PredictedStage:
    """One stage.

    Args:
        reach: share of rows that get to it.
        batch: mean rows of a call.
        ms: per row that gets to it, the runtime's part included.
        load: share of what its busiest member can carry that is used; offline the share of all time.
    """

    members: tuple[str, ...]
    reach: float
    batch: float
    ms: float
    load: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A plan by the clock.

    Args:
        load: how rows come, in words.
        ms: mean per row.
        high_ms: what all but 1 % of the rows take at most.
        rows_per_s: offline what is answered, one call after another; online the rate.
        busiest: online the load of what is busiest, the cores or the runtime included; None offline.
        knee: online the most rows per second, at a load of 0.8; offline the batch beyond which time per row falls
            by less than a tenth.
    """

    load: str
    ms: float
    high_ms: float
    rows_per_s: float
    stages: tuple[PredictedStage, ...]
    busiest: float | None
    knee: float


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """The best plan of fewer stages, found and certified in the same way.

    Args:
        accuracy: on the search part.
        ms, rows_per_s: as in `Prediction`.
        difference: accuracy of the chosen plan minus this one's, paired, on the certify part where there is one.
    """

    stages: tuple[tuple[str, ...], ...]
    thresholds: tuple[float, ...]
    accuracy: float
    ms: float
    rows_per_s: float
    difference: float
    difference_ci95: tuple[float, float]


def predict(plan: CandidatePlan, table: SubsetTable, pricing: ClockPricing) -> Prediction:
    """The prediction of a plan from where the rows of a table leave it."""
    answers, rows = answers_of(plan, table), table.rows
    totals = _stage_totals(plan, table, answers)
    mean = answers.mean_cost
    each = [total / max(count, 1) for total, count in zip(totals, answers.reached, strict=True)]
    spent = np.cumsum(each)
    last = int(np.searchsorted(np.cumsum(answers.exit_share), HIGH - 1e-12))
    loads = table.prices.loads
    stages = []
    for group, count, ms in zip(plan.stages, answers.reached, each, strict=True):
        share = count / rows
        used = share * ms / mean if mean else 0.0
        if loads is not None:
            used = share * float(loads.members[list(group)].max())
        stages.append(
            PredictedStage(
                members=tuple(table.pool[place].name for place in group),
                reach=share,
                batch=pricing.batch(table.pool[group[0]].name, share),
                ms=ms,
                load=used,
            )
        )
    busiest = None if loads is None else table.prices.load(plan.stages, answers.reached)
    rate = pricing.load.rate
    return Prediction(
        load=pricing.load.text,
        ms=mean,
        high_ms=float(spent[min(last, len(spent) - 1)]),
        rows_per_s=(1000 / mean if mean else 0.0) if rate is None else rate,
        stages=tuple(stages),
        busiest=busiest,
        knee=_knee_batch(plan, table, pricing) if rate is None else rate * MOST_LOAD / (busiest or MOST_LOAD),
    )


def _stage_totals(plan: CandidatePlan, table: SubsetTable, answers: TableAnswers) -> list[float]:
    """Milliseconds that each stage takes for all rows."""
    prices = table.prices
    return [
        float(prices.stage(group, count, place=place)) / prices.scale
        for place, (group, count) in enumerate(zip(plan.stages, answers.reached, strict=True))
    ]


def _knee_batch(plan: CandidatePlan, table: SubsetTable, pricing: ClockPricing) -> int:
    """The smallest measured batch with which a row takes at most a tenth more than with the best one."""
    figures = {}
    for batch in sorted({call.batch for one in pricing.timing.members for call in one.calls}):
        try:
            other = dataclasses.replace(pricing, load=dataclasses.replace(pricing.load, batch=batch))
        except DataError:
            # Beyond what was measured of some member.
            continue
        figures[batch] = answers_of(plan, dataclasses.replace(table, pricing=other)).mean_cost
    best = min(figures.values())
    return next(batch for batch, ms in figures.items() if ms <= best * (1 + WORTH))


def alternatives_of(
    plan: CandidatePlan,
    search_rows: MeasuredRows,
    certify_rows: MeasuredRows,
    goal: Goal,
    options: SearchOptions,
    pricing: ClockPricing,
) -> tuple[Alternative, ...]:
    """The best plans of one stage and of at most two that do what was asked, where the plan has more."""
    judged = certify_rows if certify_rows.table.rows else search_rows
    right = judged.right(answers_of(plan, judged.table).label)
    found: list[CandidatePlan] = []
    alternatives = []
    for most in range(1, min(3, len(plan.stages), goal.max_stages + 1)):
        decision = decide(search_rows, certify_rows, dataclasses.replace(goal, max_stages=most), options)
        other, table = decision.plan, search_rows.table
        if decision.unmet is not None or other in found:
            continue
        found.append(other)
        said, answers = predict(other, table, pricing), answers_of(other, table)
        difference, interval = paired_difference(right, judged.right(answers_of(other, judged.table).label))
        alternatives.append(
            Alternative(
                stages=tuple(stage.members for stage in said.stages),
                thresholds=other.thresholds,
                accuracy=float(search_rows.right(answers.label).mean()),
                ms=said.ms,
                rows_per_s=said.rows_per_s if pricing.load.rate is None else said.knee,
                difference=difference,
                difference_ci95=interval,
            )
        )
    return tuple(alternatives)


def priced(spec: CascadeSpec, plan: CandidatePlan, table: SubsetTable) -> CascadeSpec:
    """The plan whose members cost, per row, what they take in the batches that their stages see.

    The runtime's part of a stage is shared among its members.
    """
    answers, prices = answers_of(plan, table), table.prices
    stages = []
    for place, (stage, group, count) in enumerate(zip(spec.stages, plan.stages, answers.reached, strict=True)):
        if not count:
            stages.append(stage)
            continue
        alone = [float(prices.members[member][count]) for member in group]
        part = (float(prices.stage(group, count, place=place)) - sum(alone)) / len(group)
        costs = [(own + part) / prices.scale / count for own in alone]
        stages.append(_with_costs(stage, costs))
    return dataclasses.replace(spec, stages=tuple(stages))


def _with_costs(stage: Stage, costs: Sequence[float]) -> Stage:
    members: list[Member] = [
        dataclasses.replace(member, cost=cost) for member, cost in zip(stage.members, costs, strict=True)
    ]
    return dataclasses.replace(stage, members=tuple(members))


def facts_of(prediction: Prediction, alternatives: Sequence[Alternative], pricing: ClockPricing) -> dict[str, Any]:
    """As JSON values, for a plan's `fit.extra`."""
    timing = pricing.timing
    return {
        **dataclasses.asdict(prediction),
        "asked": timing.asked,
        "machine": dataclasses.asdict(timing.machine),
        "alternatives": [dataclasses.asdict(one) for one in alternatives],
    }
