"""An open loop: requests leave at times drawn beforehand, whether or not earlier ones were answered.

Rules of this file: latency counts from the moment a request was *due*, so that a slow server cannot thin out its
own load; how late requests really left is kept beside it. The same seed gives every route the same moments.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError

Send = Callable[[int], Awaitable[Any]]
# A thread that wakes to send may wait this long for the interpreter; Python's own 5 ms would be latency.
_SWITCH_S = 0.0002
# Between the call and the first moment.
HEAD_START_S = 0.05


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Everything that was sent, n requests in the order they were due.

    Args:
        due_s: float64 (n,), from the start.
        sent_s: float64 (n,).
        done_s: float64 (n,), NaN where no answer came in time.
        answers: what `send` returned, None where no answer came.
    """

    due_s: npt.NDArray[np.float64] = field(repr=False)
    sent_s: npt.NDArray[np.float64] = field(repr=False)
    done_s: npt.NDArray[np.float64] = field(repr=False)
    answers: list[Any] = field(repr=False)

    @property
    def latency_ms(self) -> npt.NDArray[np.float64]:
        """float64 (n,), from due to answered; NaN without an answer."""
        return 1000 * (self.done_s - self.due_s)

    @property
    def lag_ms(self) -> npt.NDArray[np.float64]:
        """float64 (n,), from due to sent."""
        return 1000 * (self.sent_s - self.due_s)


def poisson_arrivals(rate: float, *, seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Moments of a Poisson process, float64 (n,), ascending, all below `seconds`.

    Raises:
        DataError: rate or time is not positive.
    """
    if not (rate > 0 and seconds > 0):
        raise DataError("Poisson arrivals", got=f"{rate} per s for {seconds} s", expected="both above 0")
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate * seconds)
    # Given their number, the moments of a Poisson process are independent and uniform.
    return np.sort(generator.uniform(0.0, seconds, count))


async def open_loop(send: Send, due_s: npt.NDArray[np.float64], *, drain_s: float = 30.0) -> OpenLoop:
    """Sends a request at each moment and waits for the answers.

    Args:
        send: sends request number i and returns its answer.
        due_s: float64 (n,), ascending, from now on.
        drain_s: how long to wait for answers after the last moment; what is then open counts as unanswered.
    """
    sender = PoissonSender(send, due_s, asyncio.get_running_loop())
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        await sender.run(drain_s)
    finally:
        sys.setswitchinterval(switch_s)
        for task in sender.tasks:
            task.cancel()
    return OpenLoop(due_s=due_s, sent_s=sender.sent_s, done_s=sender.done_s, answers=sender.answers)


class PoissonSender:
    """Sends the requests of one open loop when they are due; all but `_pace` runs in the event loop."""

    def __init__(self, send: Send, due_s: npt.NDArray[np.float64], loop: asyncio.AbstractEventLoop) -> None:
        self._send = send
        self._due_s = due_s
        self._loop = loop
        self._all_sent = asyncio.Event()
        self._start = time.perf_counter() + HEAD_START_S
        self.sent_s = np.full(len(due_s), np.nan)
        self.done_s = np.full(len(due_s), np.nan)
        self.answers: list[Any] = [None] * len(due_s)
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self, drain_s: float) -> None:
        """Sends every request at its moment and waits at most `drain_s` after the last for answers."""
        if not len(self._due_s):
            return
        threading.Thread(target=self._pace, name="pacer", daemon=True).start()
        await self._all_sent.wait()
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=drain_s)
        for task in self.tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    def _pace(self) -> None:
        # asyncio's own timers are rounded up to whole milliseconds, which an easy row's latency is made of.
        for index, due_s in enumerate(self._due_s.tolist()):
            left_s = self._start + due_s - time.perf_counter()
            if left_s > 0:
                time.sleep(left_s)
            try:
                self._loop.call_soon_threadsafe(self._begin, index)
            except RuntimeError:  # the loop was closed by an interrupt
                return

    def _begin(self, index: int) -> None:
        self.sent_s[index] = time.perf_counter() - self._start
        task = self._loop.create_task(self._one(index))
        self.tasks.add(task)
        task.add_done_callback(self._forget)
        if index == len(self._due_s) - 1:
            self._all_sent.set()

    def _forget(self, task: asyncio.Task[None]) -> None:
        # A task that failed stays until `run` has seen why.
        if task.cancelled() or task.exception() is None:
            self.tasks.discard(task)

    async def _one(self, index: int) -> None:
        self.answers[index] = await self._send(index)
        self.done_s[index] = time.perf_counter() - self._start
