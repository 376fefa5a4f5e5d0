"""The three clients behind one interface, so that one test holds all of them to the same behaviour."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc

from orchestrator.client.over_grpc import AsyncGrpcClient, GrpcClient
from orchestrator.client.over_http import HttpClient
from tests.fakes.kserve import FakeKServe
from tests.fakes.kserve_fronts import GrpcFront, HttpFront
from tests.tls import Pair, tls_proxy

KINDS = ("grpc", "asyncio", "http")


class BlockingAsync:
    """The asyncio client driven from plain code, on a loop of its own."""

    def __init__(self, address: str, **options: Any) -> None:
        self._client = AsyncGrpcClient(address, **options)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> "BlockingAsync":
        return self

    def __exit__(self, *details: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **options: self._loop.run_until_complete(method(*args, **options))


CLASSES = {"grpc": GrpcClient, "asyncio": BlockingAsync, "http": HttpClient}


def client_of(kind: str, address: str, **options: Any) -> Any:
    """A client of a kind."""
    return CLASSES[kind](address, **options)


@contextmanager
def served(kind: str, fake: FakeKServe) -> Iterator[str]:
    """The address of a fake behind the front that a kind of client needs."""
    with (HttpFront if kind == "http" else GrpcFront)(fake) as front:
        yield front.address


@contextmanager
def secured(kind: str, fake: FakeKServe, pair: Pair, *, client_ca: Path | None = None) -> Iterator[str]:
    """host:port of a fake that speaks TLS, and asks for certificates of clients where an authority is given."""
    with ExitStack() as stack:
        if kind == "http":
            front = stack.enter_context(HttpFront(fake))
            yield stack.enter_context(tls_proxy(front.address, pair.context(client_ca)))
            return
        credentials = grpc.ssl_server_credentials(
            [(pair.key.read_bytes(), pair.cert.read_bytes())],
            root_certificates=None if client_ca is None else client_ca.read_bytes(),
            require_client_auth=client_ca is not None,
        )
        yield stack.enter_context(GrpcFront(fake, tls=credentials)).address
