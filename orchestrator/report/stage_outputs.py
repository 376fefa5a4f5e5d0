"""What every stage of a plan answers for every row, kept so that other thresholds cost one comparison per row."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.decision import Policy
from orchestrator.decision.exit_rule import ExitRule
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import CascadeSpec
from orchestrator.spec.shares import evenly_spread

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Stages = npt.NDArray[np.intp]
Value = TypeVar("Value", bound=np.generic)

# Thresholds offered per stage, besides the plan's own and "never".
GRID = 200


@dataclass(frozen=True, kw_only=True)
class StageOutputs:
    """The answers of all s stages for all n rows.

    Args:
        spec: the plan.
        score: float32 (s, n), what thresholds are compared with.
        label: int64 (s, n).
        probability: float32 (s, n), of the label.
        cost: float64 (s,), of a row that exits at that stage.
    """

    spec: CascadeSpec
    score: F32 = field(repr=False)
    label: I64 = field(repr=False)
    probability: F32 = field(repr=False)
    cost: F64

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return self.score.shape[1]

    @property
    def last(self) -> int:
        """The stage that answers every row it gets."""
        return len(self.cost) - 1

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """The plan's own, one per stage but the last; None never exits."""
        return tuple(stage.threshold for stage in self.spec.stages[:-1])

    def exit_stage(self, thresholds: Sequence[float | None]) -> Stages:
        """Where every row exits; intp (n,).

        Args:
            thresholds: one per stage but the last; None never exits.
        """
        stages = tuple(
            dataclasses.replace(stage, threshold=threshold)
            for stage, threshold in zip(self.spec.stages, (*thresholds, None), strict=True)
        )
        rule = ExitRule(dataclasses.replace(self.spec, stages=stages, gears=None))
        first, last = np.zeros(self.rows, np.int32), np.full(self.rows, self.last, np.int32)
        at = np.full(self.rows, self.last, np.intp)
        # Backwards, so that the first stage a row may exit at is written last.
        for stage in reversed(range(self.last)):
            exits, _ = rule.decide(
                stage, self.score[stage], min_stage=first, max_stage=last, shift=np.zeros(self.rows, np.float32)
            )
            at[exits] = stage
        return at

    def threshold_grid(self, stage: int) -> F32:
        """Thresholds to try at a stage, ascending: quantiles of its scores, the plan's own, and +inf for never."""
        own = self.thresholds[stage]
        quantiles = np.sort(self.score[stage])[evenly_spread(self.rows, GRID)]
        return np.unique(np.array([*quantiles, np.inf if own is None else own, np.inf], np.float32))


def values_at(of_stages: npt.NDArray[Value], exit_stage: Stages) -> npt.NDArray[Value]:
    """From (s, n), each row's value at the stage where it exits; (n,)."""
    values: npt.NDArray[Value] = of_stages[exit_stage, np.arange(of_stages.shape[1])]
    return values


def stage_outputs_from_plan(spec: CascadeSpec, records: Records) -> StageOutputs:
    """Replays the plan once per stage, with every row made to exit there.

    Args:
        spec: the plan.
        records: n rows of all its members.

    Raises:
        DataError: the records do not fit the plan.
    """
    answers = [
        replay(spec, records, Policy(min_stage=stage, max_stage=stage)) for stage in range(len(spec.stages))
    ]
    rows = np.arange(records.rows)
    return StageOutputs(
        spec=spec,
        score=np.stack([one.confidence for one in answers]),
        label=np.stack([one.label for one in answers]),
        probability=np.stack([one.probabilities[rows, one.label] for one in answers]),
        cost=np.array([float(one.cost[0]) for one in answers], np.float64),
    )
