"""The threads that ask members about deferred rows, and the one that answers rows whose deadline has come.

A thread never dies: an error of ours in its loop is answered to the requests it held, and the loop goes on.
"""

import threading
import time
from collections.abc import Callable

from orchestrator.bls.member_calls import MemberCalls
from orchestrator.bls.metrics import Counters
from orchestrator.bls.responses import Reply
from orchestrator.bls.scheduler import Scheduler, StageBatch
from orchestrator.spec import CascadeSpec

DRAIN_TIMEOUT_S = 30.0


def workers_of(spec: CascadeSpec, stage: int) -> int:
    """How many workers ask a later stage at once.

    Where the plan does not say, one batch waits at the member while another runs, so that it never idles between
    two calls.
    """
    return spec.limits.workers_per_stage or 1 + min(member.instances for member in spec.stages[stage].members)


class Workers:
    """Threads over the deferred rows of one cascade.

    Args:
        spec: the cascade.
        scheduler: owns the rows.
        calls: asks members.
        metrics: counts what happens.
        send: sends one late reply.
        log: writes one line to the server's log.
    """

    def __init__(
        self,
        spec: CascadeSpec,
        scheduler: Scheduler,
        *,
        calls: MemberCalls,
        metrics: Counters,
        send: Callable[[Reply], None],
        log: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._scheduler = scheduler
        self._calls = calls
        self._metrics = metrics
        self._send = send
        self._log = log
        self._threads = [threading.Thread(target=self._answer_late, name="committee-clock", daemon=True)]
        for stage in range(1, len(spec.stages)):
            for name in (f"committee-stage{stage}-{index}" for index in range(workers_of(spec, stage))):
                self._threads.append(threading.Thread(target=self._work, args=(stage,), name=name, daemon=True))

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Lets deferred rows finish, answers what is left with an error, and ends the threads."""
        self._scheduler.drain(timeout_s)
        self.refuse_all("the server is stopping; try again")
        for thread in self._threads:
            thread.join(timeout=5)

    def refuse_all(self, message: str) -> None:
        """Answers every request that waits with an error."""
        self._send_all(self._scheduler.refuse_all(message))

    def _work(self, stage: int) -> None:
        """Asks a stage's members about the most urgent rows, again and again."""
        # One batch for all members of the stage, so the smallest limit counts.
        limit = min(member.max_batch_size for member in self._spec.stages[stage].members)
        while True:
            batch = None
            try:
                batch = self._scheduler.next_batch(stage, limit)
                if batch is None:
                    return
                for request in batch.aged:
                    server_request = request.request  # None where an answer has gone out meanwhile
                    if server_request is not None and server_request.is_cancelled():
                        self._send_all(self._scheduler.cancel(request))
                outputs = self._calls.ask(stage, batch.rows, owners=batch.owners_of_rows)
                self._send_all(self._scheduler.feed(batch, outputs))
            except Exception as error:  # the rows held must still be answered
                self._fail_batch(batch, error)

    def _fail_batch(self, batch: StageBatch | None, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._log(f"committee: worker: {text}")
        if batch is not None:
            self._send_all(self._scheduler.fail_batch(batch, f"cascade failed: {text}"))

    def _answer_late(self) -> None:
        while True:
            try:
                replies = self._scheduler.next_late()
                if replies is None:
                    return
                self._send_all(replies)
            except Exception as error:  # the clock must go on for everybody else
                self._log(f"committee: deadline clock: {type(error).__name__}: {error}")

    def _send_all(self, replies: list[Reply]) -> None:
        if not replies:
            return
        now_ns = time.monotonic_ns()
        self._metrics.latencies([now_ns - reply.request.arrived_ns for reply in replies])
        for reply in replies:
            self._send(reply)
