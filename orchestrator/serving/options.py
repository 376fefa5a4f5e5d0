"""Options of the embedded server, validated when built."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.spec.validation import Faults

MIB = 1024 * 1024
_HOST_NAME = re.compile(r"^(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*$")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of one embedded server.

    Args:
        repository: model repository; it is served from its place and never written to.
        host: address that all three endpoints bind to.
        http_port, grpc_port, metrics_port: 0 picks a free port.
        startup_timeout_s: longest wait for every model to be ready.
        stop_timeout_s: longest wait for requests in flight before the server is killed.
        log_verbose: Triton's verbosity, 0 is quiet.
        log_path: file for the server's log; None uses a temporary folder, which is kept after failures only.
        hide_gpus: start the server as if the machine had no GPU.
        shm_bytes: shared memory that each Python model begins with, and by which it grows.
        bls_threads: most calls and late answers that one Python model may have under way at a time.
        config_name: members with a file `configs/NAME.pbtxt` are served with it, "gpu" for the rendered GPU files.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    startup_timeout_s: float = 120.0
    stop_timeout_s: float = 30.0
    log_verbose: int = 0
    log_path: Path | None = None
    hide_gpus: bool = False
    shm_bytes: int = 4 * MIB
    bls_threads: int = 64
    config_name: str | None = None

    def __post_init__(self) -> None:
        faults = Faults("serve options")
        faults.check("repository", isinstance(self.repository, Path), f"got {self.repository!r}, expected a path")
        faults.check("host", _is_host(self.host), f"got {self.host!r}, expected an IP address or a host name")
        for field in ("http_port", "grpc_port", "metrics_port"):
            faults.integer(field, getattr(self, field), low=0, high=65535)
        if self.config_name is not None:
            faults.name("config_name", self.config_name)
        self._check_ports_differ(faults)
        faults.positive("startup_timeout_s", self.startup_timeout_s)
        faults.positive("stop_timeout_s", self.stop_timeout_s)
        faults.integer("log_verbose", self.log_verbose, low=0, high=9)
        # With less than 1 MiB the backend has no room for its own data, and every load fails without a reason.
        faults.integer("shm_bytes", self.shm_bytes, low=MIB)
        faults.integer("bls_threads", self.bls_threads, low=1, high=1024)
        faults.close()

    def _check_ports_differ(self, faults: Faults) -> None:
        taken: dict[int, str] = {}
        for field in ("http_port", "grpc_port", "metrics_port"):
            port = getattr(self, field)
            if port and port in taken:
                faults.add(field, f"got {port}, which {taken[port]} has already, expected a port of its own")
            taken.setdefault(port, field)


def _is_host(host: object) -> bool:
    if not isinstance(host, str):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # Dotted numbers that are no address (127.0.0.999) must not count as a host name.
        return _HOST_NAME.match(host) is not None and not host.replace(".", "").isdigit()
    return True
