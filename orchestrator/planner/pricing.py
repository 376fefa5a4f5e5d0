"""What plans cost: a sum over their members of a function of how many rows reach each.

In a unit per row that function is a product; in time it bends, since fewer rows make smaller batches. Either way
it is a table with an entry per number of rows, so the search stays exact: it counts rows and looks their cost up.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.spec import Member

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int32]
Subset = tuple[int, ...]
# Whole numbers up to here are exact in float64.
EXACT = float(1 << 53)
# Above this share of what a stage can carry queues grow without bound at every burst.
MOST_LOAD = 0.8


def integers_from_costs(costs: Sequence[float], rows: int) -> tuple[Floats, float]:
    """Costs as whole numbers, so that sums over so many rows are exact and equal costs are equal.

    They are float64 (m,), and come with how many of them make one unit of cost.
    """
    values = np.asarray(costs, np.float64)
    total = float(values.sum()) * max(rows, 1)
    for digits in range(10):
        scale = 10.0**digits
        if total * scale >= EXACT:
            break
        scaled = values * scale
        # Relative, so that nothing but 0 becomes 0.
        if np.all(np.abs(scaled - np.round(scaled)) <= 1e-9 * scaled):
            return np.round(scaled), scale
    scale = finest_scale(total)
    return np.round(values * scale), scale


def finest_scale(total: float) -> float:
    """How many whole numbers may make one unit of cost where so many units are the most of a sum.

    Rounding to them changes a cost by less than float64 does in a sum.
    """
    return 1.0 if total == 0 else 2.0 ** math.floor(math.log2(EXACT / total))


@dataclass(frozen=True, kw_only=True)
class Loads:
    """Shares of what can be carried that are used up where all n rows come, at the rate that is planned for.

    Args:
        rate: rows per second.
        members: float64 (m,), of a member's instances.
        member_cores: float64 (m,), of all cores.
        runtime: of the process that decides, by a first stage and by a later one.
        runtime_cores: the same of all cores.
        deriving: of each deriving model's instances.
        deriving_cores: of all cores.
    """

    rate: float
    members: Floats
    member_cores: Floats
    runtime: tuple[float, float]
    runtime_cores: tuple[float, float]
    deriving: tuple[float, ...] = ()
    deriving_cores: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DerivingPrice:
    """A model that makes tensors, asked about a row once: before the first stage with a member that reads them.

    Args:
        readers: places of these members in the pool.
        cost: float64 (n + 1,), total cost of asking it about 0 to n rows.
    """

    readers: frozenset[int]
    cost: Floats


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What stages cost, n rows in all, in whole numbers.

    Args:
        members: float64 (m, n + 1), total cost of asking a member of the pool about 0 to n of the rows.
        scale: whole numbers per unit of cost.
        first: float64 (m,), total cost of a first stage that the member is the first of.
        later: float64 (m, n + 1), the same of a later stage that so many rows reach; None where both are 0.
        loads: what limits the rate; None where nothing does.
        deriving: models that make what members read.
    """

    members: Floats
    scale: float
    first: Floats | None = None
    later: Floats | None = None
    loads: Loads | None = None
    deriving: tuple[DerivingPrice, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return self.members.shape[1] - 1

    def stage(self, group: Subset, count: Any, *, asked: Subset) -> Any:
        """Total cost of a stage of these members that so many rows reach, a number or an array.

        `asked` are the members of the stages before; the first stage has none.
        """
        total = functools.reduce(np.add, (self.members[member][count] for member in group))
        for place in self._derived_for(group, asked):
            total = total + self.deriving[place].cost[count]
        if not asked:
            return total if self.first is None else total + self.first[group[0]]
        return total if self.later is None else total + self.later[group[0]][count]

    def _derived_for(self, group: Subset, asked: Subset) -> list[int]:
        """Deriving models that are asked before a stage, by their places."""
        readers = [one.readers for one in self.deriving]
        return [place for place, read in enumerate(readers) if read & set(group) and not read & set(asked)]

    def totals(self, stages: Sequence[Subset], reached: Sequence[int]) -> Floats:
        """Cost of each stage of a plan, float64 (s,), where so many rows reach it."""
        before = [tuple(itertools.chain(*stages[:place])) for place in range(len(stages))]
        parts = zip(stages, reached, before, strict=True)
        return (
            np.array([float(self.stage(group, count, asked=asked)) for group, count, asked in parts]) / self.scale
        )

    def cells(self, groups: Sequence[Subset], reached: Sequence[Counts]) -> Floats:
        """Total cost of every tuple of thresholds, of the rows that reach each group but the first.

        A group behind one that never exits, the last index, belongs to that one's stage, which is paid for once.
        """
        cost: Any = np.float64(self.stage(groups[0], self.rows, asked=()))
        asked = groups[0]
        for group, count in zip(groups[1:], reached, strict=True):
            new = self.stage(group, count, asked=asked)
            if self.later is not None:
                new[..., -1] -= self.later[group[0]][count[..., -1]]
            cost, asked = cost[..., None] + new, (*asked, *group)
        return np.asarray(cost, np.float64)

    def load_cells(self, groups: Sequence[Subset], reached: Sequence[Counts]) -> Floats:
        """The load of what is busiest, for every tuple of thresholds; see `cells`."""
        assert self.loads is not None
        loads, asked = self.loads, groups[0]
        most, used = self._busy(asked, ())
        busiest: Any = np.float64(most)
        runtime: Any = np.float64(loads.runtime[0])
        cores: Any = np.float64(used + loads.runtime_cores[0])
        for group, count in zip(groups[1:], reached, strict=True):
            share, (most, used) = count / self.rows, self._busy(group, asked)
            begun, asked = share.copy(), (*asked, *group)
            begun[..., -1] = 0
            busiest = np.maximum(busiest[..., None], share * most)
            runtime = runtime[..., None] + begun * loads.runtime[1]
            cores = cores[..., None] + share * used + begun * loads.runtime_cores[1]
        return np.asarray(np.maximum(np.maximum(busiest, runtime), cores), np.float64)

    def _busy(self, group: Subset, asked: Subset) -> tuple[float, float]:
        """Load of the busiest model of a stage, and of the cores by all of them, where every row comes."""
        assert self.loads is not None
        loads, members, derived = self.loads, list(group), self._derived_for(group, asked)
        most = max(float(loads.members[members].max()), *(loads.deriving[place] for place in derived), 0.0)
        used = float(loads.member_cores[members].sum()) + sum(loads.deriving_cores[place] for place in derived)
        return most, used

    def load(self, stages: Sequence[Subset], reached: Sequence[int]) -> float:
        """The load of what is busiest where so many rows reach each stage."""
        # No threshold is never here: the last index of each axis is one that nothing reads.
        cells = [np.array([count, 0]).reshape((1,) * place + (2,)) for place, count in enumerate(reached[1:])]
        return float(self.load_cells(stages, cells)[(0,) * len(cells)])


class Pricing(Protocol):
    """How plans are priced."""

    def prices(self, pool: Sequence[Member], rows: int) -> Prices:
        """What stages of these members cost on so many rows."""


@dataclass(frozen=True)
class CostPerRow:
    """Every row costs what the plan says of the members, whoever else is asked."""

    def prices(self, pool: Sequence[Member], rows: int) -> Prices:
        """See `Pricing`."""
        costs, scale = integers_from_costs([member.cost for member in pool], rows)
        return Prices(members=costs[:, None] * np.arange(rows + 1), scale=scale)
