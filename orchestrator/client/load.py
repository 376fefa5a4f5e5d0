"""A closed loop of concurrent one-row requests, as the demo and the benchmarks send them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ask = Callable[[npt.NDArray[Any]], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """The result of one pass over some rows.

    Args:
        answers: the return values of `ask`, in the order of the rows.
        latency_ms: float64 (n,), per request.
        seconds: duration of the whole pass.
    """

    answers: list[Any]
    latency_ms: npt.NDArray[np.float64]
    seconds: float

    @property
    def requests_per_s(self) -> float:
        """Requests answered per second of the pass."""
        return len(self.answers) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """A latency percentile."""
        return float(np.percentile(self.latency_ms, percent))


async def closed_loop(ask: Ask, rows: npt.NDArray[Any], *, concurrency: int) -> LoadResult:
    """Sends every row as a request of its own, `concurrency` of them in flight at any time.

    Args:
        ask: sends one batch (1, *dims) and returns its answer.
        rows: (n, *dims).
        concurrency: requests in flight.

    Raises:
        CommitteeError: raised by `ask`, which ends the pass.
    """
    count = len(rows)
    answers: list[Any] = [None] * count
    latency_ms = np.zeros(count)
    following = iter(range(count))

    async def worker() -> None:
        # Workers share one iterator: each takes the next row as soon as it is free.
        for index in following:
            start = time.perf_counter()
            answers[index] = await ask(rows[index : index + 1])
            latency_ms[index] = (time.perf_counter() - start) * 1000

    start = time.perf_counter()
    tasks = [asyncio.create_task(worker()) for _ in range(min(concurrency, count))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return LoadResult(answers=answers, latency_ms=latency_ms, seconds=time.perf_counter() - start)
