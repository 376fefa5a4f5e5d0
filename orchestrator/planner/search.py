"""Exhaustive search: every committee of a table, every tuple of thresholds on a grid that includes "never".

The result is the exact optimum of that grid. It does not depend on the goal: a frontier holds the best plan for
every accuracy and every budget at once, and ties go to the lower cost, then the lower worst cost, fewer members,
and names.

Correct rows and cost of every tuple of thresholds of one ordering are counted at once. A row's score at a stage
matters only through its *bin*: how many of the stage's thresholds it reaches. This is the exit rule in another
form, for speed: a row exits at threshold j where j < bin, and a property test holds that to `exit_rule.exits`.
With V_i 1 where a row is correct if it is answered at stage i and 0 where it is not, and "deferred by j_1..j_i"
meaning that its first i bins are at most j_1..j_i, the number of correct rows telescopes:

    correct(j) = sum V_0 + sum over i of the sum of (V_i - V_i-1) over the rows deferred by j_1..j_i
    cost(j)    = c_0(n)  + sum over i of c_i(the number of rows deferred by j_1..j_i), see pricing.py

Each inner sum is a cumulative sum, along every axis, of a joint histogram of i bins. So 101 thresholds at each of
three stages, a million tuples, cost one pass over the rows and a few over a million cells, exactly.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.planner.candidates import (
    COST_TOLERANCE,
    CandidatePlan,
    Labels,
    Ordering,
    SubsetTable,
    answers_of,
    candidate_from_ordering,
    mode_of,
)
from orchestrator.planner.pricing import MOST_LOAD, Subset
from orchestrator.progress import Advance, no_advance
from orchestrator.spec import Gear

# Says of labels, int32 (n,), which ones count as correct, bool (n,).
Measure = Callable[[Labels], npt.NDArray[np.bool_]]
# Key of the frontier whose measure is being right.
RIGHT = "right"
# Thresholds tried per stage, besides "never".
QUANTILES = 100
Bins = npt.NDArray[np.int16]
Counts = npt.NDArray[np.int32]
# Whole numbers per unit of load.
LOAD_SCALE = float(1 << 32)
# Kernel rounding moves scores by about 1e-6 with the batch size; a threshold this far from any score flips no row.
MIN_GAP = 2e-5


def thresholds_from_scores(score: npt.NDArray[np.float32], quantiles: int) -> npt.NDArray[np.float32]:
    """Thresholds near that many quantiles of a score, float32 (n,), each in the middle of a gap no score lies in.

    They are float32 (q,), ascending; fewer come back where gaps are few.
    """
    places = middles(score)
    if not len(places):
        return np.zeros(0, np.float32)
    wanted = np.quantile(score.astype(np.float64), np.linspace(0, 1, quantiles))
    above = np.clip(np.searchsorted(places, wanted), 0, len(places) - 1)
    below = np.maximum(above - 1, 0)
    nearest = np.where(wanted - places[below] < places[above] - wanted, below, above)
    found: npt.NDArray[np.float32] = places[np.unique(nearest)].astype(np.float32)
    return found


def middles(score: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The middles of all gaps between neighbouring scores that are wide enough for a threshold, ascending."""
    ordered = np.unique(score.astype(np.float64))
    gaps = np.flatnonzero(np.diff(ordered) >= MIN_GAP)
    return np.asarray((ordered[gaps] + ordered[gaps + 1]) / 2, np.float64)


def bins_from_scores(score: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float32]) -> Bins:
    """How many thresholds each row reaches, int16 (n,): it exits at threshold j where j < bin."""
    return np.searchsorted(thresholds, score, side="right").astype(np.int16)


