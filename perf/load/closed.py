"""What one load measured in one window, and closed loops for routes that perf_analyzer cannot drive.

In such a loop the client itself asks one member after another.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

PERCENTILES = (50, 95, 99)
# Names of percentiles: of all requests, of easy ones (no row was deferred) and of hard ones.
LATENCIES = tuple(f"{part}p{percent}_ms" for part in ("", "easy_", "hard_") for percent in PERCENTILES)
# A closed loop starts with an empty server: the first answers are too quick and too few, and this share
# of the time is left out of the window.
RAMP_SHARE = 0.1
Stages = npt.NDArray[np.int32]
# A request: when it was sent, when it was answered, exit stages of its rows.
Done = tuple[float, float, Stages]


@dataclass(frozen=True, kw_only=True)
class Window:
    """n requests that were answered, and what else happened meanwhile.

    Args:
        latency_ms: float64 (n,).
        deferred: bool (n,), a row of the request went past stage 0; None where the answers do not say.
        exits: int64 (s,), rows by the stage that answered; None where the answers do not say.
        seconds: from the first moment that counts to the last.
        batch: rows per request.
        failed: requests that were answered with an error, or not at all.
        lag_ms: float64 (n,), from when a request was due to when it was sent; None in a closed loop.
    """

    latency_ms: npt.NDArray[np.float64] = field(repr=False)
    deferred: npt.NDArray[np.bool_] | None = field(repr=False)
    exits: npt.NDArray[np.int64] | None
    seconds: float
    batch: int
    failed: int = 0
    lag_ms: npt.NDArray[np.float64] | None = field(default=None, repr=False)

    @property
    def requests(self) -> int:
        """Number of answered requests."""
        return len(self.latency_ms)

    @property
    def requests_per_s(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds

    def reach(self, stages: int) -> tuple[float, ...] | None:
        """Share of rows that got to each stage, 1.0 first; None where the answers do not say."""
        if self.exits is None or not self.exits.sum():
            return None
        counts = np.zeros(stages, np.int64)
        counts[: len(self.exits)] = self.exits
        return tuple(float(value) for value in np.cumsum(counts[::-1])[::-1] / counts.sum())

    def percentiles_ms(self) -> dict[str, float | None]:
        """`p50_ms` and so on of all requests; `easy_p50_ms`, `hard_p50_ms` and so on where stages are known."""
        parts: dict[str, npt.NDArray[np.float64]] = {"": self.latency_ms}
        if self.deferred is not None:
            parts |= {"easy_": self.latency_ms[~self.deferred], "hard_": self.latency_ms[self.deferred]}
        return {
            f"{name}p{percent}_ms": float(np.percentile(values, percent)) if len(values) else None
            for name, values in parts.items()
            for percent in PERCENTILES
        }


def window_from_stages(
    latency_ms: npt.NDArray[np.float64], stages: Stages | None, seconds: float, batch: int, **more: Any
) -> Window:
    """A window from the exit stages int32 (n, batch) of its requests; None where the answers do not say."""
    deferred = None if stages is None else (stages > 0).any(axis=1)
    exits = None if stages is None else np.bincount(stages.ravel()).astype(np.int64)
    return Window(latency_ms=latency_ms, deferred=deferred, exits=exits, seconds=seconds, batch=batch, **more)


class _Turns:
    """Hands out batches of the rows, round and round, and knows when the time is up."""

    def __init__(self, rows: npt.NDArray[Any], *, batch: int, seconds: float) -> None:
        self._rows = np.concatenate([rows, rows[: batch - 1]]) if batch > 1 else rows
        self._count = len(rows)
        self._batch = batch
        self._next = 0
        self.start = time.perf_counter()
        self.end = self.start + seconds

    def take(self) -> npt.NDArray[Any] | None:
        if time.perf_counter() >= self.end:
            return None
        index = self._next = (self._next + 1) % self._count
        return self._rows[index : index + self._batch]


def closed_threads(
    ask: Callable[[npt.NDArray[Any]], Stages],
    rows: npt.NDArray[Any],
    *,
    concurrency: int,
    batch: int,
    seconds: float,
) -> Window:
    """`concurrency` threads, each with one request of `batch` rows under way.

    `ask` sends rows (n, *dims) and returns int32 (n,) exit stages; any number of threads may call it.

    Raises:
        CommitteeError: whatever `ask` raises.
    """
    turns = _Turns(rows, batch=batch, seconds=seconds)
    done: list[Done] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not errors and (part := turns.take()) is not None:
                sent = time.perf_counter()
                stages = ask(part)
                done.append((sent, time.perf_counter(), stages))
        except BaseException as error:  # handed to the caller's thread below
            errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return _window(done, turns, batch)


async def closed_tasks(
    ask: Callable[[npt.NDArray[Any]], Awaitable[Stages]],
    rows: npt.NDArray[Any],
    *,
    concurrency: int,
    batch: int,
    seconds: float,
) -> Window:
    """As `closed_threads`, with tasks of one event loop in place of threads."""
    turns = _Turns(rows, batch=batch, seconds=seconds)
    done: list[Done] = []

    async def work() -> None:
        while (part := turns.take()) is not None:
            sent = time.perf_counter()
            stages = await ask(part)
            done.append((sent, time.perf_counter(), stages))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return _window(done, turns, batch)


def _window(done: list[Done], turns: _Turns, batch: int) -> Window:
    start = turns.start + RAMP_SHARE * (turns.end - turns.start)
    counted = [one for one in done if start <= one[1] <= turns.end]
    stages = np.array([one[2] for one in counted], np.int32).reshape(len(counted), batch)
    latency_ms = np.array([1000 * (answered - sent) for sent, answered, _ in counted])
    return window_from_stages(latency_ms, stages, turns.end - start, batch)
