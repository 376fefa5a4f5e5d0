"""Sending: a closed loop that finds the capacity, and Poisson arrivals with a deadline on every request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import ServerFaultError
from perf.load.poisson import OpenLoop, open_loop, poisson_arrivals
from perf.load.raw_grpc import RawClient, Refusal, outputs_from_bytes, request_bytes

_WARM_S = 1.0
_OUTPUTS = ("label", "exit_stage", "status")
TURNED_AWAY = Refusal(code="TURNED_AWAY", text="too many requests in flight")

Rows = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Sent:
    """n requests that were due after the warm-up.

    Args:
        latency_ms: float64 (n,), from due to answered; NaN where no answer came.
        lag_ms: float64 (n,), from due to sent: what our own client is behind.
        right: int64 (n,), rows answered with their label; 0 where no answer came.
        answered: bool (n,), an answer came, in time or not.
        exits: int64 (s,), rows by the stage that answered.
        status: bits that were set -> rows.
        batch: rows per request.
    """

    latency_ms: npt.NDArray[np.float64] = field(repr=False)
    lag_ms: npt.NDArray[np.float64] = field(repr=False)
    right: npt.NDArray[np.int64] = field(repr=False)
    answered: npt.NDArray[np.bool_] = field(repr=False)
    exits: npt.NDArray[np.int64]
    status: Mapping[int, int]
    batch: int


async def closed_loop(
    address: str,
    model: str,
    rows: Rows,
    *,
    input_name: str,
    batch: int,
    concurrency: int,
    seconds: float,
    gear: int | None = None,
) -> tuple[float, float]:
    """Requests/s and median latency in ms with so many requests always in flight.

    Args:
        address: of the gRPC endpoint.
        model: Triton name.
        rows: (n, *dims), round and round.
        input_name: of the tensor.
        batch: rows per request.
        concurrency: requests in flight.
        seconds: of the loop.
        gear: the request parameter; None leaves it to the server.

    Raises:
        ServerFaultError: a request failed.
    """
    parameters = None if gear is None else {"gear": gear}
    messages = request_bytes(model, rows, input_name=input_name, batch=batch, parameters=parameters)
    taken: list[float] = []
    turn = 0
    async with RawClient(address) as client:
        begun = time.perf_counter()

        async def work() -> None:
            nonlocal turn
            while time.perf_counter() < begun + seconds:
                message = messages[turn * batch % len(messages)]
                turn += 1
                start = time.perf_counter()
                answer = await client.send(message)
                if isinstance(answer, Refusal):
                    raise ServerFaultError(f"model {model}", got=answer.text)
                taken.append(time.perf_counter() - start)

        await asyncio.gather(*(work() for _ in range(concurrency)))
        passed = time.perf_counter() - begun
    return len(taken) / passed, 1000 * float(np.median(taken))


async def poisson(
    address: str,
    model: str,
    rows: Rows,
    labels: npt.NDArray[np.int64],
    *,
    input_name: str,
    batch: int,
    rate: float,
    seconds: float,
    seed: int,
    deadline_us: int,
    most_in_flight: int | None = None,
) -> Sent:
    """Sends requests at random moments, each with a deadline.

    Args:
        address: of the gRPC endpoint.
        model: Triton name.
        rows: (n, *dims), round and round.
        labels: int64 (n,).
        input_name: of the tensor.
        batch: rows per request.
        rate: requests per second.
        seconds: of the load, a second of warm-up besides.
        seed: of the moments.
        deadline_us: the request parameter.
        most_in_flight: what comes while so many are under way is turned away at once; None for no bound.
    """
    messages = request_bytes(
        model, rows, input_name=input_name, batch=batch, parameters={"deadline_us": deadline_us}
    )
    in_flight = 0
    async with RawClient(address) as client:

        async def send(index: int) -> bytes | Refusal:
            nonlocal in_flight
            if most_in_flight is not None and in_flight >= most_in_flight:
                return TURNED_AWAY
            in_flight += 1
            try:
                return await client.send(messages[index * batch % len(messages)])
            finally:
                in_flight -= 1

        done = await open_loop(send, poisson_arrivals(rate, seconds=seconds + _WARM_S, seed=seed))
    counted = np.flatnonzero(done.due_s >= _WARM_S)
    return _sent(counted, done, labels=labels, batch=batch)


def _sent(
    counted: npt.NDArray[np.intp],
    done: OpenLoop,
    *,
    labels: npt.NDArray[np.int64],
    batch: int,
) -> Sent:
    answered = np.array([isinstance(done.answers[index], bytes) for index in counted], np.bool_)
    right = np.zeros(len(counted), np.int64)
    stages, bits = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for place in np.flatnonzero(answered):
        index = int(counted[place])
        said = outputs_from_bytes(done.answers[index], _OUTPUTS)
        wanted = labels[(index * batch + np.arange(batch)) % len(labels)]
        right[place] = int((said["label"].ravel() == wanted).sum())
        stages.append(said["exit_stage"].ravel().astype(np.int64))
        bits.append(said["status"].ravel().astype(np.int64))
    status, count = np.unique(np.concatenate(bits), return_counts=True)
    return Sent(
        latency_ms=np.where(answered, done.latency_ms[counted], np.nan),
        lag_ms=done.lag_ms[counted],
        right=right,
        answered=answered,
        exits=np.bincount(np.concatenate(stages)),
        status=dict(zip(status.tolist(), count.tolist(), strict=True)),
        batch=batch,
    )
