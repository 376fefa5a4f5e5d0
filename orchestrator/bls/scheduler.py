"""Deferred rows of all requests, pooled per stage.

Rules of this file:
- One lock guards the run, the deadlines and the inputs. Members are asked and answers are sent outside it, by the
  threads of `Workers`, so nothing under the lock takes long.
- Only who pops a request from `PendingRequests` may return a reply to it.
- Rows in the table are bounded by the admission limit (`wait_for_room`); nothing else here grows.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from orchestrator.bls.gathering import Gathering
from orchestrator.bls.gears import Gearbox, Times
from orchestrator.bls.input_buffer import InputBuffer, Room
from orchestrator.bls.metrics import Counters
from orchestrator.bls.pieces import EVERY_ROW, Errors, MemberOutputs, Refusal, StageCall
from orchestrator.bls.requests import (
    CANCELLED,
    INTERNAL,
    LATE,
    UNAVAILABLE,
    PendingRequest,
    PendingRequests,
    Reply,
    completed,
    reason_of,
)
from orchestrator.bls.rows import AnyRows, Rows
from orchestrator.decision import Arrivals, CascadeRun, FailedRows, StageOutcome, StageResult
from orchestrator.spec import CascadeSpec

Slots = npt.NDArray[np.intp]
# Asking the server whether a client went away costs about 90 us, so only requests this old are asked about.
CANCEL_CHECK_AGE_NS = 250_000_000
# How often the clock looks for calls and rows that have waited too long, and about how many requests it asks each
# time whether they were cancelled.
CLOCK_S = 0.1
CANCEL_CHECKS = 16


@dataclass(eq=False, slots=True)
class StageBatch:
    """Rows of one stage that a worker has taken."""

    slots: Slots  # (n,), where they are in the table
    owners: npt.NDArray[np.int64]  # (n,), token of each row's request
    call: StageCall  # with their inputs
    aged: list[PendingRequest]  # requests among them that may have been cancelled
    taken_ns: int  # on the monotonic clock
    worker: threading.Thread  # who asks about them
    is_fed: bool = False  # whether the table has their outputs; from then on other rows may have their slots


class Scheduler:
    """Owns the deferred rows, and their inputs: the only copies that the runtime makes of requests."""

    def __init__(self, spec: CascadeSpec, run: CascadeRun, *, pending: PendingRequests, metrics: Counters) -> None:
        self._spec = spec
        self._run = run
        self._pending = pending
        self._metrics = metrics
        self._gearbox = Gearbox(spec.gears)
        # By slot; they grow with the table, and never shrink, as it does.
        self._inputs = InputBuffer(spec)
        self.room = Room(*spec.most_deferred)
        self._deferred_ns: Times = np.zeros(0, np.int64)  # when the rows in the slots began to wait for a stage
        self._lock = threading.Lock()
        self._work = [threading.Condition(self._lock) for _ in spec.stages]
        self._room = threading.Condition(self._lock)
        self._clock = threading.Condition(self._lock)
        self._asked: set[StageBatch] = set()  # whose members run
        self._gathering = [Gathering(min(one.instances for one in stage.members)) for stage in spec.stages]
        self._limit_ns = spec.limits.member_timeout_ms * 1_000_000
        # By stage, the plan index of its first member.
        self._first_member = [0, *accumulate(len(stage.members) for stage in spec.stages)]
        self._cancel_after = -1  # token of the request that was asked about last
        self._is_stopping = False

    def drain(self, timeout_s: float) -> None:
        """Waits until every request is answered, for so long at most; then lets no thread wait any more."""
        until_s = time.monotonic() + timeout_s
        with self._lock:
            while len(self._pending) and time.monotonic() < until_s:
                self._room.wait(timeout=0.05)
            self._is_stopping = True
            for condition in (*self._work, self._clock, self._room):
                condition.notify_all()

    # -- called for batches that come in ----------------------------------------------------------

    def watch_deadlines(self, batch: Sequence[PendingRequest]) -> None:
        """Requests with a deadline are answered by the clock from now on, even while stage 0 runs."""
        with self._lock:
            self._pending.watch_deadlines(batch)
            self._clock.notify()

    @property
    def bytes_in_table(self) -> int:
        """Bytes of the inputs of deferred rows, where rows differ in size."""
        return self._inputs.bytes

    def wait_for_room(self, rows: int, size_bytes: int, timeout_s: float) -> bool:
        """Blocks while the table could not take so many rows more; a larger batch enters when it is empty.

        Returns:
            whether it can; no for a time that is over or a server that stops.
        """

        def has_room() -> bool:
            in_table, bytes_in_table = self._run.rows_in_table, self._inputs.bytes
            return self.room.takes(rows, size_bytes, in_table=in_table, bytes_in_table=bytes_in_table)

        with self._lock:
            self._room.wait_for(lambda: has_room() or self._is_stopping, timeout_s)
            return has_room()

    def batch_started(self, *, is_backlogged: bool) -> None:
        """A batch came in; a queue that stands behind it moves the gear."""
        with self._lock:
            self._shift(self._gearbox.batch_started(is_backlogged=is_backlogged, now_ns=time.monotonic_ns()))

    def batch_finished(self) -> None:
        """The batch that came in is through stage 0; only where the plan has gears."""
        with self._lock:
            self._gearbox.batch_finished(time.monotonic_ns())

    @property
    def gear(self) -> int:
        """The gear whose thresholds decide about rows that arrive now."""
        with self._lock:
            if not self._run.rows_in_table:
                self._shift(self._gearbox.table_is_empty(time.monotonic_ns()))
            return self._gearbox.gear

    def admit(
        self,
        batch: Sequence[PendingRequest],
        arrivals: Arrivals,
        *,
        rows: AnyRows,
        result: StageResult,
        later: Sequence[Sequence[Rows]],
        errors: Errors,
        cost: float | None,
    ) -> list[Reply]:
        """Decides stage 0 for requests that need the table; returns replies to those that are decided by now.

        Their arrivals, inputs (n, *dims) and the result of stage 0 are in one order, `later`, `errors` and
        `cost` as in `MemberOutputs`. Only inputs of deferred rows are copied.
        """
        with self._lock:
            outcomes = self._run.apply_prefix_outputs(self._run.enter(arrivals, result, cost), later)
            for outcome in outcomes:
                if len(outcome.slots):
                    # Before the lock is free: a worker may take the slots as soon as it is.
                    more = self._run.capacity_rows - len(self._inputs)
                    if more > 0:
                        self._inputs.grow(self._run.capacity_rows)
                        self._deferred_ns = np.pad(self._deferred_ns, (0, more))
                    self._inputs.put(outcome.slots, rows[outcome.deferred])
            # Requests answered meanwhile, at their deadline say, while stage 0 ran.
            gone = [one.token for one in batch if one not in self._pending]
            if gone:
                self._run.drop(np.array(gone))
            return [reply for outcome in outcomes for reply in self._settle(outcome, errors)]

    def pop_all(self, requests: Sequence[PendingRequest]) -> list[bool]:
        """Which of the requests nobody has answered yet; those are the caller's to answer now."""
        with self._lock:
            return [self._pending.pop(one) for one in requests]

    # -- called by the workers' threads -----------------------------------------------------------

    def next_batch(self, stage: int, limit: int) -> StageBatch | None:
        """Waits for rows of a stage and takes up to `limit` of them; None when the server stops.

        While its members are busy, rows gather until there are so many or a call has had most of its time.
        """
        with self._lock:
            while (wait_s := self._wait_s(stage, limit)) != 0:
                self._work[stage].wait(wait_s)
            if not self._run.waiting(stage):
                return None
            slots = self._run.next(stage, limit, self._inputs.groups(stage))
            if self._run.waiting(stage):
                # One worker is woken at a time; it wakes the next while there is something left to do.
                self._work[stage].notify()
            now_ns = time.monotonic_ns()
            if self._spec.gears is not None:
                taken_ns, waiting_ns = self._deferred_ns[slots], self._deferred_ns[self._run.waiting_slots()]
                self._shift(self._gearbox.taken(taken_ns, stage=stage, waiting_ns=waiting_ns, now_ns=now_ns))
            owners = self._run.requests_of(slots)
            found = [self._pending.get(token) for token in set(owners.tolist())]
            aged = [one for one in found if one and one.arrived_ns < now_ns - CANCEL_CHECK_AGE_NS]
            call = StageCall(stage, self._inputs.take(slots))
            batch = StageBatch(slots, owners, call, aged, now_ns, threading.current_thread())
            self._asked.add(batch)
            return batch

    def _wait_s(self, stage: int, limit: int) -> float | None:
        """How long a worker waits before it looks again; 0 for not at all, None until it is woken."""
        rows = self._run.waiting(stage)
        if self._is_stopping or rows >= limit:
            return 0
        if not rows:
            return None
        running = [(one.taken_ns, len(one.slots)) for one in self._asked if one.call.stage == stage]
        return max(self._gathering[stage].wait_ns(running, time.monotonic_ns()), 0) / 1e9

    def feed(self, batch: StageBatch, outputs: MemberOutputs) -> list[Reply]:
        """Decides about a batch's rows by what its stage's members answered."""
        with self._lock:
            self._asked.discard(batch)
            self._gathering[batch.call.stage].returned(batch.taken_ns, len(batch.slots), time.monotonic_ns())
            if self._run.waiting(batch.call.stage):
                # Who lets them gather behind this call need do so no longer.
                self._work[batch.call.stage].notify()
            outcome = self._run.feed(batch.slots, outputs.outputs, cost=outputs.cost)
            batch.is_fed = True
            if outputs.rows is not None and len(outcome.slots):
                self._inputs.put(outcome.slots, outputs.rows[outcome.deferred])
            return self._settle(outcome, outputs.errors)

    def fail_batch(self, batch: StageBatch, message: str) -> list[Reply]:
        """Refuses the requests of a batch that an error of ours has hit."""
        with self._lock:
            self._asked.discard(batch)
            replies = self._give_up(np.unique(batch.owners).tolist(), message, INTERNAL)
            if not batch.is_fed:
                self._run.abandon(batch.slots)
            return replies

    def lost(self, message: str) -> list[Reply]:
        """Refuses what this thread took upon itself to answer before an error of ours."""
        return [Reply(request, None, message, INTERNAL) for request in self._pending.lost()]

    def cancel(self, request: PendingRequest) -> list[Reply]:
        """Gives up the rows of a request whose client went away."""
        with self._lock:
            return self._give_up([request.token], "the client cancelled the request", CANCELLED)

    def refuse_all(self, message: str) -> list[Reply]:
        """Refuses every request that waits."""
        with self._lock:
            return self._give_up([request.token for request in self._pending.all()], message, UNAVAILABLE)

    # -- called by the clock's thread -------------------------------------------------------------

    def next_late(self) -> list[Reply] | None:
        """Waits until a deadline may have come, then answers those rows; None when the server stops.

        Returns after `CLOCK_S` anyway.
        """
        with self._lock:
            if self._is_stopping:
                return None
            now_ns = time.monotonic_ns()
            if self._spec.gears is not None and not self._run.rows_in_table:
                self._shift(self._gearbox.quiet(now_ns))
            deadline_ns = self._pending.next_deadline_ns
            if deadline_ns is None or deadline_ns > now_ns:
                wait_s = CLOCK_S if deadline_ns is None else (deadline_ns - now_ns) / 1e9
                self._clock.wait(timeout=min(wait_s, CLOCK_S))
                return []
            late = self._pending.late(now_ns)
            replies = self._settle(self._run.expire(now_ns), {})
            # What still waits has rows without any answer, or is at stage 0.
            return replies + self._give_up([one.token for one in late if one in self._pending], LATE, UNAVAILABLE)

    def overdue(self) -> list[StageBatch]:
        """Batches whose members have had their time."""
        with self._lock:
            then_ns = time.monotonic_ns() - self._limit_ns
            return [batch for batch in self._asked if batch.taken_ns <= then_ns]

    def skip_stages(self) -> list[Reply]:
        """Decides about rows that have waited for a stage as long as members may take, as if these failed."""
        with self._lock:
            waiting = self._run.waiting_slots()
            if not len(waiting):
                return []
            late = waiting[self._deferred_ns[waiting] <= time.monotonic_ns() - self._limit_ns]
            stages, replies = self._run.stages_of(late), []
            for stage in np.unique(stages).tolist():
                place = self._first_member[stage]
                text = f"stage {stage} member {self._spec.members[place].name}: not asked within "
                text += f"{self._spec.limits.member_timeout_ms} ms, too many rows wait for it"
                replies += self._settle(self._run.skip(late[stages == stage]), {(place, EVERY_ROW): Refusal(text)})
            return replies

    def refuse_old(self) -> list[Reply]:
        """Refuses requests that are older than all stages together may take, wherever they are."""
        with self._lock:
            then_ns = time.monotonic_ns() - len(self._spec.stages) * self._limit_ns
            old = [one.token for one in self._pending.all() if one.arrived_ns <= then_ns]
            total_ms = len(self._spec.stages) * self._spec.limits.member_timeout_ms
            return self._give_up(
                old, f"no answer within {total_ms} ms, the limit of all stages; try again", UNAVAILABLE
            )

    def aged(self) -> list[PendingRequest]:
        """Some requests with rows in the table that may have been cancelled; all of them have their turn."""
        with self._lock:
            tokens = self._run.open_requests()
            turn = np.roll(tokens, -int(np.searchsorted(tokens, self._cancel_after, side="right")))
            then_ns = time.monotonic_ns() - CANCEL_CHECK_AGE_NS
            found = [self._pending.get(token) for token in turn.tolist()]
            aged = [one for one in found if one is not None and one.arrived_ns < then_ns][:CANCEL_CHECKS]
            if aged:
                self._cancel_after = aged[-1].token
            return aged

    # -- under the lock ---------------------------------------------------------------------------

    def _settle(self, outcome: StageOutcome, errors: Errors) -> list[Reply]:
        """Counts an outcome, wakes who waits for it, and returns the replies it makes possible."""
        self._metrics.outcome(outcome)
        self._forget()
        if len(outcome.slots):
            self._deferred_ns[outcome.slots] = time.monotonic_ns()
            self._work[outcome.stage + 1].notify()
        self._room.notify_all()
        # Requests are popped last: an error of ours before it leaves them to be answered by who deals with it.
        replies = self._fail(outcome.failures, errors) if len(outcome.failures) else []
        done = completed(outcome.answers, self._pending)
        return replies + [Reply(request, columns) for request, columns in done if self._pending.pop(request)]

    def _fail(self, failures: FailedRows, errors: Errors) -> list[Reply]:
        replies = []
        tokens, places = np.unique(failures.request, return_index=True)
        for token, place in zip(tokens.tolist(), places.tolist(), strict=True):
            own = failures[failures.request == token]
            positions = dict(zip(own.row.tolist(), own.position.tolist(), strict=True))
            member, row = int(failures.member[place]), int(failures.row[place])
            message, code = reason_of(self._spec, member, row, errors=errors, positions=positions)
            # One row without an answer is the end of its request, so its other rows are not worth asking about.
            replies += self._give_up([token], message, code)
        return replies

    def _give_up(self, tokens: Sequence[int], message: str, code: str) -> list[Reply]:
        """Drops the rows of requests; errors for those that nobody has answered yet."""
        if not tokens:
            return []
        self._run.drop(np.array(tokens))
        self._forget()
        self._room.notify_all()
        waiting = [request for token in tokens if (request := self._pending.get(token)) is not None]
        own = [request for request in waiting if self._pending.pop(request)]
        for request in own:
            self._metrics.refused(request.count)
        return [Reply(request, None, message, code) for request in own]

    def _forget(self) -> None:
        """Lets go of inputs whose rows have left, where their bytes count."""
        if self._inputs.bytes:
            self._inputs.forget(self._run.free_slots())

    def _shift(self, step: int) -> None:
        if step:
            self._metrics.shifted(self._gearbox.gear, step)
            self._clock.notify()
