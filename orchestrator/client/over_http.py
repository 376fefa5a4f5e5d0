"""A client over HTTP with binary tensors, for networks that do not let gRPC through."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gevent.pool  # type: ignore[import-untyped]  # gevent ships no types
import gevent.ssl  # type: ignore[import-untyped]
import tritonclient.http as triton
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError

from orchestrator.client.answers import Rows
from orchestrator.client.endpoint import Endpoint, endpoint_from_address
from orchestrator.client.sync import Outputs, Parameters, SyncClient, Wanted
from orchestrator.spec.served_model import TensorInfo

T = TypeVar("T")


class _HttpTransport:
    """Time limits apply to the silence of the socket, and are fixed when the connection is made."""

    over_grpc = False

    def __init__(self, address: str | Endpoint, *, timeout_s: float, in_flight: int) -> None:
        self.endpoint = endpoint = endpoint_from_address(address).for_http()
        tls = endpoint.tls
        context = None if tls is None else tls.context(gevent.ssl.create_default_context)
        self._client = triton.InferenceServerClient(
            endpoint.target + endpoint.path,
            concurrency=in_flight,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
            ssl=tls is not None,
            ssl_context_factory=None if tls is None else lambda **_: context,
        )
        if endpoint.headers:
            self._client.register_plugin(lambda request: request.headers.update(endpoint.headers))

    def ready(self, model: str | None, *, timeout_s: float) -> bool:
        del timeout_s
        if model is None:
            return bool(_whole(self._client.is_server_ready))
        return bool(_whole(lambda: self._client.is_model_ready(model)))

    def metadata(self, model: str, *, version: str, timeout_s: float) -> dict[str, Any]:
        del timeout_s
        return dict(_whole(lambda: self._client.get_model_metadata(model, model_version=version)))

    def config(self, model: str, *, timeout_s: float) -> dict[str, Any]:
        del timeout_s
        return dict(_whole(lambda: self._client.get_model_config(model)))

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
        del timeout_s
        sent = triton.InferInput(tensor.name, list(rows.shape), tensor.dtype)
        sent.set_data_from_numpy(rows, binary_data=True)
        outputs = None if wanted is None else [triton.InferRequestedOutput(n, binary_data=True) for n in wanted]
        result = _whole(
            lambda: self._client.infer(
                model, [sent], model_version=version, outputs=outputs, parameters=dict(parameters) or None
            )
        )
        return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}

    def in_order(self, action: Callable[[slice], T], parts: Sequence[slice], *, in_flight: int) -> list[T]:
        # tritonclient's HTTP sockets are gevent's: greenlets of this thread may share them, other threads may not.
        return list(gevent.pool.Pool(in_flight).imap(action, parts))

    def pause(self, seconds: float) -> None:
        gevent.sleep(seconds)

    def close(self) -> None:
        self._client.close()


def _whole(call: Callable[[], T]) -> T:
    """Runs a call and turns geventhttpclient's own exceptions into the standard ones of the same meaning."""
    try:
        return call()
    except HTTPConnectionClosed as error:
        raise ConnectionResetError("the server closed the connection before it answered") from error
    except HTTPParseError as error:
        raise ValueError("not HTTP; is this the gRPC port?") from error


class HttpClient(SyncClient):
    """Asks a server over HTTP; belongs to one thread.

    Args:
        address: of the HTTP endpoint: "host:port" in clear, "https://host:port" with TLS, and see
            `endpoint_from_address`, which takes certificates and headers too.
        timeout_s: longest silence of the server within one attempt; no attempt begins later than this.
        retries: further attempts, on 503 or a connection that failed.
        in_flight: parts of one oversize request under way at once.

    Raises:
        InputError: an address, a certificate or a header that cannot be used.
    """

    def __init__(
        self, address: str | Endpoint, *, timeout_s: float = 30.0, retries: int = 3, in_flight: int = 4
    ) -> None:
        transport = _HttpTransport(address, timeout_s=timeout_s, in_flight=in_flight)
        super().__init__(transport, timeout_s=timeout_s, retries=retries, in_flight=in_flight)
