"""`committee demo`: serve the digits repository and put every route side by side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from orchestrator.cli.demo_report import (
    report_from_routes,
    sentences_from_report,
    table_from_report,
    write_report,
)
from orchestrator.cli.demo_routes import compare_with_replay, measure_routes, plan_of, routes_of
from orchestrator.cli.endpoints import ADDRESS, Ca, Cert, Headers, Key, endpoint_from_options
from orchestrator.client.endpoint import Endpoint
from orchestrator.planner.records import Records
from orchestrator.recording.job import records_of
from orchestrator.rows.digits import DigitsSplit, digits_split
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec

CASCADE = "digits_cascade"
ENSEMBLE = "digits_ensemble"


def demo(
    repository: Annotated[
        Path, typer.Option(help="Model repository to serve; with --url the one that is served there.")
    ] = Path("model_repository"),
    url: Annotated[
        str | None,
        typer.Option(help=f"gRPC endpoint of a Triton that serves it already, {ADDRESS} None starts one."),
    ] = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    output: Annotated[Path, typer.Option(help="Folder for report.json and frontier.png.")] = Path("build/demo"),
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests in flight.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Timed passes over the test split per route.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the table.")] = False,
) -> None:
    """Serve the digits cascade, ask every route the whole test split, and compare.

    Example: committee demo --concurrency 32
    """
    console = Console(stderr=as_json)
    running = None
    if url is not None:
        running = endpoint_from_options(url, ca=ca, cert=cert, key=key, header=header)
    spec = plan_of(repository, CASCADE)
    rows = digits_split("test")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    people = Console(stderr=True)
    with Progress(*columns, console=people, transient=True, disable=not people.is_terminal) as progress:
        task = progress.add_task("replaying the plan offline")
        members = sorted(path.parent.name for path in repository.glob("*/manifest.json"))
        records = records_of(repository, members, "digits:test")
        report = _served_report(
            spec,
            records,
            rows=rows,
            repository=repository,
            running=running,
            load={"concurrency": concurrency, "rounds": rounds},
            progress=lambda text: progress.update(task, description=text),
        )
    write_report(report, output)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    console.print(table_from_report(report))
    for sentence in sentences_from_report(report):
        console.print(sentence, soft_wrap=True)
    console.print(f"Written: {output / 'report.json'}, {output / 'frontier.png'}", soft_wrap=True)


@contextmanager
def _server(
    repository: Path, running: Endpoint | None, progress: Callable[[str], None]
) -> Iterator[tuple[str | Endpoint, str]]:
    """Address and version of the server that is asked."""
    if running is not None:
        yield running, f"at {running}"
        return
    progress("starting Triton")
    options = ServeOptions(repository=repository, http_port=0, grpc_port=0, metrics_port=0)
    with EmbeddedServer(options) as server:
        yield server.grpc_address, server.version


def _served_report(
    spec: CascadeSpec,
    records: Records,
    *,
    rows: DigitsSplit,
    repository: Path,
    running: Endpoint | None,
    load: dict[str, int],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    routes = routes_of(spec, records.cost, ENSEMBLE)
    with _server(repository, running, progress) as (address, version):
        measured = asyncio.run(
            measure_routes(
                address,
                routes,
                rows=rows,
                stages=len(spec.stages),
                concurrency=load["concurrency"],
                rounds=load["rounds"],
                progress=progress,
            )
        )
    check = compare_with_replay(spec, records, next(m for m in measured if m.route.kind == "cascade"))
    return report_from_routes(measured, check, triton_version=version, settings=dict(load))
