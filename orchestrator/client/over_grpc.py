"""Clients over gRPC, one for plain code and one for asyncio, and a closed loop of concurrent requests."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from orchestrator.client.answers import Rows, ServedAnswers, answers_from_outputs, parameters_from_policy
from orchestrator.client.balancing import BALANCING, Balancer, BalancingPolicy
from orchestrator.client.endpoint import Addresses, Endpoint, endpoints_from_addresses
from orchestrator.client.error_mapping import FOREIGN
from orchestrator.client.several import FromPlainCode, SeveralServers
from orchestrator.client.sync import (
    Asker,
    Part,
    Request,
    SyncClient,
    order_of,
    requests_from_rows,
    scores_from_parts,
)
from orchestrator.decision import Policy
from orchestrator.spec.rows import AnyRows
from orchestrator.spec.served_model import (
    ModelInfo,
    identity_from_config,
    model_from_json,
    scores_output,
    wanted_outputs,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
# gRPC's own pause before it connects again doubles up to two minutes, in which a server that is back is not asked.
RECONNECT_MS = 1000
_LIMIT = triton.MAX_GRPC_MESSAGE_SIZE
CHANNEL = [
    ("grpc.max_send_message_length", _LIMIT),
    ("grpc.max_receive_message_length", _LIMIT),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
]


def _arguments(request: Request, timeout_s: float) -> dict[str, Any]:
    """Arguments of tritonclient's `infer`, the same for sync and asyncio."""
    wanted = request.wanted
    return {
        "model_name": request.model,
        "model_version": request.version,
        "inputs": request.inputs(triton.InferInput),
        "outputs": None if wanted is None else [triton.InferRequestedOutput(name) for name in wanted],
        "parameters": dict(request.parameters) or None,
        "client_timeout": timeout_s,
    }


def _outputs(result: Any) -> dict[str, Rows]:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def _opened(kind: Callable[..., Any], endpoint: Endpoint) -> Any:
    """A tritonclient client, sync or asyncio, with the endpoint's certificates and headers."""
    credentials = None
    if endpoint.tls is not None:
        # Without authorities gRPC would use a list of its own, not the system's.
        authorities, pair = endpoint.tls.authorities(), endpoint.tls.client_pair()
        cert, key = (None, None) if pair is None else pair
        credentials = grpc.ssl_channel_credentials(authorities, private_key=key, certificate_chain=cert)
    client = kind(endpoint.target, creds=credentials, channel_args=CHANNEL)
    if endpoint.headers:
        client.register_plugin(lambda request: request.headers.update(endpoint.headers))
    return client


def _opened_async(endpoint: Endpoint) -> Any:
    return _opened(triton_aio.InferenceServerClient, endpoint)


def _several(balancer: Balancer, endpoints: Sequence[Endpoint]) -> SeveralServers:
    return SeveralServers(balancer, endpoints, _opened_async)


class GrpcClient(SyncClient):
    """Asks a server over gRPC; may be shared by threads. Arguments are those of `SyncClient`.

    Raises:
        InputError: an address, a certificate or a header that cannot be used.
    """

    def __init__(
        self,
        address: Addresses,
        *,
        timeout_s: float = 30.0,
        retries: int = 3,
        in_flight: int = 4,
        balancing: BalancingPolicy = BALANCING,
    ) -> None:
        endpoints = [endpoint.for_grpc() for endpoint in endpoints_from_addresses(address)]
        super().__init__(endpoints, timeout_s=timeout_s, retries=retries, in_flight=in_flight, balancing=balancing)
        if len(endpoints) == 1:
            self._triton = _opened(triton.InferenceServerClient, endpoints[0])
        else:
            self._triton = FromPlainCode(lambda: _several(self._balancer, endpoints))

    def close(self) -> None:
        """Ends the connections; the client cannot be used afterwards."""
        self._triton.close()

    def _ready(self, model: str | None, timeout_s: float) -> bool:
        if model is None:
            return bool(self._triton.is_server_ready(client_timeout=timeout_s))
        return bool(self._triton.is_model_ready(model, client_timeout=timeout_s))

    def _metadata(self, model: str, version: str, timeout_s: float) -> dict[str, Any]:
        limit = {"client_timeout": timeout_s}
        return dict(self._triton.get_model_metadata(model, model_version=version, as_json=True, **limit))

    def _config(self, model: str, timeout_s: float) -> dict[str, Any]:
        return dict(self._triton.get_model_config(model, as_json=True, client_timeout=timeout_s)["config"])

    def _infer(self, request: Request, timeout_s: float) -> dict[str, Rows]:
        return _outputs(self._triton.infer(**_arguments(request, timeout_s)))

    def _in_order(self, action: Callable[[Request], T], requests: Sequence[Request]) -> list[T]:
        # The gRPC channel, unlike HTTP's, may be used by several threads.
        with ThreadPoolExecutor(max_workers=self._in_flight) as pool:
            futures = [pool.submit(action, request) for request in requests]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)


