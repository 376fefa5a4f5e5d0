"""Asking a served cascade, ensemble or member over the network: gRPC (sync and asyncio) and HTTP."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.client.endpoint import Addresses, endpoints_from_addresses
from orchestrator.errors import InputError

if TYPE_CHECKING:
    from orchestrator.client.sync import SyncClient


def connect(
    address: Addresses,
    *,
    http: bool = False,
    timeout_s: float = 30.0,
    ca: str | Path | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    headers: Mapping[str, str] | None = None,
) -> "SyncClient":
    """The client that an address asks for, HTTP or gRPC for a served model; use it as a context manager.

    Args:
        address: "host:port" in clear, "grpcs://host:port" or "https://host:port" with TLS. An `Endpoint` has its
            certificates and headers already. Of several servers, which are asked over gRPC, a sequence of them, or
            a text with commas between them; docs/serving.md says how requests are spread.
        http: HTTP whatever the scheme.
        timeout_s: per request, retries included.
        ca: PEM file of the authorities to trust instead of the system's.
        cert: PEM file of a client certificate.
        key: PEM file of its private key.
        headers: sent with every request.

    Raises:
        InputError: an address, a certificate or a header that cannot be used.
    """
    endpoints = endpoints_from_addresses(address, ca=ca, cert=cert, key=key, headers=headers)
    if http or any(endpoint.is_http for endpoint in endpoints):
        if len(endpoints) > 1:
            raise InputError(
                "server addresses", got=f"{len(endpoints)} over HTTP", expected="one, or several over gRPC"
            )
        # Each protocol's library takes a fifth of a second to import, so only the one needed is.
        from orchestrator.client.over_http import HttpClient

        return HttpClient(endpoints[0], timeout_s=timeout_s)
    # As above: only the one needed.
    from orchestrator.client.over_grpc import GrpcClient

    return GrpcClient(endpoints, timeout_s=timeout_s)
