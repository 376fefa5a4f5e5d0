"""The plans nothing beats: for every number of right answers, the cheapest plan that has at least as many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
