"""The event loop of a process, in a thread of its own, for plain code that asks over gRPC's asyncio."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def wait_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives in the loop of this process; it is ended first where this thread is interrupted."""
    loop = _loop(os.getpid())
    done: Future[T] = Future()
    tasks: list[asyncio.Task[T]] = []

    def begin() -> None:
        tasks.append(loop.create_task(work))
        tasks[0].add_done_callback(hand_over)

    def hand_over(task: asyncio.Task[T]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            done.set_result(task.result())
        else:
            done.set_exception(error)

    def end() -> None:
        if tasks:
            tasks[0].cancel()
        else:
            # The interrupt came before the loop was told of the work.
            work.close()
            done.set_exception(asyncio.CancelledError())

    try:
        loop.call_soon_threadsafe(begin)
        return done.result()
    except BaseException:
        if not done.done():
            loop.call_soon_threadsafe(end)
            done.exception()
        raise


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of a process, in a thread of its own: gRPC's asyncio does not bear several of them well."""
    del process
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="committee-grpc", daemon=True).start()
    return loop
