"""Sending: a closed loop that finds the capacity, and Poisson arrivals with a deadline on every request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import ServerFaultError
from perf.load.closed import Window, closed_tasks
from perf.load.poisson import WARM_S, OpenLoop, PoissonLoad, send_poisson
from perf.load.raw_grpc import FailedRequest, RawClient, message_from_rows, outputs_from_bytes

_OUTPUTS = ("label", "exit_stage", "status")

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


async def saturated(
    address: str,
    model: str,
    rows: Rows,
    *,
    input_name: str,
    batch: int,
    concurrency: int,
    seconds: float,
    gear: int | None = None,
) -> Window:
    """A closed loop with so many requests always in flight.

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
    async with RawClient(address) as client:

        async def ask(part: Rows) -> npt.NDArray[np.int32]:
            answer = await client.send(
                message_from_rows(model, part, input_name=input_name, parameters=parameters)
            )
            if isinstance(answer, FailedRequest):
                raise ServerFaultError(f"model {model}", got=answer.text)
            stages: npt.NDArray[np.int32] = outputs_from_bytes(answer, ("exit_stage",))["exit_stage"].ravel()
            return stages

        return await closed_tasks(ask, rows, concurrency=concurrency, batch=batch, seconds=seconds)


async def poisson(load: PoissonLoad, rows: Rows, labels: npt.NDArray[np.int64], *, input_name: str) -> Sent:
    """Sends requests at random moments and compares the answers with the labels.

    Args:
        load: what to send.
        rows: (n, *dims), round and round.
        labels: int64 (n,).
        input_name: of the tensor.
    """
    done = await send_poisson(load, rows, input_name=input_name)
    return sent_from_open_loop(done, labels=labels, batch=load.batch)


def sent_from_open_loop(done: OpenLoop, *, labels: npt.NDArray[np.int64], batch: int) -> Sent:
    """The requests that were due after the warm-up.

    Args:
        done: everything sent; answers are bytes or a `FailedRequest`.
        labels: int64 (n,), of the rows that were sent round and round.
        batch: rows per request.
    """
    counted = np.flatnonzero(done.due_s >= WARM_S)
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
