"""Addresses to bind, and what others call them."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from orchestrator.serving.addresses import (
    bracketed,
    evhtp_host,
    family_of,
    is_loopback,
    is_wildcard,
    local_host,
    network_host,
)


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
