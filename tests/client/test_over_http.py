from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from orchestrator.client.over_http import HttpClient
from orchestrator.errors import ClientError, RefusedError, ServerFaultError, UnavailableError
from tests.fakes.kserve import images


@contextmanager
def listening(answer: bytes) -> Iterator[tuple[str, Callable[[], int]]]:
    """A port where every connection gets these bytes and is closed; and how many requests came."""
    server = socket.create_server(("127.0.0.1", 0))
    seen: list[int] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                # After a failure the client looks whether TLS is spoken here, which is no request.
                if not connection.recv(65536).startswith(b"\x16\x03"):
                    seen.append(1)
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}", lambda: len(seen)
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def test_something_that_is_not_http_is_a_fault_and_not_tried_again() -> None:
    with listening(b"\x00\x00\x12\x04\x00\x00") as (address, count), HttpClient(address, timeout_s=5) as client:
        with pytest.raises(ServerFaultError, match="is this the gRPC port"):
            client.infer("m", images([1]))
        assert count() == 1
        assert not client.ready()


def test_a_page_instead_of_json_is_a_fault() -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html"
    with (
        listening(page) as (address, _),
        HttpClient(address, timeout_s=5) as client,
        pytest.raises(ServerFaultError, match="cannot be read"),
    ):
        client.infer("m", images([1]))


def test_a_connection_closed_without_an_answer_is_unavailable() -> None:
    with (
        listening(b"") as (address, _),
        HttpClient(address, timeout_s=5, retries=1) as client,
        pytest.raises(UnavailableError, match="closed the connection"),
    ):
        client.infer("m", images([1]))


@pytest.mark.parametrize("body", ["", "<html><h1>sorry</h1></html>"], ids=["empty", "a page"])
@pytest.mark.parametrize(
    ("status", "says", "leaf"),
    [
        (401, "HTTP 401 Unauthorized and no answer of Triton's, as a gateway gives it: it wants a", RefusedError),
        (302, "HTTP 302 Found and no answer of Triton's, as a gateway gives it: the address has", RefusedError),
        (502, "HTTP 502 Bad Gateway and no answer of Triton's", UnavailableError),
    ],
)
def test_what_a_gateway_answers_in_tritons_place_is_said_with_its_status(
    status: int, says: str, leaf: type[ClientError], body: str
) -> None:
    answer = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    with (
        listening(answer.encode()) as (address, _),
        HttpClient(address, retries=0) as client,
        pytest.raises(leaf) as caught,
    ):
        client.metadata("m")
    assert says in str(caught.value)
    assert "html" not in str(caught.value)
