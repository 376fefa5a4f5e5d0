"""`python -m perf live`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from orchestrator.cli.endpoints import ADDRESS, Ca, Cert, Headers, Key, endpoint_from_options
from orchestrator.client.endpoint import Endpoint
from orchestrator.errors import RepositoryError
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from perf.harness.machine import write_json
from perf.studies.live.measure import measure, routes_in, rows_for
from perf.studies.live.results import document_from_cells, table_from_cells


def live(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")] = Path("model_repository"),
    model: Annotated[
        list[str] | None, typer.Option(help="Models to measure, once for each; all if none.", show_default=False)
    ] = None,
    data: Annotated[
        str, typer.Option(help="What to send: a folder of pictures, .npz, .npy, .parquet, or digits:SPLIT.")
    ] = "digits:test",
    url: Annotated[
        str | None, typer.Option(help=f"gRPC endpoint of a Triton, {ADDRESS} None starts the embedded one.")
    ] = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    output: Annotated[Path, typer.Option(help="Folder for results.json.")] = Path("build/live"),
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Timed passes per cell.")] = 3,
    requests: Annotated[int, typer.Option(min=10, help="Requests per pass.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure models at 1, 4, 16 and 64 requests in flight, on a server that runs or one started here.

    Examples:
        python -m perf live --rounds 5
        python -m perf live --url 127.0.0.1:8001 --model digits_cascade --model digits_large
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    server = None
    if url is not None:
        server = endpoint_from_options(url, ca=ca, cert=cert, key=key, header=header)
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        _server(repository, server) as (address, version),
    ):
        task = progress.add_task("reading rows")
        routes = model or routes_in(repository)
        if not routes:
            raise RepositoryError(f"model repository {repository}", got="no models", fix="name them with --model")
        rows = rows_for(address, routes[0], data=data, repository=repository, requests=requests)
        cells = asyncio.run(
            measure(
                address,
                routes,
                rows=rows,
                concurrencies=(1, 4, 16, 64),
                rounds=rounds,
                progress=lambda text: progress.update(task, description=text),
            )
        )
        document = document_from_cells(cells, triton_version=version)
    write_json(document, output / "results.json")
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        Console().print(table_from_cells(cells))
        typer.echo(f"Written: {output / 'results.json'}")


@contextmanager
def _server(repository: Path, running: Endpoint | None) -> Iterator[tuple[str | Endpoint, str]]:
    """Address and version of the server that is asked."""
    if running is not None:
        yield running, f"at {running}"
        return
    options = ServeOptions(repository=repository, http_port=0, grpc_port=0, metrics_port=0)
    with EmbeddedServer(options) as server:
        yield server.grpc_address, server.version
