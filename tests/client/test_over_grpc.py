import asyncio
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from orchestrator.client.loop import wait_in_loop
from orchestrator.client.over_grpc import AsyncGrpcClient, GrpcClient, closed_loop, in_order
from orchestrator.client.over_http import HttpClient
from orchestrator.errors import ClientError, RefusedError, ServerFaultError, UnavailableError
from tests.fakes.kserve import FakeKServe, cascade, images, member
from tests.fakes.kserve_fronts import GrpcFront


def test_many_requests_of_one_event_loop_are_under_way_at_once() -> None:
    fake = FakeKServe([cascade()], delay_s=0.1)

    async def run(address: str) -> list[int]:
        async with AsyncGrpcClient(address) as client:
            answers = await asyncio.gather(*(client.infer("digits_cascade", images([key])) for key in range(20)))
        return [int(answer.label[0]) for answer in answers]

    with GrpcFront(fake) as front:
        assert asyncio.run(run(front.address)) == [key % 10 for key in range(20)]
    assert fake.most_at_once > 5


def test_one_client_serves_several_threads() -> None:
    fake = FakeKServe([cascade()], delay_s=0.02)
    labels: dict[int, list[int]] = {}

    with GrpcFront(fake) as front, GrpcClient(front.address) as client:

        def ask(key: int) -> None:
            labels[key] = client.infer("digits_cascade", images([key] * 3)).label.tolist()

        threads = [threading.Thread(target=ask, args=(key,)) for key in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert labels == {key: [key] * 3 for key in range(10)}


def test_a_client_can_be_made_before_there_is_a_loop_and_survives_its_server_coming_back() -> None:
    fake = FakeKServe([member()])
    front = GrpcFront(fake)
    client = AsyncGrpcClient(front.address, retries=20, timeout_s=20)

    async def run() -> list[int]:
        async with client:
            with front:
                first = await client.infer("digits_small", images([1]))
            async with AsyncGrpcClient(front.address, retries=0) as impatient:
                with pytest.raises(UnavailableError):
                    await impatient.infer("digits_small", images([1]))
            again = asyncio.create_task(client.infer("digits_small", images([2])))
            await asyncio.sleep(0.2)
            with GrpcFront(fake, front.port):
                return [int(first.label[0]), int((await again).label[0])]

    assert asyncio.run(run()) == [1, 2]


def test_a_cancelled_request_is_cancelled_and_not_translated() -> None:
    fake = FakeKServe([member()])

    async def run(address: str) -> None:
        async with AsyncGrpcClient(address) as client:
            await client.metadata("digits_small")
            fake.delay_s = 1
            task = asyncio.create_task(client.infer("digits_small", images([1])))
            while not fake.calls:
                await asyncio.sleep(0.005)
            task.cancel()
            await task

    with GrpcFront(fake) as front, pytest.raises(asyncio.CancelledError):
        asyncio.run(run(front.address))


def test_the_first_failure_stops_parts_that_have_not_begun() -> None:
    fake = FakeKServe([cascade(max_batch_size=1)], delay_s=0.05)
    rows = images(range(20))
    rows[0] = np.nan
    with GrpcFront(fake) as front, GrpcClient(front.address, in_flight=2) as client, pytest.raises(RefusedError):
        client.infer("digits_cascade", rows)
    assert len(fake.calls) < 8


def test_in_order_keeps_order_whatever_finishes_first() -> None:
    async def late(value: int) -> int:
        await asyncio.sleep(0.03 if value == 0 else 0)
        return value

    assert asyncio.run(in_order([lambda v=v: late(v) for v in range(5)], in_flight=2)) == [0, 1, 2, 3, 4]


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


def test_a_closed_loop_asks_every_row_once_and_keeps_order() -> None:
    inside, most = 0, 0

    async def ask(row: np.ndarray) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.001)
        inside -= 1
        return int(row[0, 0])

    result = asyncio.run(closed_loop(ask, np.arange(20.0)[:, None], concurrency=4))
    assert result.answers == list(range(20))
    assert most == 4
    assert (result.latency_ms > 0).all()


def test_work_that_is_interrupted_before_its_loop_knows_of_it_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None:
        pass

    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    loop, work = wait_in_loop(running()), nothing()
    call_soon = loop.call_soon_threadsafe

    def interrupted(*_: object) -> None:
        monkeypatch.setattr(loop, "call_soon_threadsafe", call_soon)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wait_in_loop(work)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
