"""Ports for the server's three endpoints."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack

from orchestrator.errors import PortInUseError, ServingError
from orchestrator.serving.embedded import Ports
from orchestrator.serving.hosts import family_of
from orchestrator.serving.options import ServeOptions

FIELDS = ("http", "grpc", "metrics")
_FREE = range(20000, 32000)


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
    raise ServingError(f"host {host}", got=f"no free port for {field}", fix=f"name one with --{field}-port")


def _error_from(error: OSError, host: str, port: int, field: str) -> ServingError:
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"port {port} on {host}",
            got="another process listening there",
            expected=f"a free port for {field}",
            fix=f"end that process or choose another with --{field}-port (0 picks a free one)",
        )
    if error.errno == errno.EACCES:
        fix = f"choose one of at least 1024 with --{field}-port (0 picks a free one)"
        return ServingError(f"port {port} on {host}", got=error.strerror, expected="a port we may bind", fix=fix)
    fix = "use 127.0.0.1, 0.0.0.0 or an address of this machine with --host"
    return ServingError(f"host {host}", got=error.strerror or error, expected="an address to listen on", fix=fix)