def totals_of_tuples(
    bins: Sequence[Bins], sizes: Sequence[int], *, correct: Sequence[Sequence[npt.NDArray[np.int8]]]
) -> tuple[list[Counts], list[Counts]]:
    """Totals of every tuple of thresholds.

    Args:
        bins: int16 (n,) per group but the last.
        sizes: thresholds per group but the last, q_i; index q_i stands for never.
        correct: per measure, int8 (n,) per group: 1 where the group's answer counts as correct.

    Returns:
        int32 (q_0 + 1, q_1 + 1, ...) per measure: correct rows; and per group i but the first, int32
        (q_0 + 1, ..., q_i-1 + 1): the rows that reach it.
    """
    totals: list[Any] = [np.int32(groups[0].sum(dtype=np.int64)) for groups in correct]
    reached: list[Counts] = []
    flat = np.zeros(len(correct[0][0]), np.intp)
    shape: tuple[int, ...] = ()
    for place, (part, size) in enumerate(zip(bins, sizes, strict=True)):
        shape = (*shape, size + 1)
        flat = flat * (size + 1) + part
        for measure, groups in enumerate(correct):
            change = (groups[place + 1] - groups[place]).astype(np.float64)
            moved = _below(np.bincount(flat, weights=change, minlength=math.prod(shape)), shape)
            totals[measure] = totals[measure][..., None] + moved
        reached.append(_below(np.bincount(flat, minlength=math.prod(shape)), shape))
    return [np.asarray(total, np.int32) for total in totals], reached


def _below(histogram: npt.NDArray[Any], shape: tuple[int, ...]) -> Counts:
    """Cumulative sums along every axis, int32."""
    cells = histogram.astype(np.int32).reshape(shape)
    for axis in range(len(shape)):
        np.cumsum(cells, axis=axis, out=cells)
    return cells


def tuples_allowed(sizes: Sequence[int], *, max_stages: int, may_never_exit: bool) -> npt.NDArray[np.bool_] | None:
    """Which tuples make at most that many stages; None where all do.

    `sizes` are thresholds per group but the last, and `may_never_exit` says whether index q_i, never, is a choice.
    """
    if may_never_exit and len(sizes) < max_stages:
        return None
    shape = tuple(size + 1 for size in sizes)
    axes = zip(np.indices(shape, sparse=True), sizes, strict=True)
    exits = sum(((place < size).astype(np.int8) for place, size in axes), np.int8(0))
    return np.asarray(exits < max_stages if may_never_exit else exits == len(sizes))


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Frontiers over the same plans.

    Args:
        frontiers: measure -> the plans nothing beats by it, most correct rows first, so dearest first.
        rows: rows searched.
        cost_scale: whole numbers per unit of cost, see `CandidatePlan.integer_cost`.
    """

    frontiers: dict[str, tuple[CandidatePlan, ...]]
    rows: int
    cost_scale: float

    def mean_cost(self, plan: CandidatePlan) -> float:
        """The cost per row of a plan of a frontier."""
        return plan.integer_cost / self.cost_scale / self.rows

    def best_at_cost(self, frontier: Sequence[CandidatePlan], *, max_mean_cost: float) -> CandidatePlan | None:
        """The plan with the most correct rows at that mean cost per row; None if all cost more."""
        most = max_mean_cost * self.rows * self.cost_scale * (1 + COST_TOLERANCE)
        return next((plan for plan in frontier if plan.integer_cost <= most), None)

    def cheapest_at_accuracy(self, frontier: Sequence[CandidatePlan], *, correct: float) -> CandidatePlan | None:
        """The cheapest plan with that many correct rows; None if none has."""
        good = [plan for plan in frontier if plan.correct >= correct - 1e-9 * self.rows]
        return good[-1] if good else None


def search(
    table: SubsetTable,
    orderings: Sequence[Ordering],
    *,
    measures: Mapping[str, Measure],
    max_stages: int = 4,
    quantiles: int = QUANTILES,
    least_load: bool = False,
    advance: Advance = no_advance,
) -> SearchResult:
    """Frontiers, one per measure, of all orderings and all their thresholds; of equal plans the first one wins.

    Plans that cannot carry the rate they are priced for are left out. With `least_load` all are looked at, and
    their cost is their load.
    """
    scan = _Scan(table, measures, quantiles=quantiles, max_stages=max_stages, least_load=least_load)
    frontiers = {key: Frontier(table.rows) for key in measures}
    for number, ordering in enumerate(orderings):
        totals, cost, allowed = scan.tuples(ordering)
        for key, total in zip(measures, totals, strict=True):
            frontiers[key].add(number, total, cost, allowed)
        advance(1)
    return SearchResult(
        frontiers={
            key: tuple(
                scan.candidate(orderings[number], cell, correct=correct, integer_cost=cost)
                for number, cell, correct, cost in frontier.corners()
            )
            for key, frontier in frontiers.items()
        },
        rows=table.rows,
        cost_scale=scan.cost_scale,
    )


class Frontier:
    """For every number of correct rows, the cheapest plan that has at least as many.

    It grows by one ordering after another. Of equal plans the first one stays, so the order of orderings breaks
    ties. No plan has more than `rows` correct rows.
    """

    def __init__(self, rows: int) -> None:
        # least[r]: least cost of a plan with r correct rows or more.
        self._least: npt.NDArray[np.float64] = np.full(rows + 1, np.inf)
        self._parts: list[tuple[int, npt.NDArray[np.intp], npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []

    def add(
        self,
        ordering: int,
        correct: npt.NDArray[np.int32],
        cost: npt.NDArray[np.float64],
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Takes in all tuples of thresholds of the ordering at that place of the list.

        `correct`, int32, `cost`, float64 of whole numbers, and `allowed` have the same shape; None allows all.
        """
        flat_correct, flat_cost = correct.reshape(-1), cost.reshape(-1)
        better = flat_cost < self._least[flat_correct]
        if allowed is not None:
            better &= allowed.reshape(-1)
        cells = np.flatnonzero(better)
        if not len(cells):
            return
        found, costs = flat_correct[cells].astype(np.int64), flat_cost[cells]
        # Of equal tuples the one with the later thresholds: rows never seen then get the more careful answer.
        order = np.lexsort((-cells, costs, -found))
        cells, found, costs = cells[order], found[order], costs[order]
        least = np.minimum.accumulate(costs)
        kept = np.append(True, costs[1:] < least[:-1])
        cells, found, costs = cells[kept], found[kept], costs[kept]
        self._parts.append((ordering, cells, found, costs))
        line = np.full(len(self._least), np.inf)
        line[found] = costs
        np.minimum(self._least, np.minimum.accumulate(line[::-1])[::-1], out=self._least)

    def corners(self) -> list[tuple[int, int, int, float]]:
        """The frontier, dearest plan first: ordering, flat index of its thresholds, correct rows, cost."""
        after = np.append(self._least[1:], np.inf)
        corners = [
            (ordering, int(cell), int(correct), float(cost))
            for ordering, cells, found, costs in self._parts
            for cell, correct, cost in zip(cells, found, costs, strict=True)
            if cost == self._least[correct] and cost < after[correct]
        ]
        return sorted(corners, key=lambda corner: -corner[2])


