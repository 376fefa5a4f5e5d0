"""One embedded server for a test: real, on free ports, gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer


@contextmanager
def running_server(repository: Path, **options: Any) -> Iterator[EmbeddedServer]:
    """Serves a repository while the block runs.

    Yields the server, ready, with grpc_address, http_address and metrics_address ("127.0.0.1:port"), log_path
    and pid. Options are ServeOptions' own; a server that starts too slowly fails the test rather than the run.
    """
    chosen = {
        "http_port": 0,
        "grpc_port": 0,
        "metrics_port": 0,
        "startup_timeout_s": 60.0,
        "stop_timeout_s": 15.0,
        **options,
    }
    with EmbeddedServer(ServeOptions(repository=repository, **chosen)) as server:
        yield server
