"""Exhaustive search: every committee of a table, every tuple of thresholds on a grid that includes "never".

The result is the exact optimum of that grid. It does not depend on the goal: a frontier holds the best plan for
every accuracy and every budget at once, and ties go to the lower cost, then the lower worst cost, fewer members,
and names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.planner.candidates import CandidatePlan, Ordering, candidate_from_ordering
from orchestrator.planner.goal import QUANTILES
from orchestrator.planner.grid import (
    Bins,
    bins_from_scores,
    thresholds_from_scores,
    ticks_from_costs,
    tuples_allowed,
    tuples_of,
)
from orchestrator.planner.subset_table import Labels, Subset, SubsetTable, mode_of
from orchestrator.progress import Advance, no_advance
from orchestrator.spec import CascadeSpec

# label int32 (n,) -> bool (n,): which answers are of value.
Value = Callable[[Labels], npt.NDArray[np.bool_]]
RIGHT = "right"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plan with what it achieves on the rows it was chosen on.

    Args:
        spec: the plan.
        accuracy: share of rows right; None where that was not asked.
        mean_cost: per row.
        exit_share: per stage.
    """

    spec: CascadeSpec
    accuracy: float | None
    mean_cost: float
    exit_share: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One plan of a frontier.

    Args:
        choice: the plan.
        right: rows of value, of those searched.
        ticks: total cost in whole numbers; divide by `Searched.ticks_per_cost` and by rows.
    """

    choice: CandidatePlan
    right: int
    ticks: float


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Frontiers over the same plans.

    Args:
        frontiers: kind of value -> its frontier, most rows of value first.
        rows: rows searched.
        ticks_per_cost: whole numbers per unit of cost and row.
    """

    frontiers: dict[str, tuple[Found, ...]]
    rows: int
    ticks_per_cost: float

    def mean_cost(self, found: Found) -> float:
        """A plan's cost per row."""
        return found.ticks / self.ticks_per_cost / self.rows

    def within(self, frontier: Sequence[Found], *, max_mean_cost: float) -> Found | None:
        """The plan with the most rows of value at that mean cost per row; None if all cost more."""
        most = max_mean_cost * self.rows * self.ticks_per_cost * (1 + 1e-12)
        return next((found for found in frontier if found.ticks <= most), None)

    def reaching(self, frontier: Sequence[Found], *, right: float) -> Found | None:
        """The cheapest plan with that many rows of value; None if none has."""
        good = [found for found in frontier if found.right >= right - 1e-9 * self.rows]
        return good[-1] if good else None


def search(
    table: SubsetTable,
    chains: Sequence[Ordering],
    *,
    values: Mapping[str, Value],
    max_stages: int = 4,
    quantiles: int = QUANTILES,
    advance: Advance = no_advance,
) -> SearchResult:
    """Frontiers of all chains and all their thresholds.

    Args:
        table: n rows.
        chains: as `chains_of` lists them; the first wins a tie.
        values: kinds of value to find a frontier for, such as being right.
        max_stages: longest cascade wanted.
        quantiles: thresholds tried per stage, besides "never".
        advance: told how many chains are done.
    """
    scan = _Scan(table, values, quantiles=quantiles, max_stages=max_stages)
    frontiers = {kind: Frontier(table.rows) for kind in values}
    for number, chain in enumerate(chains):
        totals, cost, allowed = scan.tuples(chain)
        for kind, total in zip(values, totals, strict=True):
            frontiers[kind].add(number, total, cost, allowed)
        advance(1)
    return SearchResult(
        frontiers={
            kind: tuple(scan.found(chains[corner.chain], corner) for corner in frontier.corners())
            for kind, frontier in frontiers.items()
        },
        rows=table.rows,
        ticks_per_cost=scan.scale,
    )