class _Scan:
    """Looks at one ordering after another; keeps grids, bins and correct rows of subsets that orderings share."""

    def __init__(
        self,
        table: SubsetTable,
        measures: Mapping[str, Measure],
        *,
        quantiles: int,
        max_stages: int,
        least_load: bool,
    ) -> None:
        self._table = table
        self._measures = measures
        self._quantiles = quantiles
        self._max_stages = max_stages
        self._prices = table.prices
        self._least_load = least_load
        # A load is a mean over the rows already.
        self.cost_scale = LOAD_SCALE / table.rows if least_load else table.prices.scale
        self._grids: dict[tuple[str, str, Subset, Subset], tuple[npt.NDArray[np.float32], Bins]] = {}
        self._measured: dict[tuple[str, str, Subset], npt.NDArray[np.int8]] = {}

    def tuples(
        self, ordering: Ordering
    ) -> tuple[list[npt.NDArray[np.int32]], npt.NDArray[np.float64], npt.NDArray[np.bool_] | None]:
        """Correct rows per measure, total cost, and which tuples are allowed; all (q_0 + 1, q_1 + 1, ...)."""
        stages = range(len(ordering.groups))
        grids = [self._grid(ordering, stage) for stage in stages[:-1]]
        sizes = [len(thresholds) for thresholds, _ in grids]
        totals, reached = totals_of_tuples(
            [bins for _, bins in grids],
            sizes,
            correct=[
                [self._correct(key, ordering.combine, ordering.subset(stage)) for stage in stages]
                for key in self._measures
            ],
        )
        allowed = tuples_allowed(sizes, max_stages=self._max_stages, may_never_exit=ordering.may_never_exit)
        if self._prices.loads is None:
            return totals, self._prices.cells(ordering.groups, reached), allowed
        load = self._prices.load_cells(ordering.groups, reached)
        if self._least_load:
            return totals, np.round(load * LOAD_SCALE), allowed
        carried = load <= MOST_LOAD
        allowed = carried if allowed is None else allowed & carried
        return totals, self._prices.cells(ordering.groups, reached), allowed

    def candidate(self, ordering: Ordering, cell: int, *, correct: int, integer_cost: float) -> CandidatePlan:
        """The plan of a tuple of thresholds, given by its flat index."""
        grids = [self._grid(ordering, stage)[0] for stage in range(len(ordering.groups) - 1)]
        places = np.unravel_index(cell, tuple(len(grid) + 1 for grid in grids)) if grids else ()
        thresholds = [
            None if place == len(grid) else float(grid[place]) for grid, place in zip(grids, places, strict=True)
        ]
        return candidate_from_ordering(ordering, thresholds, correct=correct, integer_cost=integer_cost)

    def _grid(self, ordering: Ordering, stage: int) -> tuple[npt.NDArray[np.float32], Bins]:
        if not ordering.may_exit(stage):
            return np.zeros(0, np.float32), np.zeros(self._table.rows, np.int16)
        asked, subset = ordering.asked(stage), ordering.subset(stage)
        # Only agreement looks at who else was asked.
        others = asked if ordering.score == "agreement" else subset
        key = (mode_of(ordering.combine), ordering.score, subset, others)
        if key not in self._grids:
            score = self._table.score(ordering.combine, ordering.score, asked=asked, subset=subset)
            thresholds = thresholds_from_scores(score, self._quantiles)
            self._grids[key] = thresholds, bins_from_scores(score, thresholds)
        return self._grids[key]

    def _correct(self, measure: str, combine: str, subset: Subset) -> npt.NDArray[np.int8]:
        key = (measure, mode_of(combine), subset)
        if key not in self._measured:
            label = self._table.label(combine, subset)
            self._measured[key] = self._measures[measure](label).astype(np.int8)
        return self._measured[key]


