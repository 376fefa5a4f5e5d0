"""Rows on their way through a cascade, as columns: what arrives, what travels, what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision.combine import F32, I32, Accumulator
from orchestrator.decision.policy import DEFAULT, Policy

__all__ = [
    "NO_DEADLINE_NS",
    "AnsweredRows",
    "Arrivals",
    "EarlyExit",
    "FailedRows",
    "RowState",
    "StageOutcome",
    "arrivals_from_policies",
]

I64 = npt.NDArray[np.int64]
Index = npt.NDArray[np.intp]
_FAR = np.iinfo(np.int32).max
NO_DEADLINE_NS = int(np.iinfo(np.int64).max)


@dataclass(slots=True)
class Arrivals:
    """Rows that come in together; every column has one entry per row.

    Args:
        request: int64 (n,), token of the row's request.
        position: int64 (n,), the row's place in its request.
        min_stage, max_stage: int32 (n,).
        shift: float32 (n,).
        gear: int32 (n,), whose thresholds judge the row; 0 for the plan's own.
        deadline_ns: int64 (n,) on the caller's monotonic clock, NO_DEADLINE_NS for none.
        due_ns: int64 (n,), what later stages are ordered by.
    """

    request: I64
    position: I64
    min_stage: I32
    max_stage: I32
    shift: F32
    gear: I32
    deadline_ns: I64
    due_ns: I64

    def __len__(self) -> int:
        return len(self.request)

    def take(self, index: Index) -> Arrivals:
        """The given rows, copied."""
        # Column by column in so many words: this runs for every batch of every stage.
        return Arrivals(
            self.request[index],
            self.position[index],
            self.min_stage[index],
            self.max_stage[index],
            self.shift[index],
            self.gear[index],
            self.deadline_ns[index],
            self.due_ns[index],
        )

    def put(self, index: Index, rows: Arrivals) -> None:
        """Overwrites the given rows."""
        self.request[index] = rows.request
        self.position[index] = rows.position
        self.min_stage[index] = rows.min_stage
        self.max_stage[index] = rows.max_stage
        self.shift[index] = rows.shift
        self.gear[index] = rows.gear
        self.deadline_ns[index] = rows.deadline_ns
        self.due_ns[index] = rows.due_ns


def arrivals_from_policies(
    tokens: Sequence[int],
    counts: Sequence[int],
    *,
    policies: Sequence[Policy],
    now_ns: Sequence[int],
    default_deadline_us: int,
    gear: int = 0,
) -> Arrivals:
    """Arrivals of several requests, in order.

    Args:
        tokens: one per request.
        counts: rows of each request.
        policies: one per request.
        now_ns: when each request arrived.
        default_deadline_us: what orders a request that named no deadline.
        gear: of requests that named none.
    """
    if all(policy is DEFAULT for policy in policies):
        return _plain_arrivals(tokens, counts, now_ns=now_ns, default_deadline_us=default_deadline_us, gear=gear)
    each = np.asarray(counts)
    late = [
        NO_DEADLINE_NS if p.deadline_us is None else at + p.deadline_us * 1000
        for p, at in zip(policies, now_ns, strict=True)
    ]
    due = [
        at + default_deadline_us * 1000 if p.deadline_us is None else end
        for p, at, end in zip(policies, now_ns, late, strict=True)
    ]

    def column(values: Sequence[float], dtype: type) -> npt.NDArray[Any]:
        return np.repeat(np.array(values, dtype), each)

    position = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    return Arrivals(
        request=column(tokens, np.int64),
        position=position,
        min_stage=column([p.min_stage for p in policies], np.int32),
        max_stage=column([_FAR if p.max_stage is None else p.max_stage for p in policies], np.int32),
        shift=column([p.threshold_shift for p in policies], np.float32),
        gear=column([gear if p.gear is None else p.gear for p in policies], np.int32),
        deadline_ns=column(late, np.int64),
        due_ns=column(due, np.int64),
    )


def _plain_arrivals(
    tokens: Sequence[int], counts: Sequence[int], *, now_ns: Sequence[int], default_deadline_us: int, gear: int
) -> Arrivals:
    """Arrivals of requests without parameters, which most are."""
    rows = sum(counts)
    request = np.array(tokens, np.int64)
    due = np.array(now_ns, np.int64) + default_deadline_us * 1000
    position = np.zeros(rows, np.int64)
    if rows > len(tokens):
        each = np.array(counts)
        request, due = request.repeat(each), due.repeat(each)
        position = np.arange(rows) - (each.cumsum() - each).repeat(each)
    max_stage, deadline = np.empty(rows, np.int32), np.empty(rows, np.int64)
    max_stage.fill(_FAR)
    deadline.fill(NO_DEADLINE_NS)
    return Arrivals(
        request=request,
        position=position,
        min_stage=np.zeros(rows, np.int32),
        max_stage=max_stage,
        shift=np.zeros(rows, np.float32),
        gear=np.full(rows, gear, np.int32),
        deadline_ns=deadline,
        due_ns=due,
    )


@dataclass(slots=True)
class RowState:
    """Rows with what has been found out about them; the table of a run is one of these.

    Args:
        who: where they came from and what they may do.
        cost: float32 (n,), cost of every member asked for the row, charged when it is asked.
        status: int32 (n,), bits earned so far.
        answered: int32 (n,), newest stage whose output is in the tally, -1 for none.
        tally: the combination so far.
    """

    who: Arrivals
    cost: F32
    status: I32
    answered: I32
    tally: Accumulator

    def __len__(self) -> int:
        return len(self.cost)

    def take(self, index: Index) -> RowState:
        """The given lines, copied."""
        who = self.who.take(index)
        return RowState(who, self.cost[index], self.status[index], self.answered[index], self.tally.take(index))

    def put(self, index: Index, lines: RowState) -> None:
        """Overwrites the given lines."""
        self.who.put(index, lines.who)
        self.cost[index] = lines.cost
        self.status[index] = lines.status
        self.answered[index] = lines.answered
        self.tally.put(index, lines.tally)


@dataclass(slots=True)
class AnsweredRows:
    """Rows that are done.

    Args:
        row: intp (n,), their index among the rows given to the call that answered them.
        request, position: int64 (n,), whose they are.
        probabilities: float32 (n, k).
        label: int64 (n,).
        confidence: float32 (n,), the plan's score of the answer.
        exit_stage: int32 (n,).
        cost: float32 (n,).
        status: int32 (n,).
    """

    row: Index
    request: I64
    position: I64
    probabilities: F32
    label: I64
    confidence: F32
    exit_stage: I32
    cost: F32
    status: I32

    def __len__(self) -> int:
        return len(self.row)


@dataclass(slots=True)
class EarlyExit:
    """The answers rows get at stage 0 if they come without wishes of their own.

    Args:
        exits: bool (n,), whether they do; the other columns say nothing of rows that do not.
        probabilities: float32 (n, k).
        label: int64 (n,).
        confidence: float32 (n,).
        status: int32 (n,), None where it is 0 for all.
    """

    exits: npt.NDArray[np.bool_]
    probabilities: F32
    label: I64
    confidence: F32
    status: I32 | None

    def __len__(self) -> int:
        return len(self.exits)


@dataclass(slots=True)
class FailedRows:
    """Rows that cannot be answered.

    Args:
        row: intp (n,), as in `AnsweredRows`.
        request: int64 (n,).
        member: int32 (n,), plan index of the member that failed, -1 where nothing had come by the deadline.
    """

    row: Index
    request: I64
    member: I32

    def __len__(self) -> int:
        return len(self.row)


@dataclass(slots=True)
class StageOutcome:
    """What became of the rows of one call.

    Args:
        answers: rows that are done.
        failures: rows that cannot be answered.
        deferred: intp, rows (index as in `Answers.row`) that go on.
        slots: intp, the table slot of each deferred row.
        stage: the stage that was asked; deferred rows go to a later one.
        member_failures: int64 (m,), rows each member failed on.
    """

    answers: AnsweredRows
    failures: FailedRows
    deferred: Index
    slots: Index
    stage: int
    member_failures: I64 | None
