"""Deferred rows of all requests, pooled per stage, and the threads that ask members about them.

Rules of this file:
- One lock guards the run, the deadlines and the inputs. Members are asked and answers are sent outside it, by the
  threads of `Workers`, so nothing under the lock takes long.
- Only who pops a request from `PendingRequests` may return a reply to it.
- Rows in the table are bounded by the admission limit (`wait_for_room`); nothing else here grows.
- A thread never dies: an error of ours in its loop is answered to the requests it held, and the loop goes on. Only
  a worker whose call was given up ends, when the call returns, because another has taken its place.
- Every row leaves: the clock looks after calls and rows that have waited too long, whoever should have answered.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from orchestrator.bls.gears import Gearbox, Times
from orchestrator.bls.input_buffer import InputBuffer, Room
from orchestrator.bls.member_calls import MemberCalls
from orchestrator.bls.metrics import Counters
from orchestrator.bls.pieces import EVERY_ROW, Errors, MemberOutputs, StageCall
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
DRAIN_TIMEOUT_S = 30.0
# What becomes of requests after an error of ours is tried so often, and so long apart.
MOST_TRIES, TRY_AGAIN_S = 50, 0.1


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
        """Waits for rows of a stage and takes up to `limit` of them; None when the server stops."""
        with self._lock:
            while not self._run.waiting(stage):
                if self._is_stopping:
                    return None
                self._work[stage].wait()
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

    def feed(self, batch: StageBatch, outputs: MemberOutputs) -> list[Reply]:
        """Decides about a batch's rows by what its stage's members answered."""
        with self._lock:
            self._asked.discard(batch)
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
                replies += self._settle(self._run.skip(late[stages == stage]), {(place, EVERY_ROW): text})
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
            reason = reason_of(self._spec, int(failures.member[place]), int(failures.row[place]), errors)
            # One row without an answer is the end of its request, so its other rows are not worth asking about.
            replies += self._give_up([token], reason, UNAVAILABLE)
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


@dataclass(eq=False)
class Workers:
    """Threads over the deferred rows of one cascade."""

    spec: CascadeSpec
    scheduler: Scheduler  # owns the rows
    calls: MemberCalls
    metrics: Counters
    send: Callable[[Reply], None]  # sends one late reply
    is_cancelled: Callable[[PendingRequest], bool]  # whether the client of a request that waits went away
    log: Callable[[str], None]  # writes one line to the server's log

    def __post_init__(self) -> None:
        self._clock = threading.Thread(target=self._answer_late, name="committee-clock", daemon=True)
        self._workers: set[threading.Thread] = set()  # without those whose call was given up
        self._missing: list[int] = []  # stages of workers that are to be started
        for stage, part in enumerate(self.spec.stages[1:], start=1):
            # Where the plan does not say, one batch waits at the member while another runs, so that it never idles
            # between two calls.
            workers = self.spec.limits.workers_per_stage or 1 + min(member.instances for member in part.members)
            self._missing += [stage] * workers

    def start(self) -> None:
        """Starts the threads."""
        self._start_missing()
        self._clock.start()

    def _start_missing(self) -> None:
        while self._missing:
            stage = self._missing[-1]
            worker = threading.Thread(
                target=self._work, args=(stage,), name=f"committee-stage{stage}", daemon=True
            )
            self._workers.add(worker)
            try:
                worker.start()
            except RuntimeError:  # no thread to be had now
                self._workers.discard(worker)
                raise
            self._missing.pop()

    def stop(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Lets deferred rows finish, answers what is left with an error, and ends the threads."""
        self.scheduler.drain(timeout_s)
        self.refuse_all("the server is stopping; try again")
        for thread in (self._clock, *self._workers):
            thread.join(timeout=5)

    def refuse_all(self, message: str) -> None:
        """Answers every request that waits with an error."""
        try:
            self._send_all(self.scheduler.refuse_all(message))
        except Exception as error:  # who calls has other things to do, and what was begun must still be answered
            self._recover("refusing", error)

    def _work(self, stage: int) -> None:
        """Asks a stage's members about the most urgent rows, again and again."""
        # One batch for all members of the stage, so the smallest limit counts.
        limit = min(member.max_batch_size for member in self.spec.stages[stage].members)
        while True:
            batch = None
            try:
                batch = self.scheduler.next_batch(stage, limit)
                if batch is None:
                    return
                if not self._ask(batch):
                    return
            except Exception as error:  # the rows held must still be answered
                self._recover("worker", error, batch)

    def _ask(self, batch: StageBatch) -> bool:
        """Asks the members about a batch; returns whether its rows were still this worker's to deal with."""
        self._cancel(batch.aged)
        outputs = self.calls.ask(batch.call, owners=lambda: batch.owners)
        if outputs is not None:
            self._send_all(self.scheduler.feed(batch, outputs))
        return outputs is not None

    def _cancel(self, requests: Sequence[PendingRequest]) -> None:
        for request in requests:
            if self.is_cancelled(request):
                self._send_all(self.scheduler.cancel(request))

    def _answer_late(self) -> None:
        looked_s = 0.0
        while True:
            try:
                replies = self.scheduler.next_late()
                if replies is None:
                    return
                self._send_all(replies)
                if time.monotonic() - looked_s >= CLOCK_S:
                    looked_s = time.monotonic()
                    self._look_after_rows()
            except Exception as error:  # the clock must go on for everybody else
                self._recover("deadline clock", error)

    def _look_after_rows(self) -> None:
        """Deals with what has waited too long, and with requests whose clients went away."""
        for batch in self.scheduler.overdue():
            self._replace(batch)
        self._send_all(self.scheduler.skip_stages())
        self._send_all(self.scheduler.refuse_old())
        self._cancel(self.scheduler.aged())
        self._start_missing()

    def _replace(self, batch: StageBatch) -> None:
        """Gives the call of a batch up, and has another worker in the place of the one that makes it."""
        outputs = self.calls.give_up(batch.call)
        if outputs is None:
            return
        self._workers.discard(batch.worker)
        self._missing.append(batch.call.stage)
        try:
            self._send_all(self.scheduler.feed(batch, outputs))
        except Exception as error:  # the rows must still be answered
            self._recover("worker", error, batch)

    def _send_all(self, replies: list[Reply]) -> None:
        unsent = self._send_each(replies)
        if unsent is not None:
            self._recover("worker", unsent)
        if replies:
            now_ns = time.monotonic_ns()
            self.metrics.latencies([now_ns - reply.request.arrived_ns for reply in replies])

    def _send_each(self, replies: list[Reply]) -> Exception | None:
        """Sends replies, an error in place of one that cannot be sent; returns why a request has got neither."""
        unsent = None
        for reply in replies:
            try:
                self.send(reply)
            except Exception as error:  # the others must get theirs
                text = f"{type(error).__name__}: {error}"
                try:
                    self.log(f"committee: worker: {text}")
                    self.send(Reply(reply.request, None, f"cascade failed: {text}", INTERNAL))
                except Exception as again:
                    unsent = again
        return unsent

    def _recover(self, who: str, error: Exception, batch: StageBatch | None = None) -> None:
        """Answers the requests of a batch, and what this thread had begun to answer, after an error of ours.

        It raises nothing, because the thread must go on: what fails here as well is tried again a little later.
        """
        text = f"{type(error).__name__}: {error}"
        message = f"cascade failed: {text}"
        for _ in range(MOST_TRIES):
            try:
                self.log(f"committee: {who}: {text}")
                if batch is not None:
                    self.scheduler.fail_batch(batch, message)
                    batch = None
                # What the line above gives is among them: this thread has popped it and not answered it.
                if self._send_each(self.scheduler.lost(message)) is None:
                    return
            except Exception as again:  # for want of memory, say
                text = f"{type(again).__name__}: {again}"
            time.sleep(TRY_AGAIN_S)
