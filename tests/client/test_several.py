"""Several servers behind one client: what goes to a neighbour, what is said, and what is refused."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from orchestrator.client import connect
from orchestrator.client.balancing import BalancingPolicy
from orchestrator.client.over_grpc import AsyncGrpcClient, GrpcClient
from orchestrator.errors import InputError, RefusedError, ServerFaultError, UnavailableError, UnknownModelError
from orchestrator.spec.cascade import PLAN_SHA256
from tests.client.asking import client_of
from tests.fakes.kserve import FakeKServe, cascade, cascade_answer, images
from tests.fakes.kserve_fronts import GrpcFront

KINDS = pytest.mark.parametrize("kind", ["grpc", "asyncio"])
QUICK = BalancingPolicy(check_s=0.05, check_timeout_s=0.3, base_ejection_s=0.2)


def plan(letter: str) -> dict[str, Any]:
    return {"parameters": {PLAN_SHA256: {"string_value": letter * 64}}}


@contextmanager
def fronts(count: int = 3, **changes: Any) -> Iterator[list[GrpcFront]]:
    with ExitStack() as stack:
        yield [stack.enter_context(GrpcFront(FakeKServe([cascade(**changes)]))) for _ in range(count)]


def addresses(servers: list[GrpcFront]) -> str:
    return ",".join(one.address for one in servers)


def answered(servers: list[GrpcFront]) -> list[int]:
    return [len(one.fake.calls) for one in servers]


def wait_for(caplog: pytest.LogCaptureFixture, words: str) -> str:
    """The line of the log with these words, which a health check writes within seconds."""
    pause = threading.Event()
    for _ in range(400):
        for line in list(caplog.messages):
            if words in line:
                return line
        pause.wait(0.025)
    raise AssertionError(f"no {words!r} in {caplog.messages}")


@KINDS
def test_requests_are_spread_evenly_over_servers_named_with_commas(kind: str) -> None:
    with fronts() as servers, client_of(kind, addresses(servers), balancing=QUICK) as client:
        for key in range(9):
            assert client.infer("digits_cascade", images([key])).label.tolist() == [key]
        assert client.ready("digits_cascade")
        assert not client.ready("nobody")
    assert answered(servers) == [3, 3, 3]


@KINDS
def test_what_one_server_cannot_take_its_neighbour_answers_and_a_refusal_stays_one(kind: str) -> None:
    with fronts() as servers, client_of(kind, addresses(servers), balancing=QUICK, retries=0) as client:
        servers[0].fake.fail_next(100, "UNAVAILABLE", "Server is stopping")
        servers[1].fake.fail_next(1, "CANCELLED", "CANCELLED")
        for key in range(30):
            assert client.infer("digits_cascade", images([key])).label.tolist() == [key % 10]
        calls = answered(servers)
        with pytest.raises(RefusedError, match="NaN"):
            client.infer("digits_cascade", images([1]) * float("nan"))
        with pytest.raises(UnknownModelError, match="nobody"):
            client.infer("nobody", images([1]))
    # Six with the first check; without ejection it would have been asked first every time.
    assert calls[0] <= 2 * QUICK.consecutive_failures
    assert sum(calls) == 30 + calls[0] + 1


@KINDS
def test_a_failure_that_may_be_the_rows_own_is_not_sent_to_a_neighbour(kind: str) -> None:
    with fronts() as servers, client_of(kind, addresses(servers), balancing=QUICK) as client:
        client.metadata("digits_cascade")
        for one in servers:
            one.fake.fail_next(1, "INTERNAL", "out of luck")
        with pytest.raises(ServerFaultError, match="out of luck"):
            client.infer("digits_cascade", images([1]))
    assert sum(answered(servers)) == 1


@KINDS
def test_no_answer_is_taken_of_a_server_that_is_back_with_another_plan(kind: str) -> None:
    def other(rows: Any, parameters: Any) -> Any:
        return {**cascade_answer(rows, parameters), "label": np.full(len(rows), 9, np.int32)}

    seldom = BalancingPolicy(check_s=1000)
    with fronts(2, settings=plan("a")) as servers, client_of(kind, addresses(servers), balancing=seldom) as client:
        client.infer("digits_cascade", images([1]))
        servers[1].fake.fail_next(1)
        servers[1].fake.models = [cascade(answer=other, settings=plan("b"))]
        for _ in range(10):
            assert client.infer("digits_cascade", images([1])).label.tolist() == [1]
    assert servers[1].fake.calls


@KINDS
def test_a_server_of_another_plan_is_refused_at_the_start(kind: str) -> None:
    with fronts(2, settings=plan("a")) as same, fronts(1, settings=plan("b")) as other:
        servers = [*same, *other]
        places = [one.address for one in servers]
        expected = f"got plan {'a' * 12} at {places[0]} and {places[1]}, plan {'b' * 12} at {places[2]}"
        with (
            client_of(kind, addresses(servers), balancing=QUICK) as client,
            pytest.raises(InputError, match=expected),
        ):
            client.infer("digits_cascade", images([1]))
    assert answered(servers) == [0, 0, 0]


def test_a_server_that_is_back_with_another_plan_is_not_said_to_be_asked(caplog: pytest.LogCaptureFixture) -> None:
    with fronts(2, settings=plan("a")) as servers, GrpcClient(addresses(servers), balancing=QUICK) as client:
        client.infer("digits_cascade", images([1]))
        servers[1].fake.ready = False
        wait_for(caplog, "is not asked: it says")
        servers[1].fake.models = [cascade(settings=plan("b"))]
        servers[1].fake.ready = True
        wait_for(caplog, "is not asked: it serves plan")
    assert not [line for line in caplog.messages if "asked again" in line]


def test_a_server_that_comes_to_serve_another_plan_is_asked_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with fronts(settings=plan("a")) as servers, GrpcClient(addresses(servers), balancing=QUICK) as client:
        client.infer("digits_cascade", images([1]))
        servers[2].fake.models = [cascade(settings=plan("b"))]
        line = wait_for(caplog, "is not asked")
        before = answered(servers)[2]
        for key in range(10):
            client.infer("digits_cascade", images([key]))
        assert answered(servers)[2] == before
        said = f"it serves plan {'b' * 12} as digits_cascade, its neighbours plan {'a' * 12}"
        assert line == f"{servers[2].address} is not asked: {said}; 2 of 3 servers are asked"
        # A new plan that all have come to serve is not held against them.
        for one in servers[:2]:
            one.fake.models = servers[2].fake.models
        wait_for(caplog, f"{servers[2].address} is asked again")
        client.infer("digits_cascade", images([1]))


@KINDS
def test_a_server_that_is_down_at_the_start_is_named_and_asked_when_it_is_there(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with fronts() as servers:
        gone = servers[0]
        gone.stop()
        with client_of(kind, addresses(servers), balancing=QUICK, retries=0) as client:
            for key in range(4):
                client.infer("digits_cascade", images([key]))
            assert f"{gone.address} is not asked: " in caplog.text
            assert "2 of 3 servers are" in caplog.text
            assert [len(one.fake.calls) for one in servers] == [0, 2, 2]


def test_servers_that_are_all_down_are_one_error_that_says_once_what_they_have_in_common() -> None:
    with fronts() as servers:
        for one in servers:
            one.stop()
        with (
            GrpcClient(addresses(servers), balancing=QUICK, retries=1) as client,
            pytest.raises(UnavailableError) as caught,
        ):
            client.infer("digits_cascade", images([1]))
    assert "got none of 3 servers answers: failed to connect to all addresses" in str(caught.value)
    assert str(caught.value).count("failed to connect") == 1
    assert all(str(caught.value).count(one.address) == 1 for one in servers)


def test_a_server_that_was_away_is_found_again_within_a_health_check(caplog: pytest.LogCaptureFixture) -> None:
    with fronts() as servers, GrpcClient(addresses(servers), balancing=QUICK) as client:
        client.infer("digits_cascade", images([1]))
        servers[1].stop()
        wait_for(caplog, "is not asked")
        with GrpcFront(servers[1].fake, port=servers[1].port):
            wait_for(caplog, "is asked again")
            before = answered(servers)[1]
            for key in range(9):
                client.infer("digits_cascade", images([key]))
            assert answered(servers)[1] > before


def test_one_client_serves_many_threads_and_every_answer_is_its_own() -> None:
    with fronts() as servers:
        with GrpcClient(addresses(servers), balancing=QUICK) as client, ThreadPoolExecutor(8) as pool:
            labels = list(pool.map(lambda key: client.infer("digits_cascade", images([key])).label[0], range(80)))
        assert labels == [key % 10 for key in range(80)]


def test_a_plain_client_and_an_event_loop_may_both_ask_several_servers(capfd: pytest.CaptureFixture[str]) -> None:
    async def ask(where: str) -> None:
        async with AsyncGrpcClient(where) as client:
            await asyncio.gather(*(client.infer("digits_cascade", images([key])) for key in range(40)))

    with (
        fronts() as servers,
        GrpcClient(addresses(servers), balancing=QUICK) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        other = pool.submit(asyncio.run, ask(addresses(servers)))
        list(pool.map(lambda key: client.infer("digits_cascade", images([key])), range(40)))
        other.result()
    assert "BlockingIOError" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("where", "options", "text"),
    [
        ("127.0.0.1:1,127.0.0.1:1", {}, "server addresses: got 127.0.0.1:1 more than once, expected one of each"),
        ((), {}, "server addresses: got none"),
        ("127.0.0.1:1,127.0.0.1:2", {"http": True}, "got 2 over HTTP, expected one, or several over gRPC"),
        ("127.0.0.1:1,nowhere", {}, "server address: got 'nowhere', expected host:port"),
        ("127.0.0.1:1,", {}, "server address: got '', expected host:port"),
    ],
)
def test_addresses_that_cannot_be_used_are_one_line(where: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        connect(where, **options)
    assert text in str(caught.value)
