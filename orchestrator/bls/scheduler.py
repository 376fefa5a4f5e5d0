"""Deferred rows of all requests, pooled per stage and drained by workers.

Rules of this file:
- One lock guards the run, the requests and the inputs. Members are asked and answers are sent outside it.
- A request leaves the books in the same locked step that decides its answer; whoever removed it sends it. So every
  request is answered exactly once, whatever else happens to its rows.
- A thread never dies: an error of ours in its loop is answered to the requests it held, and the loop goes on.
- Rows in the table are bounded by the door (`wait_for_room`); nothing else here grows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.bls.books import NOBODY, PendingRequests, Tokens
from orchestrator.bls.gears import LOOK_S, Gearbox, Slots
from orchestrator.bls.isolation import Owners
from orchestrator.bls.kept import InputBuffer
from orchestrator.bls.leading import apply_prefix_outputs
from orchestrator.bls.member_calls import Errors, MemberCalls, workers_of
from orchestrator.bls.metrics import Counters
from orchestrator.bls.requests import (
    CANCELLED,
    INTERNAL,
    LATE,
    UNAVAILABLE,
    PendingRequest,
    Reply,
    reason_of,
    spread,
)
from orchestrator.bls.tensors import Rows
from orchestrator.decision import Arrivals, CascadeRun, FailedRows, Stage0Result, StageOutcome
from orchestrator.spec import CascadeSpec

# Asking the server whether a client went away costs about 90 us, so only requests this old are asked about.
CANCEL_CHECK_AGE_NS = 250_000_000
DRAIN_TIMEOUT_S = 30.0


class Scheduler:
    """Owns the deferred rows and the threads that serve them.

    Args:
        spec: the cascade.
        calls: asks members.
        counters: counts what happens.
        send: sends one late reply; called without the lock.
        log: writes one line to the server's log.
    """

    def __init__(
        self,
        spec: CascadeSpec,
        calls: MemberCalls,
        *,
        counters: Counters,
        send: Callable[[Reply], None],
        log: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._calls = calls
        self._counters = counters
        self._send = send
        self._log = log
        self._run = CascadeRun(spec)
        self._gearbox = Gearbox(spec.gears)
        self._books = PendingRequests()
        self._inputs = InputBuffer(spec.input)
        self._lock = threading.Lock()
        self._work = [threading.Condition(self._lock) for _ in spec.stages]
        self._room = threading.Condition(self._lock)
        self._clock = threading.Condition(self._lock)
        self._stopping = False
        self._threads = self._make_threads()

    def _make_threads(self) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._watch_deadlines, name="committee-clock", daemon=True)]
        for stage in range(1, len(self._spec.stages)):
            for name in (f"committee-stage{stage}-{index}" for index in range(workers_of(self._spec, stage))):
                threads.append(threading.Thread(target=self._drain, args=(stage,), name=name, daemon=True))
        return threads

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Lets deferred rows finish, answers what is left with an error, and ends the threads."""
        until = time.monotonic() + timeout_s
        with self._lock:
            while self._books.known and time.monotonic() < until:
                self._room.wait(timeout=0.05)
            self._stopping = True
            for condition in (*self._work, self._clock, self._room):
                condition.notify_all()
        self.refuse_all("the server is stopping; try again")
        for thread in self._threads:
            thread.join(timeout=5)

    def refuse_all(self, message: str) -> None:
        """Answers every request that waits with an error."""
        with self._lock:
            known = list(self._books.known.values())
            self._run.drop(np.array([pending.token for pending in known], np.int64))
            replies = [self._refuse(pending, message, UNAVAILABLE) for pending in known]
            self._room.notify_all()
        self._send_all(replies)

    # -- called from execute ----------------------------------------------------------------------

    def expect(self, pending: Sequence[PendingRequest]) -> None:
        """Registers requests with a deadline before stage 0 is asked, so that it can answer them meanwhile."""
        with self._lock:
            for one in pending:
                self._books.register(one)
            self._clock.notify()

    def wait_for_room(self, rows: int) -> None:
        """Blocks while the table could not take `rows` more; a larger batch enters when it is empty."""
        bound = self._spec.limits.max_deferred_rows
        # Without the lock, because rows come in through this thread alone: behind its back they only get fewer.
        if self._run.rows_in_table + rows <= bound:
            return
        with self._lock:
            while self._run.rows_in_table and self._run.rows_in_table + rows > bound and not self._stopping:
                self._room.wait(timeout=1.0)

    def came(self, *, stands: bool) -> None:
        """A batch came in; a queue that stands behind it moves the gear."""
        with self._lock:
            self._shift(self._gearbox.came(stands=stands, now_ns=time.monotonic_ns()))

    def left(self) -> None:
        """The batch that came in is through stage 0; only where the plan has gears."""
        with self._lock:
            self._gearbox.left(time.monotonic_ns())

    @property
    def gear(self) -> int:
        """The gear rows that arrive now are judged by."""
        with self._lock:
            if not self._run.rows_in_table:
                self._shift(self._gearbox.empty(time.monotonic_ns()))
            return self._gearbox.gear

    def admit(
        self,
        batch: Sequence[PendingRequest],
        arrivals: Arrivals,
        *,
        rows: Rows,
        look: Stage0Result,
        later: Sequence[Sequence[Rows]],
        errors: Errors,
    ) -> list[Reply]:
        """Decides stage 0 for requests that need the table, and pools what is unsure.

        Args:
            batch: the requests, in the order of the rows.
            arrivals: n rows.
            rows: (n, *dims), their inputs; only those of deferred rows are copied.
            look: what stage 0 said of them.
            later: what a lead said of the stages after it, as in `StageResult`.
            errors: why members of stage 0 failed, as in `StageResult`.

        Returns:
            replies for requests that are decided by now.
        """
        with self._lock:
            # Of one with a deadline that is known no more, that deadline passed while stage 0 ran.
            gone = [one.token for one in batch if one.answered]
            for one in batch:
                if not one.answered:
                    self._books.register(one)
            outcome = self._run.enter(arrivals, look)
            followed = apply_prefix_outputs(self._run, self._counters, outcome, later=later)
            for part in followed:
                if len(part.slots):
                    kept = rows[part.deferred]
                    self._inputs.put(part.slots, kept, capacity_rows=self._run.capacity_rows)
            if gone:
                self._run.drop(np.array(gone))
            return [reply for part in followed for reply in self._settle(part, errors)]

    def claim(self, pending: Sequence[PendingRequest]) -> list[PendingRequest]:
        """Those of the requests that nobody has answered yet; they are the caller's to answer now."""
        with self._lock:
            left = [one for one in pending if not one.answered]
            for one in left:
                self._books.forget(one)
                one.answered = True
        return left

    # -- threads ----------------------------------------------------------------------------------

    def _drain(self, stage: int) -> None:
        """A worker of a later stage."""
        limit = min(member.max_batch_size for member in self._spec.stages[stage].members)
        while True:
            slots, tokens = None, NOBODY
            try:
                taken = self._next_batch(stage, limit)
                if taken is None:
                    return
                slots, owners, tokens, rows, aged = taken
                self._drop_cancelled(aged)
                result = self._calls.ask(stage, rows, owners=owners)
                with self._lock:
                    outcome = self._run.feed(slots, result.outputs)
                    slots = None  # free: another request may have them before an error is dealt with
                    replies = self._settle(outcome, result.errors)
                self._send_all(replies)
            except Exception as error:  # our own fault: the rows held must still be answered
                self._give_up(slots, tokens, error)

    def _next_batch(
        self, stage: int, limit: int
    ) -> tuple[Slots, Owners, Tokens, Rows, list[PendingRequest]] | None:
        with self._lock:
            while not self._run.waiting(stage):
                if self._stopping:
                    return None
                self._work[stage].wait()
            slots = self._run.next(stage, limit)
            if self._run.waiting(stage):
                # One worker is woken at a time; it wakes the next while there is something left to do.
                self._work[stage].notify()
            self._counters.asked(len(slots), self._spec.stages[stage].cost)
            if self._spec.gears is not None:
                waiting, now_ns = self._run.waiting_slots(), time.monotonic_ns()
                self._shift(self._gearbox.taken(slots, stage=stage, waiting=waiting, now_ns=now_ns))
            owners = self._run.requests_of(slots)
            tokens = set(owners.tolist())
            aged = self._books.older_than(time.monotonic_ns() - CANCEL_CHECK_AGE_NS, tokens)
            return slots, lambda: owners, tokens, self._inputs.take(slots), aged

    def _watch_deadlines(self) -> None:
        """The clock: answers rows whose time is up, wherever they are."""
        while True:
            try:
                with self._lock:
                    if self._stopping:
                        return
                    now = time.monotonic_ns()
                    if not self._run.rows_in_table:
                        self._shift(self._gearbox.quiet(now))
                    soonest = self._books.soonest_ns
                    if soonest is None or soonest > now:
                        waits_s = [] if soonest is None else [(soonest - now) / 1e9]
                        waits_s += [LOOK_S] if self._gearbox.gear else []
                        self._clock.wait(timeout=min(waits_s, default=None))
                        continue
                    replies = self._expire(now)
                self._send_all(replies)
            except Exception as error:  # the clock must go on for everybody else
                self._log(f"committee: deadline clock: {type(error).__name__}: {error}")

    # -- under the lock ---------------------------------------------------------------------------

    def _expire(self, now_ns: int) -> list[Reply]:
        late = self._books.take_late(now_ns)
        replies = self._settle(self._run.expire(now_ns), {})
        for token in late:
            # What is known still has rows without any answer, or waits for stage 0.
            pending = self._books.known.get(token)
            if pending is not None:
                self._run.drop(np.array([token]))
                replies.append(self._refuse(pending, LATE, UNAVAILABLE))
        return replies

    def _settle(self, outcome: StageOutcome, errors: Errors) -> list[Reply]:
        """PendingRequests an outcome and returns the replies it makes possible."""
        self._counters.outcome(outcome)
        replies = self._fail(outcome.failures, errors) if len(outcome.failures) else []
        for pending, columns in spread(outcome.answers, self._books.known):
            if self._books.forget(pending):
                replies.append(Reply(pending, columns))
        if len(outcome.slots):
            now_ns = time.monotonic_ns()
            self._gearbox.deferred(outcome.slots, capacity_rows=self._run.capacity_rows, now_ns=now_ns)
            self._work[outcome.stage + 1].notify()
        self._room.notify_all()
        return replies

    def _fail(self, failures: FailedRows, errors: Errors) -> list[Reply]:
        replies = []
        for token in [one for one in np.unique(failures.request).tolist() if one in self._books.known]:
            place = int((failures.request == token).argmax())
            reason = reason_of(self._spec, int(failures.member[place]), int(failures.row[place]), errors)
            self._run.drop(np.array([token]))
            replies.append(self._refuse(self._books.known[token], reason, UNAVAILABLE))
        return replies

    def _refuse(self, pending: PendingRequest, message: str, code: str) -> Reply:
        self._counters.refused(pending.count)
        self._books.forget(pending)
        return Reply(pending, None, message, code)

    def _shift(self, step: int) -> None:
        if step:
            self._counters.shifted(self._gearbox.gear, step)
            self._clock.notify()

    # -- outside the lock -------------------------------------------------------------------------

    def _drop_cancelled(self, aged: list[PendingRequest]) -> None:
        for pending in aged:
            request = pending.request
            if request is None or not request.is_cancelled():
                continue
            with self._lock:
                if pending.token not in self._books.known:
                    continue
                self._run.drop(np.array([pending.token]))
                replies = [self._refuse(pending, "the client cancelled the request", CANCELLED)]
            self._send_all(replies)

    def _give_up(self, slots: Slots | None, tokens: Tokens, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._log(f"committee: worker: {text}")
        with self._lock:
            self._run.drop(np.array(list(tokens), np.int64))
            if slots is not None:
                self._run.abandon(slots)
            held = [self._books.known[token] for token in tokens if token in self._books.known]
            replies = [self._refuse(pending, f"cascade failed: {text}", INTERNAL) for pending in held]
            self._room.notify_all()
        self._send_all(replies)

    def _send_all(self, replies: list[Reply]) -> None:
        now = time.monotonic_ns()
        if replies:
            self._counters.latencies([now - reply.pending.arrived_ns for reply in replies])
        for reply in replies:
            self._send(reply)