class AsyncGrpcClient(Asker):
    """Asks a server over gRPC from one event loop; arguments and errors are those of `GrpcClient`."""

    def __init__(
        self,
        address: Addresses,
        *,
        timeout_s: float = 30.0,
        retries: int = 3,
        in_flight: int = 4,
        balancing: BalancingPolicy = BALANCING,
    ) -> None:
        endpoints = [endpoint.for_grpc() for endpoint in endpoints_from_addresses(address)]
        super().__init__(endpoints, timeout_s=timeout_s, retries=retries, in_flight=in_flight, balancing=balancing)
        self._triton: Any = None

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection."""
        if self._triton is not None:
            client, self._triton = self._triton, None
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
                model, lambda left_s: self._open().get_model_metadata(model, as_json=True, client_timeout=left_s)
            )
            info = self._known[model] = model_from_json(described, await self.config(model))
        return info

    async def config(self, model: str) -> dict[str, Any]:
        """As `SyncClient.config`."""
        answer = await self._call(
            model, lambda left_s: self._open().get_model_config(model, as_json=True, client_timeout=left_s)
        )
        return dict(answer["config"])

    async def identity(self, model: str) -> str:
        """What is served under the name now, in words: the same for models that answer alike."""
        return identity_from_config(await self.config(model))

    async def infer(self, model: str, rows: AnyRows, *, policy: Policy | None = None) -> ServedAnswers:
        """As `SyncClient.infer`."""
        info = await self.metadata(model)
        parameters = parameters_from_policy(policy)
        requests = requests_from_rows(info, rows, wanted=wanted_outputs(info), parameters=parameters)
        answers = answers_from_outputs(info, await self._asked(requests), kinds=self.kinds)
        return answers.in_order(order_of(requests))

    async def ask(self, name: str, rows: AnyRows) -> npt.NDArray[np.float32]:
        """As `SyncClient.ask`."""
        info = await self.metadata(name)
        output = scores_output(info)
        requests = requests_from_rows(info, rows, wanted=(output,))
        return scores_from_parts(await self._asked(requests), output, requests=requests)

    async def _asked(self, requests: Sequence[Request]) -> list[Part]:
        if len(requests) == 1:
            return [await self._sent(requests[0])]
        return await in_order([partial(self._sent, request) for request in requests], in_flight=self._in_flight)

    async def _sent(self, request: Request) -> Part:
        result = await self._call(request.model, lambda left_s: self._open().infer(**_arguments(request, left_s)))
        return _outputs(result), request.rows

    async def _call(self, model: str, action: Callable[[float], Awaitable[Any]]) -> Any:
        """As `SyncClient._call`."""
        start_s, attempt = time.monotonic(), 0
        while True:
            try:
                answer = await action(self._left_s(start_s))
            except FOREIGN as error:
                if self._was_answered:
                    pause_s = self._pause_s(model, error, attempt, start_s)
                else:  # this may connect once more, to see whether TLS is the reason
                    pause_s = await asyncio.to_thread(self._pause_s, model, error, attempt, start_s)
            else:
                self._was_answered = True
                return answer
            await asyncio.sleep(pause_s)
            attempt += 1

    def _open(self) -> Any:
        # A channel belongs to the event loop that runs when it is made, so it is made with the first request.
        if self._triton is None:
            is_one = len(self.endpoints) == 1
            self._triton = _opened_async(self.endpoints[0]) if is_one else _several(self._balancer, self.endpoints)
        return self._triton


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


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """One pass over some rows: answers in their order, latency per request, float64 (n,), and the whole time."""

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


async def closed_loop(
    ask: Callable[[npt.NDArray[Any]], Awaitable[Any]], rows: npt.NDArray[Any], *, concurrency: int
) -> LoadResult:
    """Sends every row as a request of its own, `concurrency` of them in flight at any time.

    Args:
        ask: sends one batch (1, *dims) and returns its answer; its error ends the pass.
        rows: (n, *dims).
        concurrency: requests in flight.
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
    await in_order([worker] * min(concurrency, count), in_flight=concurrency)
    return LoadResult(answers=answers, latency_ms=latency_ms, seconds=time.perf_counter() - start)
