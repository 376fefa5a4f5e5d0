"""One cascade at work: the table of rows that were deferred, and every change of their state.

Rules of this file:
- All state of a run lives in `CascadeRun`; no other module writes it. The caller holds a lock around every call.
- A slot is FREE, WAITING (for its stage), ASKED (its stage's members are running) or DROPPED (answered or given
  up while they run; it becomes FREE when they return). No other transition exists:
      admit: FREE -> WAITING        next, take: WAITING -> ASKED feed: ASKED -> WAITING | FREE
      expire, drop: WAITING -> FREE, ASKED -> DROPPED            feed: DROPPED -> FREE
- Only rows that go on to a later stage are ever in the table: stage 0 is asked for whole batches by the caller,
  and its sure rows leave without having been stored.
- Cost is charged when members are asked, so a row answered at its deadline pays for what it left running.
- Python loops run over members and columns, never over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from orchestrator.decision.evaluate import Evaluator, Output, Stage0Result, StageDecision
from orchestrator.decision.rows import Arrivals, FailedRows, Index, RowState, StageOutcome
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import DEADLINE

FREE, WAITING, ASKED, DROPPED = 0, 1, 2, 3
_NO_MEMBERS = np.zeros(0, np.int32)
_NONE = np.zeros(0, np.intp)


class CascadeRun:
    """Drives one cascade for any number of rows at once.

    Usage: `admit(arrivals, outputs_of_stage_0)`; then, while `waiting(stage)`, ask the stage's members for the
    rows of `next(stage, limit)` and `feed` what they said.

    Args:
        spec: the cascade.
        capacity_rows: slots to begin with; the table doubles when it is full.
    """

    def __init__(self, spec: CascadeSpec, capacity_rows: int = 64) -> None:
        self.spec = spec
        self._judge = Evaluator(spec)
        self._costs = np.array([stage.cost for stage in spec.stages], np.float32)
        self._sequence = 0
        self._waiting = np.zeros(len(spec.stages) + 1, np.int64)
        self._lines = self._blank(capacity_rows)
        self._state: npt.NDArray[np.int8] = np.zeros(capacity_rows, np.int8)
        self._stage: npt.NDArray[np.int32] = np.zeros(capacity_rows, np.int32)
        self._order: npt.NDArray[np.int64] = np.zeros(capacity_rows, np.int64)
        self._free: Index = np.arange(capacity_rows)

    # -- what the caller may ask ------------------------------------------------------------------

    @property
    def rows_in_table(self) -> int:
        """Rows that were deferred and are not freed yet."""
        return len(self._state) - len(self._free)

    @property
    def capacity_rows(self) -> int:
        """Slots there are, used or free; every slot number is below it."""
        return len(self._state)

    def requests_of(self, slots: Index) -> npt.NDArray[np.int64]:
        """Request tokens of the given slots, int64 (n,)."""
        tokens: npt.NDArray[np.int64] = self._lines.who.request[slots]
        return tokens

    def waiting(self, stage: int) -> int:
        """Rows that wait for a stage."""
        return int(self._waiting[stage])

    def waiting_slots(self) -> Index:
        """Slots of all rows that wait for any stage, intp (n,)."""
        return np.flatnonzero(self._state == WAITING)

    def next_deadline_ns(self) -> int | None:
        """The earliest deadline of a row still unanswered, or None."""
        open_rows = (self._state == WAITING) | (self._state == ASKED)
        if not open_rows.any():
            return None
        return int(self._lines.who.deadline_ns[open_rows].min())

    # -- events -----------------------------------------------------------------------------------

    def look(self, rows: int, outputs: Sequence[Output]) -> Stage0Result:
        """What stage 0 said of n rows; changes nothing and needs no lock.

        Args:
            rows: n.
            outputs: (n, k) per member of stage 0 in plan order, None for a member that failed.
        """
        return self._judge.look(rows, outputs)

    def admit(self, arrivals: Arrivals, outputs: Sequence[Output]) -> StageOutcome:
        """Takes in rows with what the members of stage 0 said of them; `look` and `enter` in one.

        Args:
            arrivals: n rows.
            outputs: as for `look`.
        """
        return self.enter(arrivals, self.look(len(arrivals), outputs))

    def enter(self, arrivals: Arrivals, look: Stage0Result) -> StageOutcome:
        """Takes in rows with what stage 0 said of them.

        Args:
            arrivals: n rows.
            look: what stage 0 said of them.

        Returns:
            the rows that are done; the deferred ones now wait in the table.
        """
        rows = len(arrivals)
        lines = RowState(
            arrivals,
            np.full(rows, self._costs[0], np.float32),
            np.zeros(rows, np.int32),
            np.full(rows, -1, np.int32),
            look.tally,
        )
        outcome, on = self._outcome(lines, 0, settled=self._judge.decide(lines, 0, look), row=np.arange(rows))
        if len(on):
            slots = self._claim(len(on))
            self._lines.put(slots, lines.take(on) if len(on) < rows else lines)
            self._order[slots] = self._sequence + np.arange(len(slots))
            self._sequence += len(slots)
            self._wait(slots, 1)
            outcome.slots = slots
        return outcome

    def next(self, stage: int, limit: int) -> Index:
        """Takes up to `limit` rows that wait for a stage, the most urgent first, and charges them for it.

        Returns:
            intp, their slots; empty when none wait.
        """
        slots: Index = ((self._state == WAITING) & (self._stage == stage)).nonzero()[0]
        if len(slots) > limit:
            urgency = np.lexsort((self._order[slots], self._lines.who.due_ns[slots]))
            slots = slots[urgency[:limit]]
        self._ask(slots, stage)
        return slots

    def take(self, slots: Index) -> None:
        """Takes given rows that wait for one stage, instead of the most urgent, and charges them for it.

        Args:
            slots: intp, all waiting for the same stage.
        """
        assert (self._state[slots] == WAITING).all()
        assert (self._stage[slots] == self._stage[slots[0]]).all()
        self._ask(slots, int(self._stage[slots[0]]))

    def feed(self, slots: Index, outputs: Sequence[Output]) -> StageOutcome:
        """Takes what a stage's members said of the rows `next` gave.

        Args:
            slots: intp (n,), as `next` returned them.
            outputs: (n, k) per member of that stage in plan order, None for a member that failed.

        Returns:
            the rows that are done; rows dropped meanwhile are in none of its parts.
        """
        stage = int(self._stage[slots[0]])
        kept: Index = (self._state[slots] == ASKED).nonzero()[0]
        if len(kept) < len(slots):
            self._release(slots[self._state[slots] == DROPPED])
            outputs = [None if output is None else output[kept] for output in outputs]
        live = slots[kept]
        if not len(live):
            return self._nothing(stage)
        lines = self._lines.take(live)
        settled = self._judge.settle(lines, stage, outputs)
        outcome, on = self._outcome(lines, stage, settled=settled, row=kept)
        if not len(on):
            self._release(live)
            return outcome
        outcome.slots = live[on]
        if len(on) < len(live):
            self._release(live[settled.exits | settled.dead])
            lines = lines.take(on)
        self._lines.put(outcome.slots, lines)
        self._wait(outcome.slots, stage + 1)
        return outcome

    def abandon(self, slots: Index) -> None:
        """Frees slots that `next` gave and nothing will be fed for; harmless where they are free already."""
        asked = (self._state[slots] == ASKED) | (self._state[slots] == DROPPED)
        self._release(slots[asked])

    def expire(self, now_ns: int) -> StageOutcome:
        """Answers every row whose deadline has come from its combination so far.

        Returns:
            answers with the deadline bit; `row` in them is the slot. Failures are rows without any combination.
        """
        open_rows = (self._state == WAITING) | (self._state == ASKED)
        slots = np.flatnonzero(open_rows & (self._lines.who.deadline_ns <= now_ns))
        lines = self._lines.take(slots)
        lines.status |= np.int32(DEADLINE)
        has = lines.tally.weight > 0
        answers = self._judge.answers(lines, np.flatnonzero(has), row=slots, verdict=self._judge.verdict(lines))
        lost = np.flatnonzero(~has)
        failures = FailedRows(slots[lost], lines.who.request[lost], np.full(len(lost), -1, np.int32))
        self._give_up(slots)
        return StageOutcome(answers, failures, _NONE, _NONE, -1, None)

    def drop(self, requests: npt.NDArray[np.int64]) -> int:
        """Gives up every row of the given requests; returns how many there were."""
        open_rows = (self._state == WAITING) | (self._state == ASKED)
        slots = np.flatnonzero(open_rows & np.isin(self._lines.who.request, requests))
        self._give_up(slots)
        return len(slots)

    # -- deciding ---------------------------------------------------------------------------------

    def _outcome(
        self, lines: RowState, stage: int, *, settled: StageDecision, row: Index
    ) -> tuple[StageOutcome, Index]:
        """The outcome of a stage, and which lines (by place) go on; `row` names the lines to the caller."""
        dead, exits = settled.dead, settled.exits
        done: Index = exits.nonzero()[0]
        lost: Index = dead.nonzero()[0] if settled.failed is not None else _NONE
        on: Index = _NONE if len(done) + len(lost) == len(lines) else (~(exits | dead)).nonzero()[0]
        members = _NO_MEMBERS if settled.failed is None else settled.failed[lost]
        failures = FailedRows(row[lost], lines.who.request[lost], members)
        answers = self._judge.answers(lines, done, row=row, verdict=settled.verdict)
        return StageOutcome(answers, failures, row[on], _NONE, stage, settled.member_failures), on

    def _nothing(self, stage: int) -> StageOutcome:
        lines = self._blank(0)
        answers = self._judge.answers(lines, _NONE, row=_NONE, verdict=self._judge.verdict(lines))
        failures = FailedRows(_NONE, lines.who.request, _NO_MEMBERS)
        return StageOutcome(answers, failures, _NONE, _NONE, stage, None)

    # -- slots ------------------------------------------------------------------------------------

    def _ask(self, slots: Index, stage: int) -> None:
        self._state[slots] = ASKED
        self._waiting[stage] -= len(slots)
        self._lines.cost[slots] += self._costs[stage]

    def _wait(self, slots: Index, stage: int) -> None:
        self._state[slots] = WAITING
        self._stage[slots] = stage
        self._waiting[stage] += len(slots)

    def _give_up(self, slots: Index) -> None:
        waits = self._state[slots] == WAITING
        parked = slots[waits]
        np.subtract.at(self._waiting, self._stage[parked], 1)
        self._state[slots[~waits]] = DROPPED
        self._release(parked)

    def _claim(self, count: int) -> Index:
        if count > len(self._free):
            self._grow(max(2 * len(self._state), len(self._state) + count))
        slots: Index = self._free[len(self._free) - count :]
        self._free = self._free[: len(self._free) - count]
        return slots

    def _release(self, slots: Index) -> None:
        self._state[slots] = FREE
        self._free = np.concatenate((self._free, slots))

    def _blank(self, rows: int) -> RowState:
        return RowState(
            Arrivals(*(np.zeros(rows, _TYPES.get(field.name, np.int64)) for field in fields(Arrivals))),
            np.zeros(rows, np.float32),
            np.zeros(rows, np.int32),
            np.zeros(rows, np.int32),
            self._judge.combiner.empty(rows),
        )

    def _grow(self, rows: int) -> None:
        size = len(self._state)
        lines = self._blank(rows)
        lines.put(np.arange(size), self._lines)
        self._lines = lines
        self._state = np.concatenate((self._state, np.zeros(rows - size, np.int8)))
        self._stage = np.concatenate((self._stage, np.zeros(rows - size, np.int32)))
        self._order = np.concatenate((self._order, np.zeros(rows - size, np.int64)))
        self._free = np.concatenate((self._free, np.arange(size, rows)))


_TYPES: dict[str, type] = {"min_stage": np.int32, "max_stage": np.int32, "shift": np.float32, "gear": np.int32}
