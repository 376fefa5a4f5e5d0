"""A client over HTTP with binary tensors, for networks that do not let gRPC through."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import gevent.pool  # type: ignore[import-untyped]  # gevent ships no types
import gevent.ssl  # type: ignore[import-untyped]
import tritonclient.http as triton
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError

from orchestrator.client.answers import Rows
from orchestrator.client.endpoint import Endpoint, endpoint_from_address
from orchestrator.client.sync import Request, SyncClient

T = TypeVar("T")


class HttpClient(SyncClient):
    """Asks a server over HTTP; belongs to one thread. Arguments are those of `SyncClient`.

    The time limit is the longest silence of the server within one attempt; no attempt begins later than this.

    Raises:
        InputError: an address, a certificate or a header that cannot be used.
    """

    over_grpc = False

    def __init__(
        self, address: str | Endpoint, *, timeout_s: float = 30.0, retries: int = 3, in_flight: int = 4
    ) -> None:
        endpoint = endpoint_from_address(address).for_http()
        super().__init__([endpoint], timeout_s=timeout_s, retries=retries, in_flight=in_flight)
        context = None if endpoint.tls is None else endpoint.tls.context(gevent.ssl.create_default_context)
        self._triton = triton.InferenceServerClient(
            endpoint.target + endpoint.path,
            concurrency=in_flight,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
            ssl=context is not None,
            ssl_context_factory=None if context is None else lambda **_: context,
        )
        if endpoint.headers:
            self._triton.register_plugin(lambda request: request.headers.update(endpoint.headers))

    def close(self) -> None:
        """Ends the connections; the client cannot be used afterwards."""
        self._triton.close()

    def _ready(self, model: str | None, _timeout_s: float) -> bool:
        with _standard_errors():
            return bool(self._triton.is_server_ready() if model is None else self._triton.is_model_ready(model))

    def _metadata(self, model: str, version: str, _timeout_s: float) -> dict[str, Any]:
        with _standard_errors():
            return dict(self._triton.get_model_metadata(model, model_version=version))

    def _config(self, model: str, _timeout_s: float) -> dict[str, Any]:
        with _standard_errors():
            return dict(self._triton.get_model_config(model))

    def _infer(self, request: Request, _timeout_s: float) -> dict[str, Rows]:
        sent = request.inputs(triton.InferInput, binary_data=True)
        names = request.wanted
        outputs = None if names is None else [triton.InferRequestedOutput(n, binary_data=True) for n in names]
        asked = {"outputs": outputs, "parameters": dict(request.parameters) or None}
        with _standard_errors():
            result = self._triton.infer(request.model, sent, model_version=request.version, **asked)
        return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}

    def _in_order(self, action: Callable[[Request], T], requests: Sequence[Request]) -> list[T]:
        # tritonclient's HTTP sockets are gevent's: greenlets of this thread may share them, other threads may not.
        return list(gevent.pool.Pool(self._in_flight).imap(action, requests))

    def _pause(self, seconds: float) -> None:
        gevent.sleep(seconds)


@contextmanager
def _standard_errors() -> Iterator[None]:
    """Turns geventhttpclient's own exceptions into the standard ones of the same meaning."""
    try:
        yield
    except HTTPConnectionClosed as error:
        raise ConnectionResetError("the server closed the connection before it answered") from error
    except HTTPParseError as error:
        raise ValueError("not HTTP; is this the gRPC port?") from error
