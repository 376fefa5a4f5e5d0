"""The three clients behind one interface, so that one test holds all of them to the same behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.client.over_grpc import AsyncGrpcClient, GrpcClient
from orchestrator.client.over_http import HttpClient
from tests.fakes.kserve import FakeKServe
from tests.fakes.kserve_fronts import GrpcFront, HttpFront

KINDS = ("grpc", "asyncio", "http")


class BlockingAsync:
    """The asyncio client driven from plain code, on a loop of its own."""

    def __init__(self, address: str, **options: Any) -> None:
        self._client = AsyncGrpcClient(address, **options)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> BlockingAsync:
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
