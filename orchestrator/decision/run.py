"""One cascade at work: the table of rows that were deferred, and every change of their state.

Rules of this file:
- All state of a run lives in `CascadeRun`; no other module writes it. The caller holds a lock around every call.
- A slot of the table moves as `TRANSITIONS` has it; no other transition exists.
- Only rows that go on to a later stage are ever in the table: the caller asks stage 0 for whole batches, and the
  rows it is sure of leave without having been stored. That keeps the table small and an easy row's path short.
- The states of the slots are the one truth: free slots and counts follow from them. An event that raises leaves
  the rows it was about no slot, whoever they belong to, and every count right.
- A row pays for the members asked when their outputs come, or at its deadline if they run then.
- Python loops run over members and columns, never over rows.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from orchestrator.decision.combine import F32, I32, I64, Bools, Index, Output, RowColumns
from orchestrator.decision.evaluate import Arrivals, CombinedAnswer, Evaluator, StageResult
from orchestrator.decision.fast_path import FastPath
from orchestrator.decision.row_table import RowState, RowTable
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import DEADLINE

STATES = ("free", "waiting", "asked", "dropped")
FREE, WAITING, ASKED, DROPPED = range(len(STATES))
# event -> state of a slot before it -> state after it. A waiting slot's row waits for its stage; the members of
# an asked one are running. Where its row is answered or given up meanwhile, the slot is dropped: only when the
# members have answered, in vain, may another row have it.
TRANSITIONS = {
    "enter": {FREE: WAITING},
    "take": {WAITING: ASKED},
    "defer": {ASKED: WAITING},
    "finish": {ASKED: FREE, DROPPED: FREE},
    "drop": {WAITING: FREE, ASKED: DROPPED},
}
# -1 where there is no such transition.
_NEXT = {
    event: np.array([moves.get(state, -1) for state in range(len(STATES))], np.int8)
    for event, moves in TRANSITIONS.items()
}


@dataclass(slots=True)
class AnsweredRows(RowColumns):
    """Rows that are done."""

    row: Index  # (n,), their index among the rows given to the call that answered them
    request: I64  # (n,), as in `Arrivals`
    position: I64  # (n,), as in `Arrivals`
    probabilities: F32  # (n, k)
    label: I64  # (n,)
    confidence: F32  # (n,), the plan's score of the answer
    exit_stage: I32  # (n,)
    cost: F32  # (n,)
    status: I32  # (n,)


@dataclass(slots=True)
class FailedRows(RowColumns):
    """Rows that cannot be answered."""

    row: Index  # (n,), as in `AnsweredRows`
    request: I64  # (n,)
    position: I64  # (n,), as in `Arrivals`
    member: I32  # (n,), plan index of the member that failed, -1 where no member had answered by the deadline


@dataclass(slots=True)
class StageOutcome:
    """What became of the rows of one call."""

    answers: AnsweredRows  # rows that are done
    failures: FailedRows  # rows that cannot be answered
    deferred: Index  # rows (index as in `AnsweredRows.row`) that wait for a later stage
    slots: Index  # the table slot of each deferred row
    stage: int  # the stage that was asked
    member_failures: I64 | None  # (m,), rows each member failed on; None where none did
    prefix_rows: int = 0  # rows that came to this stage by the fused prefix's outputs, without waiting for it


# Arrays of one value, because numpy takes twice as long with a scalar.
_ASKED, _WAITING = np.array([ASKED], np.int8), np.array([WAITING], np.int8)
_NONE = np.zeros(0, np.intp)
_NO_FAILURES = FailedRows(_NONE, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32))


class CascadeRun:
    """Drives one cascade for any number of rows at once.

    Usage: `admit(arrivals, outputs_of_stage_0)`; then, while `waiting(stage)`, ask the stage's members for the
    rows of `next(stage, limit)` and `feed` their outputs.

    Attributes:
        rows_in_table: rows that were deferred and are not freed yet.
        fast_path: stage 0's shortcuts, which change nothing and need no lock.
    """

    def __init__(self, spec: CascadeSpec, capacity_rows: int = 64) -> None:
        self._evaluator = Evaluator(spec)
        self.fast_path = FastPath(self._evaluator)
        self._costs = np.array(spec.stage_costs, np.float32)
        self._stages = np.split(np.arange(len(spec.stages), dtype=np.int32), len(spec.stages))
        self._sequence = 0
        self._waiting = [0] * (len(spec.stages) + 1)
        self.rows_in_table = 0
        self._table = RowTable(self._evaluator.combiner, capacity_rows)
        self._state: npt.NDArray[np.int8] = np.zeros(capacity_rows, np.int8)
        self._stage: npt.NDArray[np.int32] = np.zeros(capacity_rows, np.int32)
        self._order: npt.NDArray[np.int64] = np.zeros(capacity_rows, np.int64)
        self._free: Index = np.arange(capacity_rows)

    # -- what the caller may ask ------------------------------------------------------------------

    @property
    def capacity_rows(self) -> int:
        """Slots there are, used or free; the table doubles when it is full."""
        return len(self._state)

    def requests_of(self, slots: Index) -> npt.NDArray[np.int64]:
        """Request tokens of the given slots, int64 (n,)."""
        tokens: npt.NDArray[np.int64] = self._table.rows.arrival.request[slots]
        return tokens

    def stages_of(self, slots: Index) -> npt.NDArray[np.int32]:
        """The stages that the given slots' rows wait for or are at, int32 (n,)."""
        stages: npt.NDArray[np.int32] = self._stage[slots]
        return stages

    def open_requests(self) -> npt.NDArray[np.int64]:
        """Tokens of the requests that have rows in the table without an answer, int64, in order of arrival."""
        tokens: npt.NDArray[np.int64] = np.unique(self._table.rows.arrival.request[self._open_rows()])
        return tokens

    def waiting(self, stage: int) -> int:
        """Rows that wait for a stage."""
        return self._waiting[stage]

    def free_slots(self) -> Bools:
        """Which slots hold no row, bool (capacity,)."""
        free: Bools = self._state == FREE
        return free

    def waiting_slots(self) -> Index:
        """Slots of all rows that wait for any stage, intp (n,)."""
        return np.flatnonzero(self._state == WAITING)

    def deferred(self, arrivals: Arrivals, result: StageResult) -> Bools:
        """Which of n rows `enter` would defer, bool (n,); needs no lock."""
        exits, dead, _ = self._evaluator.decide(arrivals, 0, result)
        return ~(exits | dead)

    # -- events -----------------------------------------------------------------------------------

    def admit(self, arrivals: Arrivals, outputs: Sequence[Output]) -> StageOutcome:
        """Takes in n rows with the outputs of stage 0's members; see `FastPath.stage0`."""
        return self.enter(arrivals, self.fast_path.stage0(len(arrivals), outputs))

    def enter(self, arrivals: Arrivals, result: StageResult, cost: float | None = None) -> StageOutcome:
        """Takes in n rows with what stage 0 gave for them, at a cost as in `feed`; the deferred ones now wait."""
        rows = len(result.answer.label)
        costs, answer_stage = np.empty(rows, np.float32), np.empty(rows, np.int32)
        costs.fill(self._costs[0] if cost is None else cost)
        answer_stage.fill(-1)
        state = RowState(arrivals, costs, np.zeros(rows, np.int32), answer_stage, result.accumulator)
        outcome, on = self._settle(state, 0, result=result, row=np.arange(rows))
        if len(on):
            slots = _NONE
            try:
                slots = self._claim(len(on))
                self._table.store(slots, state, on if len(on) < rows else None)
                self._order[slots] = np.arange(self._sequence, self._sequence + len(slots))
                self._sequence += len(slots)
                self._wait(slots, 1, event="enter")
            except BaseException:
                self._undo(slots)
                raise
            outcome.slots = slots
        return outcome

    def apply_prefix_outputs(
        self, first: StageOutcome, later: Sequence[Sequence[npt.NDArray[np.generic]]]
    ) -> list[StageOutcome]:
        """Decides about rows just deferred for which a fused prefix has run later stages already.

        Called before anybody is told of the deferred rows, so that no worker takes them meanwhile.

        Args:
            first: what `enter` returned for the batch.
            later: for each stage after it, (n, k) per member, NaN for rows the prefix did not ask there.

        Returns:
            the outcomes stage by stage; `row` and `deferred` count in the batch, `slots` are still waiting.
        """
        outcomes = [first]
        for stage, outputs in enumerate(later, start=1):
            before = outcomes[-1]
            known = ~np.isnan(np.stack([output[before.deferred] for output in outputs])).any(axis=(0, 2))
            if not known.any():
                break
            slots, places = before.slots[known], before.deferred[known]
            outcomes[-1] = replace(before, slots=before.slots[~known], deferred=before.deferred[~known])
            self._take(slots, stage)
            outcome = self.feed(slots, [output[places] for output in outputs])
            outcome.answers.row = places[outcome.answers.row]
            outcome.failures.row = places[outcome.failures.row]
            outcomes.append(replace(outcome, deferred=places[outcome.deferred], prefix_rows=len(slots)))
        return outcomes

    def next(self, stage: int, limit: int, groups: I64 | None = None) -> Index:
        """Takes up to `limit` rows that wait for a stage, the most urgent first; intp, their slots.

        Where `groups` gives a number to every slot, int64 (capacity,), those with the number of the most urgent.
        """
        slots: Index = ((self._state == _WAITING) & (self._stage == self._stages[stage])).nonzero()[0]
        if groups is not None and len(slots):
            first = slots[np.lexsort((self._order[slots], self._table.rows.arrival.due_ns[slots]))[0]]
            slots = slots[groups[slots] == groups[first]]
        # Most batches fit, and sorting would cost more than the rest of this.
        if len(slots) > limit:
            urgency = np.lexsort((self._order[slots], self._table.rows.arrival.due_ns[slots]))
            slots = slots[urgency[:limit]]
        try:
            self._take(slots, stage)
        except BaseException:
            self._undo(slots)
            raise
        return slots

    def skip(self, slots: Index) -> StageOutcome:
        """Decides about rows that have waited too long for one stage, as if its members had failed, uncharged."""
        stage = int(self._stage[slots[0]])
        try:
            self._take(slots, stage)
        except BaseException:
            self._undo(slots)
            raise
        return self.feed(slots, [None] * len(self._evaluator.spec.stages[stage].members), cost=0.0)

    def feed(self, slots: Index, outputs: Sequence[Output], cost: float | None = None) -> StageOutcome:
        """Takes the outputs of a stage's members for the rows `next` gave; what was dropped has no outcome.

        Args:
            slots: intp (n,), as `next` returned them.
            outputs: (n, k) per member of that stage in plan order, None for a member that failed.
            cost: of the members that were asked, per row; None where those were all of them.
        """
        try:
            return self._feed(slots, outputs, cost)
        except BaseException:
            self._undo(slots)
            raise

    def _feed(self, slots: Index, outputs: Sequence[Output], cost: float | None) -> StageOutcome:
        stage = int(self._stage[slots[0]])
        kept: Index = (self._state[slots] == _ASKED).nonzero()[0]
        live = slots
        if len(kept) < len(slots):  # rows answered or given up while the members ran
            self._release(slots[self._state[slots] == DROPPED])
            outputs = [None if output is None else output[kept] for output in outputs]
            live = slots[kept]
        records, state = self._table.take(live)
        if not len(live):
            answers = _answered(state, self._evaluator.answer(state.accumulator), row=kept, done=_NONE)
            return StageOutcome(answers, _NO_FAILURES, _NONE, _NONE, stage, None)
        state.cost += self._costs[stage] if cost is None else np.float32(cost)
        result = self._evaluator.add_stage(state.accumulator, stage, outputs)
        outcome, on = self._settle(state, stage, result=result, row=kept)
        if not len(on):
            self._release(live)
            return outcome
        outcome.slots = live[on]
        self._table.put(outcome.slots, records[on])
        self._wait(outcome.slots, stage + 1, event="defer")
        if len(on) < len(live):
            self._release(live[self._state[live] == ASKED])
        return outcome

    def abandon(self, slots: Index) -> None:
        """Frees slots that `next` gave and nothing will be fed for; harmless where they are free already."""
        self._release(slots[(self._state[slots] == ASKED) | (self._state[slots] == DROPPED)])

    def expire(self, now_ns: int) -> StageOutcome:
        """Answers every row whose deadline has come from its combination so far; those without one fail.

        `row` in the outcome is the slot.
        """
        # The members that run go on: nothing can stop a call, and its rows are dropped when it returns.
        slots = np.flatnonzero(self._open_rows() & (self._table.rows.arrival.deadline_ns <= now_ns))
        _, state = self._table.take(slots)
        state.status |= np.int32(DEADLINE)
        is_asked = self._state[slots] == ASKED
        state.cost[is_asked] += self._costs[self._stage[slots[is_asked]]]
        has_answer = state.accumulator.weight > 0
        lost = np.flatnonzero(~has_answer)
        arrival, member = state.arrival[lost], np.full(len(lost), -1, np.int32)
        failures = FailedRows(slots[lost], arrival.request, arrival.position, member)
        answer = self._evaluator.answer(state.accumulator)
        answers = _answered(state, answer, row=slots, done=np.flatnonzero(has_answer))
        self._drop_slots(slots)
        return StageOutcome(answers, failures, _NONE, _NONE, -1, None)

    def drop(self, requests: npt.NDArray[np.int64]) -> int:
        """Drops every row of the given requests; returns how many there were."""
        slots = np.flatnonzero(self._open_rows() & np.isin(self._table.rows.arrival.request, requests))
        self._drop_slots(slots)
        return len(slots)

    # -- deciding ---------------------------------------------------------------------------------

    def _settle(
        self, state: RowState, stage: int, *, result: StageResult, row: Index
    ) -> tuple[StageOutcome, Index]:
        """Decides about n rows, which are copies of those in the table and keep what is decided.

        Args:
            state: the rows.
            stage: the stage that was asked.
            result: what it gave.
            row: intp (n,), what the caller calls them.

        Returns:
            the outcome, and which rows (by place) go on.
        """
        exits, dead, status = self._evaluator.decide(state.arrival, stage, result)
        state.status |= status
        done: Index = exits.nonzero()[0]
        lost, failed_rows, failures, counts = _NONE, _NO_FAILURES, result.failures, None
        if failures is None:
            state.answer_stage.fill(stage)
        else:
            state.answer_stage[~failures.no_answer] = stage
            lost, counts = dead.nonzero()[0], failures.counts
            arrival = state.arrival[lost]
            failed_rows = FailedRows(row[lost], arrival.request, arrival.position, failures.member[lost])
        gone = len(done) + len(lost)
        on: Index = _NONE
        if gone < len(row):
            on = (~(exits | dead)).nonzero()[0] if gone else np.arange(len(row))
        answers = _answered(state, result.answer, row=row, done=done)
        return StageOutcome(answers, failed_rows, row[on] if gone else row, _NONE, stage, counts), on

    # -- slots ------------------------------------------------------------------------------------

    def _open_rows(self) -> npt.NDArray[np.bool_]:
        """Slots of rows without an answer, bool (capacity,)."""
        open_rows: npt.NDArray[np.bool_] = (self._state == WAITING) | (self._state == ASKED)
        return open_rows

    def _move(self, slots: Index, event: str) -> None:
        # No check here, on the path of every deferred row: the tests hold every event to the table.
        self._state[slots] = _NEXT[event][self._state[slots]]

    def _take(self, slots: Index, stage: int) -> None:
        self._move(slots, "take")
        self._waiting[stage] -= len(slots)

    def _wait(self, slots: Index, stage: int, *, event: str) -> None:
        self._move(slots, event)
        self._stage[slots] = stage
        self._waiting[stage] += len(slots)

    def _drop_slots(self, slots: Index) -> None:
        parked, asked = slots[self._state[slots] == WAITING], slots[self._state[slots] == ASKED]
        try:
            for stage, count in enumerate(np.bincount(self._stage[parked]).tolist()):
                self._waiting[stage] -= count
            self._move(slots, "drop")
            self._put_back(parked)
        except BaseException:
            self._state[asked] = DROPPED
            self._undo(parked)
            raise

    def _release(self, slots: Index) -> None:
        try:
            self._move(slots, "finish")
            self._put_back(slots)
        except BaseException:
            self._undo(slots)
            raise

    def _undo(self, slots: Index) -> None:
        """After an error in an event: slots that it was about are free, and the counts follow from the states."""
        self._state[slots] = FREE
        self._free = np.flatnonzero(self._state == FREE)
        self.rows_in_table = self.capacity_rows - len(self._free)
        parked = self._stage[self._state == WAITING]
        self._waiting = np.bincount(parked, minlength=len(self._waiting)).tolist()

    def _put_back(self, slots: Index) -> None:
        self._free = np.concatenate((self._free, slots))
        self.rows_in_table -= len(slots)

    def _claim(self, count: int) -> Index:
        if count > len(self._free):
            # Doubling keeps the cost of growing at a constant per row.
            self._grow(max(self.capacity_rows, count))
        slots: Index = self._free[len(self._free) - count :]
        self._free = self._free[: len(self._free) - count]
        self.rows_in_table += count
        return slots

    def _grow(self, more: int) -> None:
        size, capacity = self.capacity_rows, self.capacity_rows + more
        table = self._table.grown(more)
        state, stage = np.pad(self._state, (0, more)), np.pad(self._stage, (0, more))
        order = np.pad(self._order, (0, more))
        free = np.concatenate((self._free, np.arange(size, capacity)))
        # At once, because memory may end in any line before.
        self._table, self._state, self._stage, self._order, self._free = table, state, stage, order, free


def _answered(state: RowState, answer: CombinedAnswer, *, row: Index, done: Index) -> AnsweredRows:
    """The answers of the rows `done` (by place); `row`, intp (n,), is what the caller calls all n of them."""
    if not len(done):
        return _nothing_answered(answer.probabilities.shape[1])
    rows = AnsweredRows(
        row, state.arrival.request, state.arrival.position, answer.probabilities, answer.label, answer.confidence,
        state.answer_stage, state.cost, state.status,
    )  # fmt: skip
    if len(done) < len(row):
        return rows[done]
    # Most often all rows of a call leave together. What is the table's own is copied, as its memory is used again.
    rows.request, rows.position, rows.exit_stage = (
        rows.request.copy(),
        rows.position.copy(),
        rows.exit_stage.copy(),
    )
    rows.cost, rows.status = rows.cost.copy(), rows.status.copy()
    return rows


@functools.cache
def _nothing_answered(classes: int) -> AnsweredRows:
    none, f32, i32 = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int32)
    return AnsweredRows(_NONE, none, none, np.zeros((0, classes), np.float32), none, f32, i32, f32, i32)
