"""Options of the embedded server, and where it listens: ports, addresses to bind, and what clients call them."""

import errno
import ipaddress
import random
import re
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PortInUseError, ServingError, shown
from orchestrator.probe import MOST_TIMEOUT_S
from orchestrator.spec.validation import MOST_SIZE, Faults, is_finite

MIB = 1024 * 1024
FIELDS = ("http", "grpc", "metrics")
_FREE = range(20000, 32000)
# Addresses reserved for documentation: nothing is sent there, only the route to them is looked up.
_ELSEWHERE = {socket.AF_INET: "198.51.100.1", socket.AF_INET6: "2001:db8::1"}
_HOST_NAME = re.compile(r"^(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*$")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of one embedded server."""

    repository: Path  # served from its place and never written to
    host: str = "127.0.0.1"  # address that the endpoints bind to
    http_host: str | None = (
        None  # that of HTTP, which a request of a few bytes can end the server by; None is `host`
    )
    http_port: int = 8000  # 0 picks a free port, here and below
    grpc_port: int = 8001
    metrics_port: int = 8002
    startup_timeout_s: float = 120.0  # longest wait for every model to be ready
    stop_timeout_s: float = 30.0  # longest wait for requests in flight before the server is killed
    log_verbose: int = 0  # Triton's verbosity, 0 is quiet
    log_path: Path | None = None  # None uses a temporary folder, which is kept after failures only
    hide_gpus: bool = False  # start the server as if the machine had no GPU
    shm_bytes: int = 4 * MIB  # shared memory that each Python model begins with, and by which it grows
    bls_threads: int = 64  # most calls and late answers that one Python model may have under way at a time
    config_name: str | None = (
        None  # members with `configs/NAME.pbtxt` are served with it; "gpu" for rendered GPU files
    )

    def __post_init__(self) -> None:
        faults = Faults("serve options")
        faults.check("repository", isinstance(self.repository, Path), f"got {self.repository!r}, expected a path")
        for field in ("host", "http_host"):
            host = getattr(self, field)
            good = (isinstance(host, str) and _is_host(host)) or (field == "http_host" and host is None)
            faults.check(field, good, f"got {host!r}, expected an IP address or a host name")
        taken: dict[int, str] = {}
        for field in (f"{endpoint}_port" for endpoint in FIELDS):
            port = getattr(self, field)
            faults.integer(field, port, low=0, high=65535)
            if port and port in taken:
                faults.add(field, f"got {port}, which {taken[port]} has already, expected a port of its own")
            taken.setdefault(port, field)
        if self.config_name is not None:
            faults.name("config_name", self.config_name)
        for field in ("startup_timeout_s", "stop_timeout_s"):
            seconds = getattr(self, field)
            # Triton counts in 32 bits, and Python's waits end at 292 years.
            good = is_finite(seconds) and 0 < seconds <= MOST_TIMEOUT_S
            faults.check(field, good, f"got {shown(seconds)}, expected above 0, at most {MOST_TIMEOUT_S:g}")
        faults.integer("log_verbose", self.log_verbose, low=0, high=9)
        # With less than 1 MiB the backend has no room for its own data, and every load fails without a reason.
        faults.integer("shm_bytes", self.shm_bytes, low=MIB, high=MOST_SIZE * MIB)
        faults.integer("bls_threads", self.bls_threads, low=1, high=1024)
        faults.close()

    def host_of(self, endpoint: str) -> str:
        """The address that the endpoint "http", "grpc" or "metrics" binds to."""
        return self.host if endpoint != "http" or self.http_host is None else self.http_host


def _is_host(host: str) -> bool:
    # Dotted numbers that are no address (127.0.0.999) must not count as a host name.
    is_name = _HOST_NAME.match(host) is not None and not host.replace(".", "").isdigit()
    return is_name or _address(host) is not None


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The ports one server listens on, none of them 0."""

    http: int
    grpc: int
    metrics: int


def choose_ports(options: ServeOptions) -> Ports:
    """The ports of the options, after a check that they are free, and free ports in place of 0.

    All three are held until the last is chosen, so they differ. They are released seconds before the server binds
    them, and another process that takes one in between makes the server fail with an error. Free ports are
    therefore chosen below the range that the system uses for outgoing connections.

    Raises:
        PortInUseError: another process listens there.
        ServingError: the address is not this machine's, or this user may not bind the port.
    """
    with ExitStack() as held:
        found = {
            field: _hold(held, options.host_of(field), getattr(options, f"{field}_port"), field)
            for field in FIELDS
        }
    return Ports(**found)


def _hold(held: ExitStack, host: str, port: int, field: str) -> int:
    address = numeric_host(host)
    probe = held.enter_context(socket.socket(family_of(address), socket.SOCK_STREAM))
    # The server sets it as well: a port whose last connections are still in TIME_WAIT is free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for candidate in [port] if port else random.sample(_FREE, 100):
        try:
            probe.bind((address, candidate))
            probe.listen(1)
            return candidate
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise _error_from(error, host, candidate, field) from error
    raise ServingError(f"host {host}", got=f"no free port for {field}", fix=f"name one with `{field}_port`")


def _error_from(error: OSError, host: str, port: int, field: str) -> ServingError:
    what, picks = f"port {port} on {host}", f"with `{field}_port` (0 picks a free one)"
    if error.errno == errno.EADDRINUSE:
        got, fix = "another process listening there", f"end that process or choose another {picks}"
        return PortInUseError(what, got=got, expected=f"a free port for {field}", fix=fix)
    if error.errno == errno.EACCES:
        fix = f"choose one of at least 1024 {picks}"
        return ServingError(what, got=error.strerror, expected="a port we may bind", fix=fix)
    fix = "use 127.0.0.1, 0.0.0.0 or an address of this machine with `host`"
    return ServingError(f"host {host}", got=error.strerror or error, expected="an address to listen on", fix=fix)


def family_of(host: str) -> socket.AddressFamily:
    """IPv6 for an IPv6 address, IPv4 for other addresses and for names."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def numeric_host(host: str) -> str:
    """The address of a host, IPv4 where it has one; the name itself where nobody knows it."""
    if _address(host) is None:
        with suppress(OSError, UnicodeError):
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])
    return host


def is_wildcard(host: str) -> bool:
    """Whether a host means every address of this machine, as 0.0.0.0 and :: do."""
    address = _address(host)
    return address is not None and address.is_unspecified


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a host."""
    address = _address(numeric_host(host))
    return address is not None and address.is_loopback


def local_host(host: str) -> str:
    """The address that this machine connects to when a server binds `host`."""
    if not is_wildcard(host):
        return host
    return "::1" if family_of(host) == socket.AF_INET6 else "127.0.0.1"


def network_host(host: str) -> str:
    """The address that other machines connect to when a server binds `host`; without a network the local one."""
    if not is_wildcard(host):
        return host
    family = family_of(host)
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        # On a datagram socket this only chooses the interface with the route.
        probe.connect((_ELSEWHERE[family], 9))
        if not is_wildcard(found := str(probe.getsockname()[0])):
            return found
    return local_host(host)


def bracketed(host: str) -> str:
    """A host as it is written before a colon and a port."""
    return f"[{host}]" if family_of(host) == socket.AF_INET6 else host


def evhtp_host(host: str) -> str:
    """A host as Triton's options for HTTP and metrics take it."""
    return f"ipv6:{host}" if family_of(host) == socket.AF_INET6 else host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
