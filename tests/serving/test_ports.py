from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import PortInUseError, ServingError
from orchestrator.serving.addresses import choose_ports
from orchestrator.serving.options import ServeOptions


def options(**changes: object) -> ServeOptions:
    chosen = {"repository": Path("models"), "http_port": 0, "grpc_port": 0, "metrics_port": 0, **changes}
    return ServeOptions(**chosen)  # type: ignore[arg-type]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        yield other.getsockname()[1]


def test_free_ports_are_three_different_ones_below_those_of_outgoing_connections() -> None:
    for _ in range(20):
        ports = choose_ports(options())
        found = {ports.http, ports.grpc, ports.metrics}
        assert len(found) == 3
        assert all(20000 <= port < 32000 for port in found)


def test_a_port_asked_for_is_the_one_given() -> None:
    wanted = choose_ports(options())
    again = choose_ports(options(http_port=wanted.http, grpc_port=wanted.grpc, metrics_port=wanted.metrics))
    assert again == wanted


@pytest.mark.parametrize("field", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_named_with_the_argument_that_changes_it(taken: int, field: str) -> None:
    expected = f"port {taken} on 127.0.0.1: got another process listening there.*`{field}_port`"
    with pytest.raises(PortInUseError, match=expected):
        choose_ports(options(**{f"{field}_port": taken}))


def test_a_port_whose_last_connection_just_closed_is_free() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # the side that closes first keeps the port in TIME_WAIT
    assert choose_ports(options(http_port=port)).http == port


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServingError, match=r"host 192\.0\.2\.1.*`host`"):
        choose_ports(options(host="192.0.2.1"))


def test_a_port_below_1024_is_refused_with_advice() -> None:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 1))
            pytest.skip("this user may bind any port")
        except PermissionError:
            pass
    with pytest.raises(ServingError, match="at least 1024"):
        choose_ports(options(http_port=1))
