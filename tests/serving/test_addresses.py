"""Addresses to bind, and what others call them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import PortInUseError, ServingError
from orchestrator.serving.addresses import (
    bracketed,
    choose_ports,
    evhtp_host,
    family_of,
    is_loopback,
    is_wildcard,
    local_host,
    network_host,
)
from orchestrator.serving.options import ServeOptions


@pytest.mark.parametrize(
    ("host", "wildcard", "loopback", "local"),
    [
        ("127.0.0.1", False, True, "127.0.0.1"),
        ("127.0.0.9", False, True, "127.0.0.9"),
        ("localhost", False, True, "localhost"),
        ("::1", False, True, "::1"),
        ("0.0.0.0", True, False, "127.0.0.1"),
        ("::", True, False, "::1"),
        ("0:0::0", True, False, "::1"),
        ("10.1.2.3", False, False, "10.1.2.3"),
        ("fd00::7", False, False, "fd00::7"),
        ("no-such-host.invalid", False, False, "no-such-host.invalid"),
    ],
)
def test_who_can_connect_to_an_address_and_by_which_name(
    host: str, wildcard: bool, loopback: bool, local: str
) -> None:
    assert (is_wildcard(host), is_loopback(host), local_host(host)) == (wildcard, loopback, local)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_others_are_told_an_address_of_this_machine(host: str) -> None:
    found = network_host(host)
    assert ipaddress.ip_address(found).version == ipaddress.ip_address(host).version
    assert not is_wildcard(found)
    if not is_loopback(found):
        with socket.socket(family_of(found), socket.SOCK_DGRAM) as probe:
            probe.bind((found, 0))


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "gpu-box.example.org", "fd00::7"])
def test_an_address_that_was_named_is_told_as_it_is(host: str) -> None:
    assert network_host(host) == host


@pytest.mark.parametrize(("host", "local"), [("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_without_a_network_it_is_the_local_address(host: str, local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unconnected(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("orchestrator.serving.addresses.socket.socket", Unconnected)
    assert network_host(host) == local


def test_ipv6_is_written_as_urls_and_as_triton_want_it() -> None:
    assert [bracketed(host) for host in ("::1", "127.0.0.1", "box")] == ["[::1]", "127.0.0.1", "box"]
    assert [evhtp_host(host) for host in ("::", "127.0.0.1", "box")] == ["ipv6:::", "127.0.0.1", "box"]


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
