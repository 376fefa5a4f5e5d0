"""Deferred rows of all requests, pooled per stage, and the threads that ask members about them.

Rules of this file:
- One lock guards the run, the deadlines and the inputs. Members are asked and answers are sent outside it, by the
  threads of `Workers`, so nothing under the lock takes long.
- Only who pops a request from `PendingRequests` may return a reply to it.
- Rows in the table are bounded by the admission limit (`wait_for_room`); nothing else here grows.
- A thread never dies: an error of ours in its loop is answered to the requests it held, and the loop goes on.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.bls.gears import LOOK_S, Gearbox, Slots
from orchestrator.bls.member_calls import Errors, MemberCalls, MemberOutputs
from orchestrator.bls.metrics import Counters
from orchestrator.bls.requests import (
    CANCELLED,
    INTERNAL,
    LATE,
    UNAVAILABLE,
    PendingRequest,
    PendingRequests,
    Reply,
    Rows,
    completed,
    reason_of,
)
from orchestrator.decision import Arrivals, CascadeRun, FailedRows, StageOutcome, StageResult
from orchestrator.spec import CascadeSpec

# Asking the server whether a client went away costs about 90 us, so only requests this old are asked about.
CANCEL_CHECK_AGE_NS = 250_000_000
DRAIN_TIMEOUT_S = 30.0


@dataclass(slots=True)
class StageBatch:
    """Rows of one stage that a worker has taken."""

    slots: Slots  # (n,), where they are in the table
    owners: npt.NDArray[np.int64]  # (n,), token of each row's request
    rows: Rows  # (n, *dims), their inputs
    aged: list[PendingRequest]  # requests among them that may have been cancelled
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
        self._inputs: Rows = np.zeros((0, *spec.input.dims), spec.input.numpy_dtype)
        self._lock = threading.Lock()
        self._work = [threading.Condition(self._lock) for _ in spec.stages]
        self._room = threading.Condition(self._lock)
        self._clock = threading.Condition(self._lock)
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

    def wait_for_room(self, rows: int) -> None:
        """Blocks while the table could not take `rows` more; a larger batch enters when it is empty."""
        limit = self._spec.limits.max_deferred_rows
        with self._lock:
            while self._run.rows_in_table and self._run.rows_in_table + rows > limit and not self._is_stopping:
                # With a limit, so that no error of ours can block the server's thread for ever.
                self._room.wait(timeout=1.0)

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
        rows: Rows,
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
                        self._inputs = np.pad(self._inputs, [(0, more), *[(0, 0)] * (rows.ndim - 1)])
                    self._inputs[outcome.slots] = rows[outcome.deferred]
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
            slots = self._run.next(stage, limit)
            if self._run.waiting(stage):
                # One worker is woken at a time; it wakes the next while there is something left to do.
                self._work[stage].notify()
            now_ns = time.monotonic_ns()
            if self._spec.gears is not None:
                waiting = self._run.waiting_slots()
                self._shift(self._gearbox.taken(slots, stage=stage, waiting=waiting, now_ns=now_ns))
            owners = self._run.requests_of(slots)
            found = [self._pending.get(token) for token in set(owners.tolist())]
            aged = [one for one in found if one and one.arrived_ns < now_ns - CANCEL_CHECK_AGE_NS]
            return StageBatch(slots, owners, self._inputs[slots], aged)

    def feed(self, batch: StageBatch, outputs: MemberOutputs) -> list[Reply]:
        """Decides about a batch's rows by what its stage's members answered."""
        with self._lock:
            outcome = self._run.feed(batch.slots, outputs.outputs, cost=outputs.cost)
            batch.is_fed = True
            return self._settle(outcome, outputs.errors)

    def fail_batch(self, batch: StageBatch, message: str) -> list[Reply]:
        """Refuses the requests of a batch that an error of ours has hit."""
        with self._lock:
            replies = self._give_up(np.unique(batch.owners).tolist(), message, INTERNAL)
            if not batch.is_fed:
                self._run.abandon(batch.slots)
            return replies

    def cancel(self, request: PendingRequest) -> list[Reply]:
        """Gives up the rows of a request whose client went away."""
        with self._lock:
            return self._give_up([request.token], "the client cancelled the request", CANCELLED)

    def refuse_all(self, message: str) -> list[Reply]:
        """Refuses every request that waits."""
        with self._lock:
            return self._give_up([request.token for request in self._pending.all()], message, UNAVAILABLE)

    def next_late(self) -> list[Reply] | None:
        """Waits until a deadline may have come, then answers those rows; None when the server stops."""
        with self._lock:
            if self._is_stopping:
                return None
            now_ns = time.monotonic_ns()
            if not self._run.rows_in_table:
                self._shift(self._gearbox.quiet(now_ns))
            deadline_ns = self._pending.next_deadline_ns
            if deadline_ns is None or deadline_ns > now_ns:
                waits_s = [] if deadline_ns is None else [(deadline_ns - now_ns) / 1e9]
                waits_s += [LOOK_S] if self._gearbox.gear else []
                self._clock.wait(timeout=min(waits_s, default=None))
                return []
            late = self._pending.late(now_ns)
            replies = self._settle(self._run.expire(now_ns), {})
            # What still waits has rows without any answer, or is at stage 0.
            return replies + self._give_up([one.token for one in late if one in self._pending], LATE, UNAVAILABLE)

    # -- under the lock ---------------------------------------------------------------------------

    def _settle(self, outcome: StageOutcome, errors: Errors) -> list[Reply]:
        """Counts an outcome, wakes who waits for it, and returns the replies it makes possible."""
        self._metrics.outcome(outcome)
        if len(outcome.slots):
            if self._spec.gears is not None:
                now_ns = time.monotonic_ns()
                self._gearbox.deferred(outcome.slots, capacity_rows=self._run.capacity_rows, now_ns=now_ns)
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
        self._room.notify_all()
        waiting = [request for token in tokens if (request := self._pending.get(token)) is not None]
        own = [request for request in waiting if self._pending.pop(request)]
        for request in own:
            self._metrics.refused(request.count)
        return [Reply(request, None, message, code) for request in own]

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
    log: Callable[[str], None]  # writes one line to the server's log

    def __post_init__(self) -> None:
        self._threads = [threading.Thread(target=self._answer_late, name="committee-clock", daemon=True)]
        for stage, part in enumerate(self.spec.stages[1:], start=1):
            # Where the plan does not say, one batch waits at the member while another runs, so that it never idles
            # between two calls.
            workers = self.spec.limits.workers_per_stage or 1 + min(member.instances for member in part.members)
            for name in (f"committee-stage{stage}-{index}" for index in range(workers)):
                self._threads.append(threading.Thread(target=self._work, args=(stage,), name=name, daemon=True))

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Lets deferred rows finish, answers what is left with an error, and ends the threads."""
        self.scheduler.drain(timeout_s)
        self.refuse_all("the server is stopping; try again")
        for thread in self._threads:
            thread.join(timeout=5)

    def refuse_all(self, message: str) -> None:
        """Answers every request that waits with an error."""
        self._send_all(self.scheduler.refuse_all(message))

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
                self._ask(stage, batch)
            except Exception as error:  # the rows held must still be answered
                text = f"{type(error).__name__}: {error}"
                self.log(f"committee: worker: {text}")
                if batch is not None:
                    self._send_all(self.scheduler.fail_batch(batch, f"cascade failed: {text}"))

    def _ask(self, stage: int, batch: StageBatch) -> None:
        for request in batch.aged:
            server_request = request.request  # None where an answer has gone out meanwhile
            if server_request is not None and server_request.is_cancelled():
                self._send_all(self.scheduler.cancel(request))
        outputs = self.calls.ask(stage, batch.rows, owners=lambda: batch.owners)
        self._send_all(self.scheduler.feed(batch, outputs))

    def _answer_late(self) -> None:
        while True:
            try:
                replies = self.scheduler.next_late()
                if replies is None:
                    return
                self._send_all(replies)
            except Exception as error:  # the clock must go on for everybody else
                self.log(f"committee: deadline clock: {type(error).__name__}: {error}")

    def _send_all(self, replies: list[Reply]) -> None:
        if not replies:
            return
        now_ns = time.monotonic_ns()
        self.metrics.latencies([now_ns - reply.request.arrived_ns for reply in replies])
        for reply in replies:
            self.send(reply)
