from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from orchestrator.errors import UnavailableError
from perf.load.closed import closed_tasks, closed_threads

ROWS = np.arange(7)[:, None]


def test_threads_keep_so_many_requests_in_flight_and_see_the_exits() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def ask(rows: np.ndarray) -> np.ndarray:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.002)
        with lock:
            inside -= 1
        return (rows[:, 0] == 3).astype(np.int32)

    window = closed_threads(ask, ROWS, concurrency=3, batch=2, seconds=0.3)
    assert most == 3
    assert window.exits is not None
    assert window.exits.sum() == 2 * window.requests
    # Each row is in two of the seven batches, as the first and as the second.
    assert window.exits[1] / window.exits.sum() == pytest.approx(1 / 7, abs=0.03)
    assert (window.latency_ms >= 2).all()


def test_tasks_do_the_same() -> None:
    async def ask(rows: np.ndarray) -> np.ndarray:
        await asyncio.sleep(0.002)
        return np.zeros(len(rows), np.int32)

    window = asyncio.run(closed_tasks(ask, ROWS, concurrency=4, batch=1, seconds=0.2))
    assert window.reach(2) == (1.0, 0.0)
    assert window.requests_per_s == pytest.approx(window.requests / 0.18)


def test_an_error_ends_the_loop_and_reaches_the_caller() -> None:
    def ask(rows: np.ndarray) -> np.ndarray:
        raise UnavailableError("gone")

    start = time.monotonic()
    with pytest.raises(UnavailableError, match="gone"):
        closed_threads(ask, ROWS, concurrency=3, batch=1, seconds=5.0)
    assert time.monotonic() - start < 2