class _Scan:
    """Looks at one chain after another; keeps grids, bins and values of subsets that chains share."""

    def __init__(
        self, table: SubsetTable, values: Mapping[str, Value], *, quantiles: int, max_stages: int
    ) -> None:
        self._table = table
        self._values = values
        self._quantiles = quantiles
        self._max_stages = max_stages
        self.ticks, self.scale = ticks_from_costs(table.costs, table.rows)
        self._grids: dict[tuple[str, str, Subset, Subset], tuple[npt.NDArray[np.float32], Bins]] = {}
        self._of_value: dict[tuple[str, str, Subset], npt.NDArray[np.int8]] = {}

    def tuples(
        self, chain: Ordering
    ) -> tuple[list[npt.NDArray[np.int32]], npt.NDArray[np.float64], npt.NDArray[np.bool_] | None]:
        """Rows of value per kind, total cost, and which tuples are allowed; all (q_0 + 1, q_1 + 1, ...)."""
        stages = range(len(chain.groups))
        grids = [self._grid(chain, stage) for stage in stages[:-1]]
        sizes = [len(thresholds) for thresholds, _ in grids]
        totals, cost = tuples_of(
            [bins for _, bins in grids],
            sizes,
            values=[
                [self._value(kind, chain.combine, chain.unit(stage)) for stage in stages] for kind in self._values
            ],
            costs=[float(sum(self.ticks[place] for place in group)) for group in chain.groups],
        )
        allowed = tuples_allowed(sizes, max_stages=self._max_stages, may_never_exit=chain.may_never_exit)
        return totals, cost, allowed

    def found(self, chain: Ordering, corner: Corner) -> Found:
        """A corner with its thresholds spelled out."""
        grids = [self._grid(chain, stage)[0] for stage in range(len(chain.groups) - 1)]
        places = np.unravel_index(corner.cell, tuple(len(grid) + 1 for grid in grids)) if grids else ()
        thresholds = [
            None if place == len(grid) else float(grid[place]) for grid, place in zip(grids, places, strict=True)
        ]
        choice = candidate_from_ordering(chain, thresholds)
        return Found(choice=choice, right=corner.right, ticks=corner.ticks)

    def _grid(self, chain: Ordering, stage: int) -> tuple[npt.NDArray[np.float32], Bins]:
        if not chain.may_exit(stage):
            return np.zeros(0, np.float32), np.zeros(self._table.rows, np.int16)
        asked, unit = chain.asked(stage), chain.unit(stage)
        # Only agreement looks at who else was asked.
        key = (mode_of(chain.combine), chain.score, unit, asked if chain.score == "agreement" else unit)
        if key not in self._grids:
            score = self._table.score(chain.combine, chain.score, asked=asked, unit=unit)
            thresholds = thresholds_from_scores(score, self._quantiles)
            self._grids[key] = thresholds, bins_from_scores(score, thresholds)
        return self._grids[key]

    def _value(self, kind: str, combine: str, unit: Subset) -> npt.NDArray[np.int8]:
        key = (kind, mode_of(combine), unit)
        if key not in self._of_value:
            self._of_value[key] = self._values[kind](self._table.label(combine, unit)).astype(np.int8)
        return self._of_value[key]


@dataclass(frozen=True, kw_only=True)
class Corner:
    """One plan of the frontier.

    Args:
        chain: which chain, by its place in the list that was searched.
        cell: which tuple of thresholds, as a flat index.
        right: rows of value.
        ticks: total cost.
    """

    chain: int
    cell: int
    right: int
    ticks: float


class Frontier:
    """Grows by one chain after another. Of equal plans the first one stays, so the order of chains breaks ties.

    Args:
        rows: n, the most there can be right.
    """

    def __init__(self, rows: int) -> None:
        # best[r]: least cost of a plan with r right answers or more.
        self._best: npt.NDArray[np.float64] = np.full(rows + 1, np.inf)
        self._parts: list[tuple[int, npt.NDArray[np.intp], npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []

    def add(
        self,
        chain: int,
        right: npt.NDArray[np.int32],
        ticks: npt.NDArray[np.float64],
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Takes in all tuples of one chain.

        Args:
            chain: its place in the list.
            right: int32, any shape.
            ticks: float64, the same shape.
            allowed: bool, the same shape; None allows all.
        """
        flat_right, flat_ticks = right.reshape(-1), ticks.reshape(-1)
        better = flat_ticks < self._best[flat_right]
        if allowed is not None:
            better &= allowed.reshape(-1)
        cells = np.flatnonzero(better)
        if not len(cells):
            return
        found, cost = flat_right[cells].astype(np.int64), flat_ticks[cells]
        # Of equal tuples the one with the later thresholds: rows never seen then get the more careful answer.
        order = np.lexsort((-cells, cost, -found))
        cells, found, cost = cells[order], found[order], cost[order]
        least = np.minimum.accumulate(cost)
        kept = np.append(True, cost[1:] < least[:-1])
        cells, found, cost = cells[kept], found[kept], cost[kept]
        self._parts.append((chain, cells, found, cost))
        line = np.full(len(self._best), np.inf)
        line[found] = cost
        np.minimum(self._best, np.minimum.accumulate(line[::-1])[::-1], out=self._best)

    def corners(self) -> list[Corner]:
        """The frontier, most right answers first, so dearest first."""
        after = np.append(self._best[1:], np.inf)
        found = [
            Corner(chain=chain, cell=int(cell), right=int(right), ticks=float(cost))
            for chain, cells, rights, costs in self._parts
            for cell, right, cost in zip(cells, rights, costs, strict=True)
            if cost == self._best[right] and cost < after[right]
        ]
        return sorted(found, key=lambda corner: -corner.right)
