"""Clients over gRPC: one for plain code, one for asyncio."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from orchestrator.client.answers import (
    OutputKinds,
    Rows,
    ServedAnswers,
    answers_from_outputs,
    parameters_from_policy,
)
from orchestrator.client.endpoint import Endpoint, endpoint_from_address
from orchestrator.client.error_mapping import FOREIGN, error_from, with_tls_reason
from orchestrator.client.sync import Outputs, Parameters, RetryPolicy, SyncClient, Wanted
from orchestrator.decision import Policy
from orchestrator.errors import RefusedError, UnavailableError
from orchestrator.spec.served_model import (
    ModelInfo,
    TensorInfo,
    check_rows,
    chunks,
    model_from_json,
    scores_output,
    wanted_outputs,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


def _request(
    model: str, rows: Rows, *, tensor: TensorInfo, wanted: Wanted, parameters: Parameters, timeout_s: float
) -> dict[str, Any]:
    """Arguments of tritonclient's `infer`, the same for sync and asyncio."""
    sent = triton.InferInput(tensor.name, list(rows.shape), tensor.dtype)
    sent.set_data_from_numpy(rows)
    return {
        "model_name": model,
        "inputs": [sent],
        "outputs": None if wanted is None else [triton.InferRequestedOutput(name) for name in wanted],
        "parameters": dict(parameters) or None,
        "client_timeout": timeout_s,
    }


def _outputs(result: Any) -> Outputs:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def _opened(kind: Callable[..., Any], endpoint: Endpoint) -> Any:
    """A tritonclient client, sync or asyncio, with the endpoint's certificates and headers."""
    credentials = None
    if endpoint.tls is not None:
        # Without authorities gRPC would use a list of its own, not the system's.
        authorities, pair = endpoint.tls.authorities(), endpoint.tls.client_pair()
        cert, key = (None, None) if pair is None else pair
        credentials = grpc.ssl_channel_credentials(authorities, private_key=key, certificate_chain=cert)
    client = kind(endpoint.target, creds=credentials)
    if endpoint.headers:
        client.register_plugin(lambda request: request.headers.update(endpoint.headers))
    return client


class _GrpcTransport:
    over_grpc = True

    def __init__(self, address: str | Endpoint) -> None:
        self.endpoint = endpoint_from_address(address).for_grpc()
        self._client = _opened(triton.InferenceServerClient, self.endpoint)

    def ready(self, model: str | None, *, timeout_s: float) -> bool:
        if model is None:
            return bool(self._client.is_server_ready(client_timeout=timeout_s))
        return bool(self._client.is_model_ready(model, client_timeout=timeout_s))

    def metadata(self, model: str, *, version: str, timeout_s: float) -> dict[str, Any]:
        limit = {"client_timeout": timeout_s}
        return dict(self._client.get_model_metadata(model, model_version=version, as_json=True, **limit))

    def config(self, model: str, *, timeout_s: float) -> dict[str, Any]:
        return dict(self._client.get_model_config(model, as_json=True, client_timeout=timeout_s)["config"])

    def infer(
        self,
        model: str,
        rows: Rows,
        *,
        version: str,
        tensor: TensorInfo,
        wanted: Wanted,
        parameters: Parameters,
        timeout_s: float,
    ) -> Outputs:
        request = _request(model, rows, tensor=tensor, wanted=wanted, parameters=parameters, timeout_s=timeout_s)
        return _outputs(self._client.infer(model_version=version, **request))

    def in_order(self, action: Callable[[slice], T], parts: Sequence[slice], *, in_flight: int) -> list[T]:
        # The gRPC channel, unlike HTTP's, may be used by several threads.
        with ThreadPoolExecutor(max_workers=in_flight) as pool:
            futures = [pool.submit(action, part) for part in parts]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        self._client.close()


class GrpcClient(SyncClient):
    """Asks a server over gRPC; may be shared by threads.

    Args:
        address: of the gRPC endpoint: "host:port" in clear, "grpcs://host:port" with TLS, and see
            `endpoint_from_address`, which takes certificates and headers too.
        timeout_s: per request, retries included.
        retries: further attempts, on UNAVAILABLE only.
        in_flight: parts of one oversize request under way at once.

    Raises:
        InputError: an address, a certificate or a header that cannot be used.
    """

    def __init__(
        self, address: str | Endpoint, *, timeout_s: float = 30.0, retries: int = 3, in_flight: int = 4
    ) -> None:
        super().__init__(_GrpcTransport(address), timeout_s=timeout_s, retries=retries, in_flight=in_flight)


