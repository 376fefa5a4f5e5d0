"""Addresses to bind, and what they are called by whoever connects to them."""

from __future__ import annotations

import ipaddress
import socket

# Nothing is sent there: these are for documentation, and only the way to them is asked for.
_ELSEWHERE = {socket.AF_INET: "198.51.100.1", socket.AF_INET6: "2001:db8::1"}


def family_of(host: str) -> socket.AddressFamily:
    """IPv6 for such an address, IPv4 for other addresses and for names."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def is_wildcard(host: str) -> bool:
    """Whether it means every address of this machine, as 0.0.0.0 and :: do."""
    address = _address(host)
    return address is not None and address.is_unspecified


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to it."""
    address = _address(host)
    if address is None:
        try:
            address = _address(socket.gethostbyname(host))
        except OSError:
            return False
    return address is not None and address.is_loopback


def local_host(host: str) -> str:
    """The address that this machine connects to when a server binds `host`."""
    if not is_wildcard(host):
        return host
    return "::1" if family_of(host) == socket.AF_INET6 else "127.0.0.1"


def network_host(host: str) -> str:
    """The address that other machines connect to when a server binds `host`; the local one without a network."""
    if not is_wildcard(host):
        return host
    family = family_of(host)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Of a datagram socket this only chooses the interface that has the way out.
            probe.connect((_ELSEWHERE[family], 9))
            found = str(probe.getsockname()[0])
        except OSError:
            return local_host(host)
    return local_host(host) if is_wildcard(found) else found


def bracketed(host: str) -> str:
    """A host as it stands before a colon and a port."""
    return f"[{host}]" if family_of(host) == socket.AF_INET6 else host


def evhtp_host(host: str) -> str:
    """A host as Triton's HTTP and metrics endpoints take it."""
    return f"ipv6:{host}" if family_of(host) == socket.AF_INET6 else host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
