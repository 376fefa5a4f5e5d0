"""What a plan would answer at every stage, kept once, so that other thresholds cost a comparison per row.

Scores and answers come from the decision core: each stage is replayed with every row made to stop exactly there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.decision import Policy
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import CascadeSpec, Member, Stage

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Thresholds = Sequence[float | None]
Value = TypeVar("Value", bound=np.generic)

# Thresholds offered per stage, besides the plan's own and "never".
GRID = 200


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The answers of all stages for all rows.

    Args:
        score: float32 (s, n), what thresholds are compared with.
        label: int64 (s, n).
        sure: float32 (s, n), probability of the answer.
        cost: float64 (s,), of a row that stops there.
        thresholds: the plan's own, one per stage but the last; None never exits.
        lows: as the plan has them, one per stage but the last.
    """

    score: F32
    label: I64
    sure: F32
    cost: F64
    thresholds: tuple[float | None, ...]
    lows: tuple[float | None, ...]

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return self.score.shape[1]

    @property
    def last(self) -> int:
        """The stage that answers whatever is left."""
        return len(self.cost) - 1

    def wants_out(self, stage: int, threshold: float | None) -> Bools:
        """Rows that a threshold would let go at a stage; bool (n,). The exit rule of the core, ties included."""
        score = self.score[stage]
        bar = np.float32(np.inf if threshold is None else threshold)
        low = self.lows[stage]
        out: Bools = score >= bar
        return out if low is None else out | (score <= np.float32(low))

    def exits(self, thresholds: Thresholds, *, after: int = -1) -> npt.NDArray[np.intp]:
        """Where every row stops; intp (n,).

        Args:
            thresholds: one per stage but the last.
            after: no row stops at this stage or before.
        """
        at = np.full(self.rows, self.last, np.intp)
        # Backwards, so that the first stage a row may leave at is written last.
        for stage in range(self.last - 1, after, -1):
            at[self.wants_out(stage, thresholds[stage])] = stage
        return at

    def grid(self, stage: int) -> F32:
        """Thresholds to try at a stage, ascending: quantiles of its scores, the plan's own, and +inf for never."""
        own = self.thresholds[stage]
        ordered = np.sort(self.score[stage])
        places = np.linspace(0, self.rows - 1, GRID).round().astype(int)
        chosen = () if own is None else (np.float32(own),)
        return np.unique(np.array([*ordered[places], *chosen, np.inf], np.float32))


def picked(of_stages: npt.NDArray[Value], at: npt.NDArray[np.intp]) -> npt.NDArray[Value]:
    """From (s, n), each row's value at its stage; (n,)."""
    values: npt.NDArray[Value] = of_stages[at, np.arange(of_stages.shape[1])]
    return values


def ladder_from_plan(spec: CascadeSpec, records: Records) -> Ladder:
    """Asks every stage about every row.

    Args:
        spec: the plan.
        records: n rows of all its members.

    Raises:
        DataError: the records do not fit the plan.
    """
    scores, labels, sure, costs = [], [], [], []
    for stage in range(len(spec.stages)):
        done = replay(spec, records, Policy(min_stage=stage, max_stage=stage))
        scores.append(done.confidence)
        labels.append(done.label)
        sure.append(done.probabilities[np.arange(records.rows), done.label])
        costs.append(float(done.cost[0]))
    leaving = spec.stages[:-1]
    return Ladder(
        score=np.stack(scores),
        label=np.stack(labels),
        sure=np.stack(sure),
        cost=np.array(costs, np.float64),
        thresholds=tuple(stage.threshold for stage in leaving),
        lows=tuple(stage.low for stage in leaving),
    )


def together(
    spec: CascadeSpec, records: Records, members: Mapping[str, Member], *, combine: str | None = None
) -> Ladder:
    """Members asked about every row at once; a ladder of one stage.

    Args:
        spec: gives combine mode and classes.
        records: n rows of the members.
        members: by their names in the records; at least one.
        combine: combine mode; None for the plan's.
    """
    # Records made elsewhere may hold names that no server would take, so members go by number here.
    named = [dataclasses.replace(member, name=f"m{place}") for place, member in enumerate(members.values())]
    part = dataclasses.replace(
        records,
        outputs={one.name: records.outputs[name] for one, name in zip(named, members, strict=True)},
        cost={one.name: one.cost for one in named},
    )
    # A single member has the same answer in every mode, but its only vote would always be unanimous.
    combine = combine or spec.combine if len(named) > 1 else "mean_prob"
    stage = Stage(members=tuple(named))
    alone = CascadeSpec(name="together", input=spec.input, classes=spec.classes, stages=(stage,), combine=combine)
    return ladder_from_plan(alone, part)
