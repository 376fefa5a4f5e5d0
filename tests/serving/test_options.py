import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import PortInUseError, ServingError, SpecError
from orchestrator.serving.options import (
    FIELDS,
    ServeOptions,
    bracketed,
    choose_ports,
    evhtp_host,
    family_of,
    is_loopback,
    is_wildcard,
    local_host,
    network_host,
    numeric_host,
)

PORTS = st.integers(1, 65535)


def options(**changes: Any) -> ServeOptions:
    return ServeOptions(**{"repository": Path("models"), **changes})


def test_the_defaults_are_tritons_ports_on_this_machine_alone() -> None:
    made = options()
    assert (made.host, made.http_port, made.grpc_port, made.metrics_port) == ("127.0.0.1", 8000, 8001, 8002)


@given(st.lists(PORTS, min_size=3, max_size=3))
def test_ports_are_accepted_exactly_when_they_differ(ports: list[int]) -> None:
    chosen = dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
    if len(set(ports)) == 3:
        options(**chosen)
    else:
        with pytest.raises(SpecError, match="a port of its own"):
            options(**chosen)


def test_any_number_of_ports_may_be_left_to_chance() -> None:
    options(http_port=0, grpc_port=0, metrics_port=0)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "10.1.2.3", "localhost", "gpu-box.example.org", "::1", "::"]
)
def test_a_host_is_an_address_or_a_name(host: str) -> None:
    assert options(host=host).host == host


@pytest.mark.parametrize(
    "host", ["", "127.0.0.999", "1.2.3", "[::1]", "1::2::3", "a b", "-x", "http://here", "x;rm", None]
)
def test_anything_else_is_no_host(host: object) -> None:
    with pytest.raises(SpecError, match="host"):
        options(host=host)


def test_http_may_have_an_address_of_its_own() -> None:
    assert [options(host="0.0.0.0").host_of(one) for one in FIELDS] == ["0.0.0.0"] * 3
    apart = options(host="0.0.0.0", http_host="127.0.0.1")
    assert {one: apart.host_of(one) for one in FIELDS} == {
        "http": "127.0.0.1",
        "grpc": "0.0.0.0",
        "metrics": "0.0.0.0",
    }
    with pytest.raises(SpecError, match="http_host"):
        options(http_host="a b")


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        options(http_port=70000, grpc_port=-1, metrics_port=True, startup_timeout_s=0, log_verbose=99, shm_bytes=5)
    fields = {"http_port", "grpc_port", "metrics_port", "startup_timeout_s", "log_verbose", "shm_bytes"}
    assert set(caught.value.faults) == fields


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


@pytest.mark.parametrize(("known", "wanted"), [(["::1"], "::1"), (["::1", "127.0.0.1"], "127.0.0.1"), ([], "box")])
def test_a_name_becomes_its_address(known: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if not known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(family_of(one), socket.SOCK_STREAM, 6, "", (one, 0)) for one in known]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert numeric_host("box") == wanted
    assert is_loopback("box") == bool(known)
    assert [numeric_host(host) for host in ("::", "10.1.2.3")] == ["::", "10.1.2.3"]


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "gpu-box.example.org", "fd00::7"])
def test_an_address_that_was_named_is_told_as_it_is(host: str) -> None:
    assert network_host(host) == host


@pytest.mark.parametrize(("host", "local"), [("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_without_a_network_it_is_the_local_address(host: str, local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unconnected(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("orchestrator.serving.options.socket.socket", Unconnected)
    assert network_host(host) == local


def test_ipv6_is_written_as_urls_and_as_triton_want_it() -> None:
    assert [bracketed(host) for host in ("::1", "127.0.0.1", "box")] == ["[::1]", "127.0.0.1", "box"]
    assert [evhtp_host(host) for host in ("::", "127.0.0.1", "box")] == ["ipv6:::", "127.0.0.1", "box"]


def on_free_ports(**changes: Any) -> ServeOptions:
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    return options(**{**ports, **changes})


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        yield other.getsockname()[1]


def test_free_ports_are_three_different_ones_below_those_of_outgoing_connections() -> None:
    for _ in range(20):
        ports = choose_ports(on_free_ports())
        found = {ports.http, ports.grpc, ports.metrics}
        assert len(found) == 3
        assert all(20000 <= port < 32000 for port in found)


def test_a_port_asked_for_is_the_one_given() -> None:
    wanted = choose_ports(on_free_ports())
    again = choose_ports(on_free_ports(http_port=wanted.http, grpc_port=wanted.grpc, metrics_port=wanted.metrics))
    assert again == wanted


@pytest.mark.parametrize("field", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_named_with_the_argument_that_changes_it(taken: int, field: str) -> None:
    expected = f"port {taken} on 127.0.0.1: got another process listening there.*`{field}_port`"
    with pytest.raises(PortInUseError, match=expected):
        choose_ports(on_free_ports(**{f"{field}_port": taken}))


def test_a_port_whose_last_connection_just_closed_is_free() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # the side that closes first keeps the port in TIME_WAIT
    assert choose_ports(on_free_ports(http_port=port)).http == port


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServingError, match=r"host 192\.0\.2\.1.*`host`"):
        choose_ports(on_free_ports(host="192.0.2.1"))


def test_a_port_below_1024_is_refused_with_advice() -> None:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 1))
            pytest.skip("this user may bind any port")
        except PermissionError:
            pass
    with pytest.raises(ServingError, match="at least 1024"):
        choose_ports(on_free_ports(http_port=1))


@pytest.mark.parametrize("field", ["startup_timeout_s", "stop_timeout_s"])
@pytest.mark.parametrize("seconds", [0, -1.0, 86_401, 1e10, float("inf"), float("nan"), "soon"])
def test_a_wait_has_an_end_that_triton_can_count_to(field: str, seconds: object) -> None:
    with pytest.raises(SpecError, match=f"{field}: got .*, expected above 0, at most 86400"):
        options(**{field: seconds})
    assert options(**{field: 86_400}).stop_timeout_s
