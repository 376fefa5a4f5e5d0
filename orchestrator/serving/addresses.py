"""Where the embedded server listens: its ports, the addresses to bind, and what clients call them."""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from orchestrator.errors import PortInUseError, ServingError
from orchestrator.serving.options import ServeOptions

FIELDS = ("http", "grpc", "metrics")
_FREE = range(20000, 32000)

# Nothing is sent there: these are for documentation, and only the way to them is asked for.
_ELSEWHERE = {socket.AF_INET: "198.51.100.1", socket.AF_INET6: "2001:db8::1"}


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The ports one server listens on, none of them 0."""

    http: int
    grpc: int
    metrics: int


def choose_ports(options: ServeOptions) -> Ports:
    """The ports asked for, after seeing that they are free, and free ones where 0 was asked for.

    All three are held until the last is chosen, so they differ. They are let go before the server binds them,
    seconds later: another process may slip in, which the server then reports. Free ones are therefore taken
    from below the range the system hands to outgoing connections.

    Raises:
        PortInUseError: somebody listens there already.
        ServingError: the address is not this machine's, or the port is not ours to bind.
    """
    with ExitStack() as held:
        found = {field: _hold(held, options.host, getattr(options, f"{field}_port"), field) for field in FIELDS}
    return Ports(**found)


def _hold(held: ExitStack, host: str, port: int, field: str) -> int:
    probe = held.enter_context(socket.socket(family_of(host), socket.SOCK_STREAM))
    # As the server does: a port whose last connections are still in TIME_WAIT is free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    candidates = [port] if port else random.sample(_FREE, 100)
    for candidate in candidates:
        try:
            probe.bind((host, candidate))
            probe.listen(1)
            return candidate
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise _error_from(error, host, candidate, field) from error
    raise ServingError(f"host {host}", got=f"no free port for {field}", fix=f"name one with `{field}_port`")


def _error_from(error: OSError, host: str, port: int, field: str) -> ServingError:
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"port {port} on {host}",
            got="another process listening there",
            expected=f"a free port for {field}",
            fix=f"end that process or choose another with `{field}_port` (0 picks a free one)",
        )
    if error.errno == errno.EACCES:
        fix = f"choose one of at least 1024 with `{field}_port` (0 picks a free one)"
        return ServingError(f"port {port} on {host}", got=error.strerror, expected="a port we may bind", fix=fix)
    fix = "use 127.0.0.1, 0.0.0.0 or an address of this machine with `host`"
    return ServingError(f"host {host}", got=error.strerror or error, expected="an address to listen on", fix=fix)


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
