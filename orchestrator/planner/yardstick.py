"""What plans are measured against: the truth, a reference member, or the answers of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.planner.chains import Choice
from orchestrator.planner.goal import ENSEMBLE, Goal, Options
from orchestrator.planner.records import Records
from orchestrator.planner.table import MOST_MEMBERS, Labels, Table, Unit, mode_of
from orchestrator.spec import Member


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
    # As the plan that asks nobody else answers: two classes a rounding apart may be equal in its probabilities.
    answer = table.label(combine, _places(goal.reference, table.pool))
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


def _places(reference: str, pool: Sequence[Member]) -> Unit:
    """Which members of the pool the reference is."""
    if reference == ENSEMBLE:
        return tuple(range(len(pool)))
    return ([member.name for member in pool].index(reference),)


def is_reference(choice: Choice, goal: Goal, pool: Sequence[Member], *, combine: str) -> bool:
    """Whether a plan is the reference itself.

    Args:
        choice: the plan.
        goal: names the reference, if there is one.
        pool: the members.
        combine: mode of the reference "ensemble".
    """
    if goal.reference is None or choice.stages != (_places(goal.reference, pool),):
        return False
    return len(choice.members) == 1 or mode_of(choice.combine) == mode_of(combine)


def reference_alone(goal: Goal, pool: Sequence[Member], options: Options) -> Choice | None:
    """The reference as a plan; None where there is none, or it costs more than is allowed."""
    if goal.reference is None:
        return None
    places = _places(goal.reference, pool)
    cost = sum(pool[place].cost for place in places)
    limits = (limit for limit in (goal.max_worst_cost, goal.max_mean_cost) if limit is not None)
    if len(places) > MOST_MEMBERS or any(cost > limit * (1 + 1e-12) for limit in limits):
        return None
    return Choice(combine=options.combines[0], score=options.scores[0], stages=(places,), thresholds=())
