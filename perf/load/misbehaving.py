"""Clients that misbehave beside a load, each until the block ends: some cancel, some send what must be refused."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from perf.load.checked import clients_loop
from perf.load.poisson import METHOD, message_from_rows

_AT_ONCE, _CANCEL_WITHIN_S = 8, 0.04
Background = Callable[[asyncio.Event, threading.Event], Coroutine[Any, Any, None]]


@contextmanager
def cancelling(address: str, message: bytes) -> Iterator[None]:
    """Eight requests at a time, all cancelled within 40 ms."""

    async def cancel(stop: asyncio.Event, begun: threading.Event) -> None:
        rng = np.random.default_rng(0)
        async with grpc.aio.insecure_channel(address) as channel:
            begun.set()
            while not stop.is_set():
                calls = [channel.unary_unary(METHOD)(message) for _ in range(_AT_ONCE)]
                await asyncio.sleep(_CANCEL_WITHIN_S * rng.random())
                for call in calls:
                    call.cancel()

    with in_background(cancel):
        yield


def bad_messages(model: str, image: npt.NDArray[np.float32], *, input_name: str) -> list[bytes]:
    """Requests that a cascade must refuse as INVALID_ARGUMENT, made of a good row (1, c, h, w)."""
    parameters: tuple[dict[str, int], ...] = ({"speed": 1}, {"deadline_us": 0}, {"max_stage": 99})
    return [
        message_from_rows(model, image[:, :, :-1], input_name=input_name),
        message_from_rows(model, image * np.float32(np.nan), input_name=input_name),
        message_from_rows(model, image.astype(np.float64), input_name=input_name),
        message_from_rows(model, image, input_name=f"not_{input_name}"),
        *(message_from_rows(model, image, input_name=input_name, parameters=one) for one in parameters),
    ]


@contextmanager
def refused(
    address: str, messages: list[bytes], complain: Callable[[str], None], *, limit_s: float
) -> Iterator[None]:
    """Requests that must be INVALID_ARGUMENT, one after the other; `complain` is told of each that is not."""

    async def ask(stop: asyncio.Event, begun: threading.Event) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            while not stop.is_set():
                for number, message in enumerate(messages):
                    try:
                        await channel.unary_unary(METHOD)(message, timeout=limit_s)
                        complain(f"bad request {number} was answered")
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                            complain(f"bad request {number}: {error.code().name} {error.details()}")
                begun.set()

    with in_background(ask):
        yield


@contextmanager
def in_background(work: Background) -> Iterator[None]:
    """Runs a coroutine until the block ends, which sets its first argument; it sets its second when it began."""
    begun, stop, loop = threading.Event(), asyncio.Event(), clients_loop()
    running = asyncio.run_coroutine_threadsafe(work(stop, begun), loop)
    begun.wait(20)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        running.result(20)