class AsyncGrpcClient:
    """Asks a server over gRPC from one event loop; arguments and errors are those of `GrpcClient`."""

    def __init__(
        self, address: str | Endpoint, *, timeout_s: float = 30.0, retries: int = 3, in_flight: int = 4
    ) -> None:
        self.endpoint = endpoint_from_address(address).for_grpc()
        self._was_answered = False
        self._retry_policy = RetryPolicy(timeout_s=timeout_s, retries=retries)
        self._in_flight = in_flight
        self._client: Any = None
        self._known: dict[str, ModelInfo] = {}
        self.kinds = OutputKinds()

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def ready(self, model: str | None = None) -> bool:
        """Whether the server (and the model) would answer now; False where nobody listens."""
        limit = {"client_timeout": self._retry_policy.timeout_s}
        try:
            if model is None:
                return bool(await self._open().is_server_ready(**limit))
            return bool(await self._open().is_model_ready(model, **limit))
        except FOREIGN:
            return False

    async def metadata(self, model: str) -> ModelInfo:
        """As `SyncClient.metadata`."""
        info = self._known.get(model)
        if info is None:
            described = await self._call(
                model,
                lambda left_s: self._open().get_model_metadata(model, as_json=True, client_timeout=left_s),
            )
            info = self._known[model] = model_from_json(described, await self.config(model))
        return info

    async def config(self, model: str) -> dict[str, Any]:
        """As `SyncClient.config`."""
        answer = await self._call(
            model, lambda left_s: self._open().get_model_config(model, as_json=True, client_timeout=left_s)
        )
        return dict(answer["config"])

    async def infer(self, model: str, rows: Rows, *, policy: Policy | None = None) -> ServedAnswers:
        """As `SyncClient.infer`."""
        info = await self.metadata(model)
        parameters = parameters_from_policy(policy)
        parts = await self._ask_parts(info, rows, wanted=wanted_outputs(info), parameters=parameters)
        return answers_from_outputs(info, parts, kinds=self.kinds)

    async def ask(self, name: str, rows: Rows) -> npt.NDArray[np.float32]:
        """As `SyncClient.ask`."""
        info = await self.metadata(name)
        output = scores_output(info)
        parts = await self._ask_parts(info, rows, wanted=(output,), parameters={})
        return np.concatenate([np.asarray(outputs[output], np.float32) for outputs, _ in parts])

    async def _ask_parts(
        self, info: ModelInfo, rows: Rows, *, wanted: Wanted, parameters: Parameters
    ) -> list[tuple[Outputs, int]]:
        tensor = check_rows(info, rows)

        async def ask(part: slice) -> tuple[Outputs, int]:
            chunk = rows[part]

            async def once(left_s: float) -> Any:
                request = _request(
                    info.name, chunk, tensor=tensor, wanted=wanted, parameters=parameters, timeout_s=left_s
                )
                return await self._open().infer(**request)

            return _outputs(await self._call(info.name, once)), len(chunk)

        parts = chunks(len(rows), info.max_batch_size)
        if len(parts) == 1:
            return [await ask(parts[0])]
        return await in_order([partial(ask, part) for part in parts], in_flight=self._in_flight)

    async def _call(self, model: str, action: Callable[[float], Awaitable[T]]) -> T:
        start = time.monotonic()
        for attempt in itertools.count():
            elapsed_s = time.monotonic() - start
            try:
                return await self._translated(model, action, self._retry_policy.timeout_s - elapsed_s)
            except UnavailableError:
                elapsed_s = time.monotonic() - start
                pause_s = self._retry_policy.delay_s(attempt, elapsed_s=elapsed_s, jitter=random.random())
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
        raise AssertionError("unreachable: the loop ends by return or raise")

    async def _translated(self, model: str, action: Callable[[float], Awaitable[T]], left_s: float) -> T:
        try:
            answer = await action(left_s)
        except FOREIGN as error:
            ours = error_from(error, what=f"model {model} at {self.endpoint}", endpoint=self.endpoint)
            if not self._was_answered:
                timeout_s = self._retry_policy.timeout_s
                ours = await asyncio.to_thread(
                    with_tls_reason, ours, self.endpoint, over_grpc=True, timeout_s=timeout_s
                )
            if isinstance(ours, RefusedError):
                self._known.pop(model, None)
                self.kinds.forget(model)
            raise ours from error
        self._was_answered = True
        return answer

    def _open(self) -> Any:
        # A channel belongs to the event loop that runs when it is made, so it is made with the first request.
        if self._client is None:
            self._client = _opened(triton_aio.InferenceServerClient, self.endpoint)
        return self._client


async def in_order(actions: Sequence[Callable[[], Awaitable[T]]], *, in_flight: int) -> list[T]:
    """Runs actions, at most `in_flight` at once; results come in order, and the first failure cancels the rest."""
    gate = asyncio.Semaphore(in_flight)

    async def run(action: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await action()

    tasks = [asyncio.ensure_future(run(action)) for action in actions]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


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