def gears_of(
    plan: CandidatePlan, table: SubsetTable, *, right: Measure, count: int, quantiles: int = QUANTILES
) -> tuple[Gear, ...]:
    """Up to `count` gears cheaper than the plan, evenly spaced in mean cost down to asking stage 0 only.

    Each has the plan's stages with the most accurate tuple of thresholds on the grid at its cost, on the table's
    rows. A frontier of few plans gives fewer gears; a plan of one stage has none.
    """
    if len(plan.stages) < 2 or count < 1:
        return ()
    ordering = Ordering(combine=plan.combine, score=plan.score, groups=plan.stages)
    result = search(table, [ordering], measures={RIGHT: right}, max_stages=len(plan.stages), quantiles=quantiles)
    same = [one for one in result.frontiers[RIGHT] if one.stages == plan.stages]
    lowest = dataclasses.replace(plan, thresholds=(0.0,) * len(plan.thresholds))
    top, floor = (answers_of(one, table).mean_cost for one in (plan, lowest))
    wanted = (top - (top - floor) * step / count for step in range(1, count))
    found = [result.best_at_cost(same, max_mean_cost=cost) for cost in wanted]
    # No score is below 0, so the last gear asks stage 0 only, whatever the grid can reach.
    found.append(lowest)
    gears: list[Gear] = []
    for one in found:
        gear = None if one is None else _gear(one, table, right)
        if gear is not None and gear.mean_cost < (gears[-1].mean_cost if gears else top):
            gears.append(gear)
    return tuple(gears)


def _gear(plan: CandidatePlan, table: SubsetTable, right: Measure) -> Gear:
    answers = answers_of(plan, table)
    return Gear(
        thresholds=plan.thresholds,
        mean_cost=answers.mean_cost,
        accuracy=float(right(answers.label).mean()),
        exit_share=answers.exit_share,
    )
