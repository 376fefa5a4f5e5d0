"""An open loop: requests leave at times drawn beforehand, whether or not earlier ones were answered.

Rules of this file: latency counts from the moment a request was *due*, so that a slow server cannot thin out its
own load; how late requests really left is kept beside it. The same seed gives every route the same moments.
Requests are built once per row set, and answers are kept as bytes and read after the load, so that building and
reading messages never holds up what is being timed.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from orchestrator.errors import DataError, ServerFaultError
from perf.load.closed import Window, window_from_stages

METHOD = "/inference.GRPCInferenceService/ModelInfer"
# Rows of large pictures in batches pass gRPC's default of 4 MiB.
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True, kw_only=True)
class FailedRequest:
    """An error in place of an answer: gRPC's name of it, and what the server says."""

    code: str
    text: str


def request_bytes(model: str, rows: npt.NDArray[Any], *, input_name: str, batch: int) -> list[bytes]:
    """One message per row (*dims): that row and the next ones, `batch` in all, round and round."""
    twice = np.concatenate([rows, rows[: batch - 1]]) if batch > 1 else rows
    return [
        message_from_rows(model, twice[start : start + batch], input_name=input_name) for start in range(len(rows))
    ]


def message_from_rows(
    model: str, rows: npt.NDArray[Any], *, input_name: str, parameters: Mapping[str, int] | None = None
) -> bytes:
    """One message with all the rows (n, *dims)."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=input_name, datatype=np_to_triton_dtype(rows.dtype), shape=rows.shape)
    request.raw_input_contents.append(np.ascontiguousarray(rows).tobytes())
    for name, value in (parameters or {}).items():
        request.parameters[name].int64_param = value
    return bytes(request.SerializeToString())


def with_parameter(message: bytes, name: str, value: int) -> bytes:
    """A message from `request_bytes` with one parameter added."""
    # Protobuf reads two messages in a row as one and joins their maps, so the tensor is not encoded again.
    more = service_pb2.ModelInferRequest()
    more.parameters[name].int64_param = value
    return message + bytes(more.SerializeToString())


def outputs_from_bytes(answer: bytes, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The tensors of an answer by name, all of them if no names are given."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    return {
        output.name: np.frombuffer(raw, triton_to_np_dtype(output.datatype)).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        if names is None or output.name in names
    }


class RawClient:
    """Sends ready messages to host:port from one event loop; an error is an answer like any other."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._call = self._channel.unary_unary(METHOD)

    async def __aenter__(self) -> "RawClient":
        await self._channel.channel_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def send(self, message: bytes) -> bytes | FailedRequest:
        """The bytes of the answer, or the error."""
        try:
            answer: bytes = await self._call(message)
        except grpc.aio.AioRpcError as error:
            return FailedRequest(code=error.code().name, text=str(error.details()))
        return answer


