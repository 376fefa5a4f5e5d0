"""The threads that ask members about deferred rows, and the clock that looks after rows and calls.

A thread never dies: an error of ours in its loop is answered to the requests it held, and the loop goes on. Only a
worker whose call was given up ends, when the call returns, because another has taken its place. Every row leaves:
the clock looks after calls and rows that have waited too long, whoever should have answered.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.bls.member_calls import MemberCalls
from orchestrator.bls.metrics import Counters
from orchestrator.bls.requests import INTERNAL, PendingRequest, Reply
from orchestrator.bls.scheduler import CLOCK_S, Scheduler, StageBatch
from orchestrator.spec import CascadeSpec

DRAIN_TIMEOUT_S = 30.0
# What becomes of requests after an error of ours is tried so often, and so long apart.
MOST_TRIES, TRY_AGAIN_S = 50, 0.1


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
