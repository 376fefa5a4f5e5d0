"""What plans are measured against: the truth, a reference member, or the answers of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.planner.goal import ENSEMBLE, Goal
from orchestrator.planner.records import Records
from orchestrator.planner.table import Labels, Table


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What plans are measured against, row by row.

    Args:
        target: int32 (n,), the answer that counts as right.
        base_right: bool (n,), rows the reference gets right; all of them where plans are measured absolutely.
    """

    target: Labels
    base_right: npt.NDArray[np.bool_]

    def take(self, rows: npt.NDArray[np.intp]) -> Yardstick:
        """The same of some rows."""
        return Yardstick(target=self.target[rows], base_right=self.base_right[rows])

    def right(self, label: Labels) -> npt.NDArray[np.bool_]:
        """Which answers are right."""
        right: npt.NDArray[np.bool_] = label == self.target
        return right

    def kept(self, label: Labels) -> npt.NDArray[np.bool_]:
        """Which answers are no loss."""
        kept: npt.NDArray[np.bool_] = (label == self.target) | ~self.base_right
        return kept


def yardstick_of(goal: Goal, table: Table, records: Records, *, combine: str) -> Yardstick:
    """What being right means for a goal, and which rows the reference gets right."""
    everything = np.ones(table.rows, np.bool_)
    if goal.reference is None:
        assert records.labels is not None
        return Yardstick(target=records.labels.astype(np.int32), base_right=everything)
    if goal.reference == ENSEMBLE:
        answer = table.label(combine, tuple(range(len(table.pool))))
    else:
        answer = table.tops[:, [member.name for member in table.pool].index(goal.reference)]
    if goal.label_free:
        return Yardstick(target=answer, base_right=everything)
    assert records.labels is not None
    target = records.labels.astype(np.int32)
    return Yardstick(target=target, base_right=answer == target)


def rows_wanted(goal: Goal, yardstick: Yardstick) -> float:
    """How many rows have to be right, by the goal's constraint on them."""
    rows = len(yardstick.target)
    if goal.min_accuracy is not None:
        return goal.min_accuracy * rows
    return float(yardstick.base_right.sum()) - (goal.epsilon or 0.0) * rows
