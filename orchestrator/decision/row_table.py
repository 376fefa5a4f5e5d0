"""Where deferred rows are kept: one record of memory per slot, so that a row is moved by one copy.

As columns of their own, the fourteen facts about a row took as many copies to store, and as many to take out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision.combine import F32, I32, Accumulator, Combiner, Index, RowColumns
from orchestrator.decision.evaluate import ARRIVAL_DTYPES, Arrivals


@dataclass(slots=True)
class RowState(RowColumns):
    """Rows with what has been found out about them; those of a table are views of its records."""

    arrival: Arrivals  # where they came from and what their requests ask for
    cost: F32  # (n,), cost of every member that was asked about the row, but for those that run
    status: I32  # (n,), status bits so far
    answer_stage: I32  # (n,), newest stage whose output is in the accumulator, -1 for none
    accumulator: Accumulator  # the members' outputs so far


# Up to so many rows, the memory for copies of them is kept.
MOST_KEPT = 64
# Rows as bytes, (n,): one void record each.
Records = npt.NDArray[np.void]
_OWN = {"cost": "f4", "status": "i4", "answer_stage": "i4"}
_SUMS = ("total", "weight", "ties", "tops")


class RowTable:
    """Rows by slot; slots that hold none have any values.

    Args:
        combiner: whose sums a row carries.
        capacity: slots.

    Attributes:
        rows: what all slots hold, (capacity,).
    """

    def __init__(self, combiner: Combiner, capacity: int) -> None:
        self._combiner = combiner
        sums = combiner.empty(0)
        columns = {name: getattr(sums, name) for name in _SUMS}
        kept = {name: (one.dtype, one.shape[1:]) for name, one in columns.items() if one is not None}
        self._has = [name in kept for name in _SUMS]
        fields: Any = [*ARRIVAL_DTYPES.items(), *_OWN.items(), *((name, *of) for name, of in kept.items())]
        self._dtype = np.dtype(fields, align=True)
        # As bytes, because records with columns are copied column by column.
        self._records: Records = np.zeros(capacity, f"V{self._dtype.itemsize}")
        self.rows = self._state(self._records)
        # One call in C gives the columns of any rows.
        self._columns_of: Callable[[RowState], Any] = attrgetter(
            *(f"arrival.{name}" for name in ARRIVAL_DTYPES), *_OWN, *(f"accumulator.{name}" for name in kept)
        )
        self._columns = self._columns_of(self.rows)
        # By number of rows, what `take` gives: columns made anew cost more than the rest of a batch's way.
        self._copies: dict[int, tuple[Records, RowState]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def grown(self, more: int) -> "RowTable":
        """A table with more slots that holds what this one does."""
        table = RowTable(self._combiner, len(self) + more)
        table._records[: len(self)] = self._records
        return table

    def store(self, slots: Index, state: RowState, on: Index | None) -> None:
        """Stores the rows of these places, None for all, in slots."""
        for mine, given in zip(self._columns, self._columns_of(state), strict=True):
            mine[slots] = given if on is None else given[on]

    def take(self, slots: Index) -> tuple[Records, RowState]:
        """Copies of the rows in slots, and the columns of these copies; both only until the next call."""
        rows = len(slots)
        if rows > MOST_KEPT:
            found = self._records[slots]
            return found, self._state(found)
        if rows not in self._copies:
            found = np.empty(rows, self._records.dtype)
            self._copies[rows] = found, self._state(found)
        copies = self._copies[rows]
        copies[0][:] = self._records[slots]
        return copies

    def put(self, slots: Index, records: Records) -> None:
        """Stores records that were taken."""
        self._records[slots] = records

    def _state(self, records: Records) -> RowState:
        of = records.view(self._dtype)
        sums: list[Any] = [of[name] if has else None for name, has in zip(_SUMS, self._has, strict=True)]
        arrival = Arrivals(*[of[name] for name in ARRIVAL_DTYPES])
        return RowState(arrival, of["cost"], of["status"], of["answer_stage"], Accumulator(*sums))
