"""What a plan is predicted to take by the clock: per row and stage, how much it carries, and where more stops."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.errors import DataError, InfeasibleError
from orchestrator.planner.candidates import CandidatePlan, SubsetTable, answers_of
from orchestrator.planner.certify import decide
from orchestrator.planner.clock import ClockPricing, models_of_stages
from orchestrator.planner.goal import Goal, MeasuredRows, SearchOptions
from orchestrator.planner.intervals import paired_difference
from orchestrator.planner.pricing import MOST_LOAD, Prices, Subset
from orchestrator.planner.queueing import queue_stages, server_state, woken_stages
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
        answered_ms, answered_p99_ms: online from a row's arrival to its answer, on average and for all but 1 %,
            waiting included; None offline, and where rows would wait ever longer.
    """

    load: str
    ms: float
    high_ms: float
    rows_per_s: float
    stages: tuple[PredictedStage, ...]
    busiest: float | None
    knee: float
    answered_ms: float | None = None
    answered_p99_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class InProcessStages:
    """Leading stages whose members had better run in the cascade's own process.

    Args:
        stages: how many.
        ms: mean per row of the plan with that.
    """

    stages: int
    ms: float


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


@dataclass(frozen=True, kw_only=True)
class ReachedStages:
    """Stages of members of a pool, by their places in it, and how many rows get to each, all of them first."""

    pool: tuple[Member, ...]
    stages: tuple[Subset, ...]
    reached: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the rows that gets to each stage."""
        return tuple(count / max(self.reached[0], 1) for count in self.reached)

    def mean_cost(self, pricing: ClockPricing) -> float:
        """Cost per row."""
        return float(pricing.prices(self.pool, self.reached[0]).totals(self.stages, self.reached).sum()) / max(
            self.reached[0], 1
        )


def reached_stages(plan: CandidatePlan, table: SubsetTable) -> ReachedStages:
    """Where the rows of a table get to in a plan."""
    return ReachedStages(pool=table.pool, stages=plan.stages, reached=answers_of(plan, table).reached)


def predict(where: ReachedStages, pricing: ClockPricing) -> Prediction:
    """The prediction of a plan from where its rows get to."""
    prices, shares = pricing.prices(where.pool, where.reached[0]), where.shares
    totals = prices.totals(where.stages, where.reached)
    each = totals / np.maximum(where.reached, 1)
    mean = float(totals.sum()) / max(where.reached[0], 1)
    exits = np.subtract(shares, (*shares[1:], 0.0))
    last = min(int(np.searchsorted(np.cumsum(exits), HIGH - 1e-12)), len(each) - 1)
    loads = prices.loads
    stages = []
    for group, share, ms in zip(where.stages, shares, each, strict=True):
        used = share * ms / mean if mean else 0.0
        if loads is not None:
            used = share * float(loads.members[list(group)].max())
        stages.append(
            PredictedStage(
                members=tuple(where.pool[place].name for place in group),
                reach=share,
                batch=pricing.batch(where.pool[group[0]].name, share),
                ms=float(ms),
                load=used,
            )
        )
    made = Prediction(
        load=pricing.load.text,
        ms=mean,
        high_ms=float(np.cumsum(each)[last]),
        rows_per_s=1000 / mean if mean else 0.0,
        stages=tuple(stages),
        busiest=None,
        knee=0.0,
    )
    if loads is None:
        return dataclasses.replace(made, knee=_knee_batch(where, pricing))
    busiest = prices.load(where.stages, where.reached)
    models = models_of_stages([stage.members for stage in stages], pricing.deriving)
    queues = queue_stages(models, shares, pricing.timing)
    per_ms = loads.rate / pricing.load.servers / 1000
    state = server_state(woken_stages(queues, pricing.timing, per_ms=per_ms), per_ms=per_ms, cores=pricing.cores)
    return dataclasses.replace(
        made,
        rows_per_s=loads.rate,
        busiest=busiest,
        knee=loads.rate * MOST_LOAD / (busiest or MOST_LOAD),
        answered_ms=state.mean_ms if math.isfinite(state.mean_ms) else None,
        answered_p99_ms=state.p99_ms if math.isfinite(state.p99_ms) else None,
    )


def in_process_stages(where: ReachedStages, pricing: ClockPricing) -> InProcessStages | None:
    """How many leading stages to run in process, where that gains more than a tenth; see `Timing`."""
    timing = pricing.timing
    if not timing.first_in_process:
        return None
    first, later = (timing.added_by_runtime(place, in_process=True) for place in (0, 1))
    ours = dataclasses.replace(timing, first_stage=first, later_stage=later)
    here, called = (
        dataclasses.replace(pricing, timing=one)
        .prices(where.pool, where.reached[0])
        .totals(where.stages, where.reached)
        for one in (ours, timing)
    )
    means = [
        float(here[:count].sum() + called[count:].sum()) / where.reached[0] for count in range(len(called) + 1)
    ]
    best = int(np.argmin(means))
    return InProcessStages(stages=best, ms=means[best]) if means[best] < means[0] * (1 - WORTH) else None


def _knee_batch(where: ReachedStages, pricing: ClockPricing) -> int:
    """The smallest measured batch with which a row takes at most a tenth more than with the best one."""
    figures = {}
    for batch in sorted({call.batch for one in pricing.timing.members for call in one.calls}):
        try:
            other = dataclasses.replace(pricing, load=dataclasses.replace(pricing.load, batch=batch))
        except DataError:
            # Beyond what was measured of some member.
            continue
        figures[batch] = where.mean_cost(other)
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
        said, answers = predict(reached_stages(other, table), pricing), answers_of(other, table)
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


def priced(spec: CascadeSpec, where: ReachedStages, prices: Prices) -> CascadeSpec:
    """The plan whose members cost, per row, what they take in the batches that their stages see.

    The runtime's part of a stage is shared among its members.
    """
    stages = []
    for stage, group, count, whole in zip(
        spec.stages, where.stages, where.reached, prices.totals(where.stages, where.reached), strict=True
    ):
        if not count:
            stages.append(stage)
            continue
        alone = [float(prices.members[member][count]) / prices.scale for member in group]
        part = (whole - sum(alone)) / len(group)
        stages.append(_with_costs(stage, [float(own + part) / count for own in alone]))
    return dataclasses.replace(spec, stages=tuple(stages))


def predicted_plan(spec: CascadeSpec, pricing: ClockPricing) -> CascadeSpec:
    """A plan with the costs and the prediction of a clock, by the exits that it was fitted with.

    Raises:
        InfeasibleError: it cannot carry the rate.
    """
    assert spec.fit is not None
    places = np.cumsum([0, *(len(stage.members) for stage in spec.stages)]).tolist()
    counts = np.round(np.array(spec.fit.exit_share) * spec.fit.rows).astype(int)
    where = ReachedStages(
        pool=spec.members,
        stages=tuple(tuple(range(*between)) for between in itertools.pairwise(places)),
        reached=tuple(np.cumsum(counts[::-1])[::-1].tolist()),
    )
    facts = facts_of(where, pricing)
    if facts["busiest"] is not None and facts["busiest"] > MOST_LOAD:
        got, most = f"{facts['rows_per_s']:g} rows/s", f"{facts['knee']:.4g}, at {MOST_LOAD:.0%} of its capacity"
        raise InfeasibleError(f"plan {spec.name}", got=got, expected=f"at most {most}")
    fit = dataclasses.replace(spec.fit, mean_cost=facts["ms"], extra={**spec.fit.extra, "timing": facts})
    return dataclasses.replace(priced(spec, where, pricing.prices(where.pool, where.reached[0])), fit=fit)


def _with_costs(stage: Stage, costs: Sequence[float]) -> Stage:
    members: list[Member] = [
        dataclasses.replace(member, cost=cost) for member, cost in zip(stage.members, costs, strict=True)
    ]
    return dataclasses.replace(stage, members=tuple(members))


def facts_of(
    where: ReachedStages, pricing: ClockPricing, alternatives: Sequence[Alternative] = ()
) -> dict[str, Any]:
    """What is predicted, as JSON values, for a plan's `fit.extra`."""
    timing, here = pricing.timing, in_process_stages(where, pricing)
    return {
        **dataclasses.asdict(predict(where, pricing)),
        "in_process": None if here is None else dataclasses.asdict(here),
        "asked": timing.asked,
        "machine": dataclasses.asdict(timing.machine),
        "alternatives": [dataclasses.asdict(one) for one in alternatives],
    }
