"""One embedded server for a test: real, on free ports, gone afterwards."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.serving.machine import log_tail
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer


@contextmanager
def running_server(repository: Path, **options: Any) -> Iterator[EmbeddedServer]:
    """Serves a repository while the block runs.

    Yields the server, ready, with grpc_address, http_address and metrics_address ("127.0.0.1:port"), log_path
    and pid. Options are ServeOptions' own; a server that starts too slowly fails the test rather than the run.
    At the end it is killed, which takes seconds less than stopping; a test about stopping calls stop() itself.
    When the block fails, the end of the server's log is shown with the failure.
    """
    chosen = {
        "http_port": 0,
        "grpc_port": 0,
        "metrics_port": 0,
        "startup_timeout_s": 60.0,
        "stop_timeout_s": 15.0,
        **options,
    }
    server = EmbeddedServer(ServeOptions(repository=repository, **chosen))
    server.start()
    try:
        yield server
    except BaseException:
        sys.stderr.write("\n".join(log_tail(server.log_path, 30)) + "\n")
        raise
    finally:
        server.kill()