Send = Callable[[int], Awaitable[Any]]
# How long the sending thread may wait for the interpreter once it wakes; Python's own 5 ms would count as latency.
_SWITCH_S = 0.0002
# Between the call of `open_loop` and the moment that arrivals count from.
HEAD_START_S = 0.05
# The first requests of a load meet an empty server; they are sent and not counted.
WARM_S = 1.0


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """When n requests were due, sent and done from the start, float64 (n,), and their answers.

    `done_s` is NaN and the answer None where none came in time.
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
    """Sends request number i at each moment float64 (n,), ascending, from now on, and waits for the answers.

    Answers are waited for `drain_s` after the last moment; what is then open counts as unanswered.
    """
    count = len(due_s)
    unknown = np.full(count, np.nan)
    done = OpenLoop(due_s=due_s, sent_s=unknown, done_s=unknown.copy(), answers=[None] * count)
    if not count:
        return done
    sender = _Sender(send, done, asyncio.get_running_loop())
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        await sender.run(drain_s)
    finally:
        sys.setswitchinterval(switch_s)
        for task in sender.tasks:
            task.cancel()
    return done


class _Sender:
    """Sends the requests of one open loop when they are due; all but `_pace` runs in the event loop."""

    def __init__(self, send: Send, done: OpenLoop, loop: asyncio.AbstractEventLoop) -> None:
        self._send = send
        self._done = done
        self._loop = loop
        self._all_sent = asyncio.Event()
        self._start = time.perf_counter() + HEAD_START_S
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self, drain_s: float) -> None:
        threading.Thread(target=self._pace, name="pacer", daemon=True).start()
        await self._all_sent.wait()
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=drain_s)
        for task in self.tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    def _pace(self) -> None:
        # asyncio's own timers are rounded up to whole milliseconds, which an easy row's latency is made of.
        for index, due_s in enumerate(self._done.due_s.tolist()):
            left_s = self._start + due_s - time.perf_counter()
            if left_s > 0:
                time.sleep(left_s)
            try:
                self._loop.call_soon_threadsafe(self._begin, index)
            except RuntimeError:  # the loop was closed by an interrupt
                return

    def _begin(self, index: int) -> None:
        self._done.sent_s[index] = time.perf_counter() - self._start
        task = self._loop.create_task(self._one(index))
        self.tasks.add(task)
        task.add_done_callback(self._forget)
        if index == len(self._done.due_s) - 1:
            self._all_sent.set()

    def _forget(self, task: asyncio.Task[None]) -> None:
        # A task that failed stays until `run` raises its error.
        if task.cancelled() or task.exception() is None:
            self.tasks.discard(task)

    async def _one(self, index: int) -> None:
        self._done.answers[index] = await self._send(index)
        self._done.done_s[index] = time.perf_counter() - self._start


@dataclass(frozen=True, kw_only=True)
class PoissonLoad:
    """What to send.

    Args:
        model: Triton name.
        address: host:port of the gRPC endpoint.
        rate: requests per second.
        seconds: of the window, a second of warm-up besides.
        seed: of the moments.
        batch: rows per request.
        deadline_us: what every request has from the moment it is due, None for no deadline.
        from_arrival: the deadline begins to count in the cascade, as `deadline_us`; else it is sent as the point
            in time, `deadline_at_us`.
        drain_s: how long late answers are waited for.
        most_in_flight: what is due while so many are under way is turned away at once, as a gateway would; None
            for no bound.
    """

    model: str
    address: str
    rate: float
    seconds: float
    seed: int
    batch: int = 1
    deadline_us: int | None = None
    from_arrival: bool = False
    drain_s: float = 30.0
    most_in_flight: int | None = None


TURNED_AWAY = FailedRequest(code="TURNED_AWAY", text="as many requests in flight as are let through")


def run_poisson(load: PoissonLoad, rows: npt.NDArray[Any], *, input_name: str) -> Window:
    """Sends the load, rows (n, *dims) one after another, round and round, and returns what was measured.

    Raises:
        ServerFaultError: every request failed.
    """
    done = asyncio.run(send_poisson(load, rows, input_name=input_name))
    return window_from_open_loop(done, batch=load.batch, stages=[_stages(answer) for answer in done.answers])


async def send_poisson(load: PoissonLoad, rows: npt.NDArray[Any], *, input_name: str) -> OpenLoop:
    """Sends the load; answers are bytes or a `FailedRequest`."""
    messages = request_bytes(load.model, rows, input_name=input_name, batch=load.batch)
    due_s = poisson_arrivals(load.rate, seconds=load.seconds + WARM_S, seed=load.seed)
    in_flight = 0
    async with RawClient(load.address) as client:
        start_us = time.time_ns() // 1000 + int(1e6 * HEAD_START_S)

        async def send(index: int) -> bytes | FailedRequest:
            nonlocal in_flight
            if load.most_in_flight is not None and in_flight >= load.most_in_flight:
                return TURNED_AWAY
            in_flight += 1
            try:
                message = messages[index * load.batch % len(messages)]
                if load.deadline_us is not None:
                    at_us = start_us + int(1e6 * due_s[index]) + load.deadline_us
                    how = ("deadline_us", load.deadline_us) if load.from_arrival else ("deadline_at_us", at_us)
                    message = with_parameter(message, *how)
                return await client.send(message)
            finally:
                in_flight -= 1

        return await open_loop(send, due_s, drain_s=load.drain_s)


async def send_asked(
    ask: Any, rows: npt.NDArray[Any], *, rate: float, seconds: float, seed: int, batch: int = 1
) -> Window:
    """Poisson arrivals on a route that a client drives: `ask` takes rows and returns their exit stages."""
    twice = np.concatenate([rows, rows[: batch - 1]]) if batch > 1 else rows

    def send(index: int) -> Any:
        start = index * batch % len(rows)
        return ask(twice[start : start + batch])

    done = await open_loop(send, poisson_arrivals(rate, seconds=seconds + WARM_S, seed=seed))
    return window_from_open_loop(done, batch=batch, stages=done.answers)


def window_from_open_loop(
    done: OpenLoop, *, batch: int, stages: Sequence[npt.NDArray[np.int32] | FailedRequest | None]
) -> Window:
    """The requests that were due after the warm-up, as a window.

    `stages` has for each request exit stages or a `FailedRequest`; None where no answer came or it has no stages.

    Raises:
        ServerFaultError: no request was answered well.
        DataError: nothing was sent after the warm-up.
    """
    counted = np.flatnonzero(done.due_s >= WARM_S)
    if not len(counted):
        raise DataError("Poisson load", got="no request after the warm-up", fix="take a longer window")
    good = [i for i in counted if not np.isnan(done.done_s[i]) and not isinstance(stages[i], FailedRequest)]
    if not good:
        refusal = next((one for one in done.answers if isinstance(one, FailedRequest)), None)
        raise ServerFaultError("Poisson load", got=refusal.text if refusal else "no answer in time")
    known = [stages[i] for i in good]
    says = all(one is not None for one in known)
    # Until the last answer: at more than the capacity the queue outlives the arrivals.
    seconds = float(max(done.done_s[good].max(), done.due_s[-1]) - WARM_S)
    return window_from_stages(
        done.latency_ms[good],
        np.array(known, np.int32).reshape(len(good), batch) if says else None,
        seconds,
        batch,
        failed=len(counted) - len(good),
        lag_ms=done.lag_ms[counted],
    )


def _stages(answer: Any) -> Any:
    if answer is None or isinstance(answer, FailedRequest):
        return answer
    found = outputs_from_bytes(answer, ("exit_stage",))
    return found["exit_stage"].ravel() if found else None
