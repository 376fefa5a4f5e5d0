"""A closed loop for routes that perf_analyzer cannot drive: the client itself asks one member after another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from perf.load.export_file import RAMP_SHARE
from perf.load.window import Window, exits_of

Stages = npt.NDArray[np.int32]
# Moment sent, moment answered, exit stages of its rows.
Done = tuple[float, float, Stages]


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
    """`concurrency` threads, each with one request under way.

    Args:
        ask: sends rows (n, *dims) and returns int32 (n,) exit stages; any number of threads may call it.
        rows: (n, *dims).
        concurrency: requests in flight.
        batch: rows per request.
        seconds: of the window.

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
    """As `closed_threads`, from one event loop."""
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
    deferred, exits = exits_of(stages)
    return Window(
        latency_ms=np.array([1000 * (answered - sent) for sent, answered, _ in counted]),
        deferred=deferred,
        exits=exits,
        seconds=turns.end - start,
        batch=batch,
    )
