"""Rows on their way through a cascade, as columns: what arrives, what travels, what comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.decision.policy import Policy

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]
NO_DEADLINE_NS = int(np.iinfo(np.int64).max)
NO_MAX_STAGE = int(np.iinfo(np.int32).max)
Columns = TypeVar("Columns", bound="RowColumns")


class RowColumns:
    """n rows as columns, indexed like one array of rows.

    A column is an array of n entries, another `RowColumns`, or None where the plan has no use for it.
    """

    __slots__ = ()
    # One call in C gives all columns, or those within columns too: every batch of every stage is cut
    # and stored through them.
    _columns: "ClassVar[attrgetter[tuple[Any, ...]]]"
    _arrays: "ClassVar[attrgetter[tuple[Any, ...]]]"
    _names: ClassVar[list[str]]

    def __init_subclass__(cls) -> None:
        within = {kind: kind._names for kind in RowColumns.__subclasses__() if kind is not cls}
        cls._names = []
        for name, kind in cls.__annotations__.items():
            cls._names += [f"{name}.{inner}" for inner in within[kind]] if kind in within else [name]
        cls._columns, cls._arrays = attrgetter(*cls.__annotations__), attrgetter(*cls._names)

    def __len__(self) -> int:
        return len(self._columns(self)[0])

    def __getitem__(self: Columns, index: Index | slice) -> Columns:
        """The given rows; copied where `index` is an array."""
        return type(self)(*[None if column is None else column[index] for column in self._columns(self)])

    def __setitem__(self: Columns, index: Index, rows: Columns) -> None:
        for mine, given in zip(self._arrays(self), self._arrays(rows), strict=True):
            if mine is not None:
                mine[index] = given


@dataclass(slots=True)
class Arrivals(RowColumns):
    """Rows that come in together, with what their requests ask for.

    Args:
        request: int64 (n,), token of the row's request.
        position: int64 (n,), the row's place in its request.
        min_stage, max_stage: int32 (n,).
        shift: float32 (n,).
        gear: int32 (n,), whose thresholds decide about the row; 0 for the plan's own.
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
        default_deadline_us: orders the rows of requests that named no deadline.
        gear: decides about the rows of requests that named none.
    """
    rows, each = sum(counts), np.array(counts)
    position = np.arange(rows)
    if len(counts) > 1:
        position -= (each.cumsum() - each).repeat(each)
    deadlines = [
        NO_DEADLINE_NS if policy.deadline_us is None else at_ns + policy.deadline_us * 1000
        for policy, at_ns in zip(policies, now_ns, strict=True)
    ]
    # The due time only orders rows; without it a request without a deadline would never get its turn under load.
    due = [
        at_ns + default_deadline_us * 1000 if deadline == NO_DEADLINE_NS else deadline
        for at_ns, deadline in zip(now_ns, deadlines, strict=True)
    ]
    ends = [NO_MAX_STAGE if policy.max_stage is None else policy.max_stage for policy in policies]

    def column(values: Sequence[float], dtype: type) -> npt.NDArray[Any]:
        return np.array(values, dtype).repeat(each)

    return Arrivals(
        request=column(tokens, np.int64),
        position=position,
        min_stage=column([policy.min_stage for policy in policies], np.int32),
        max_stage=column(ends, np.int32),
        shift=column([policy.threshold_shift for policy in policies], np.float32),
        gear=column([gear if policy.gear is None else policy.gear for policy in policies], np.int32),
        deadline_ns=column(deadlines, np.int64),
        due_ns=column(due, np.int64),
    )


@dataclass(slots=True)
class Accumulator(RowColumns):
    """Sums over the members asked so far.

    The sums are kept and not the members' outputs, so a deferred row carries k classes of float32 whatever the
    number of members.

    Args:
        total: float32 (n, k), weighted sum of logits, probabilities or votes, by combine mode.
        weight: float32 (n,), weight behind `total`; 0 where no member has answered yet.
        ties: float32 (n, k), weighted sum of probabilities that breaks ties of votes; only for "vote".
        tops: int32 (n, m), each member's own top-1, -1 where it was not asked; only for the agreement score.
    """

    total: F32
    weight: F32
    ties: F32 | None
    tops: I32 | None


@dataclass(slots=True)
class RowState(RowColumns):
    """Rows with what has been found out about them; the table of a run is one of these.

    Args:
        arrival: where they came from and what their requests ask for.
        cost: float32 (n,), cost of every member asked for the row, charged when it is asked.
        status: int32 (n,), status bits so far.
        answer_stage: int32 (n,), newest stage whose output is in the accumulator, -1 for none.
        accumulator: the members' outputs so far.
    """

    arrival: Arrivals
    cost: F32
    status: I32
    answer_stage: I32
    accumulator: Accumulator


@dataclass(slots=True)
class CombinedAnswer(RowColumns):
    """The answer every row would get now, whether it is given or not.

    Args:
        probabilities: float32 (n, k).
        label: int64 (n,).
        confidence: float32 (n,), the plan's score.
    """

    probabilities: F32
    label: I64
    confidence: F32


@dataclass(slots=True)
class AnsweredRows(RowColumns):
    """Rows that are done.

    Args:
        row: intp (n,), their index among the rows given to the call that answered them.
        request, position: int64 (n,), as in `Arrivals`.
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


def answered_rows(state: RowState, answer: CombinedAnswer, *, row: Index, done: Index) -> AnsweredRows:
    """The answers of the rows `done` (by place); `row`, intp (n,), is what the caller calls all n of them."""
    # Most often all rows of a call leave together, and views of the columns do.
    pick: Index | slice = slice(None) if len(done) == len(row) else done
    return AnsweredRows(
        row[pick],
        state.arrival.request[pick],
        state.arrival.position[pick],
        answer.probabilities[pick],
        answer.label[pick],
        answer.confidence[pick],
        state.answer_stage[pick],
        state.cost[pick],
        state.status[pick],
    )


@dataclass(slots=True)
class FailedRows(RowColumns):
    """Rows that cannot be answered.

    Args:
        row: intp (n,), as in `AnsweredRows`.
        request: int64 (n,).
        member: int32 (n,), plan index of the member that failed, -1 where no member had answered by the deadline.
    """

    row: Index
    request: I64
    member: I32


@dataclass(slots=True)
class StageOutcome:
    """What became of the rows of one call.

    Args:
        answers: rows that are done.
        failures: rows that cannot be answered.
        deferred: intp, rows (index as in `AnsweredRows.row`) that wait for a later stage.
        slots: intp, the table slot of each deferred row.
        stage: the stage that was asked.
        member_failures: int64 (m,), rows each member failed on; None where none did.
        prefix_rows: rows that came to this stage by the fused prefix's outputs, without waiting for it.
    """

    answers: AnsweredRows
    failures: FailedRows
    deferred: Index
    slots: Index
    stage: int
    member_failures: I64 | None
    prefix_rows: int = 0
