"""`committee demo`: serve the digits repository and put every route side by side."""

from __future__ import annotations

import asyncio
import json
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
from orchestrator.cli.record import records_of
from orchestrator.cli.sources import LabelledRows, rows_from_source
from orchestrator.planner.records import Records
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec

CASCADE = "digits_cascade"
ENSEMBLE = "digits_ensemble"


def demo(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")] = Path("model_repository"),
    output: Annotated[Path, typer.Option(help="Folder for report.json and frontier.png.")] = Path("build/demo"),
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests in flight.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Timed passes over the test split per route.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the table.")] = False,
) -> None:
    """Serve the digits cascade, ask every route the whole test split, and compare.

    Example: committee demo --concurrency 32
    """
    console = Console(stderr=as_json)
    spec = plan_of(repository, CASCADE)
    rows = rows_from_source("digits:test")
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


def _served_report(
    spec: CascadeSpec,
    records: Records,
    *,
    rows: LabelledRows,
    repository: Path,
    load: dict[str, int],
    progress: Any,
) -> dict[str, Any]:
    routes = routes_of(spec, records.cost, ENSEMBLE)
    progress("starting Triton")
    options = ServeOptions(repository=repository, http_port=0, grpc_port=0, metrics_port=0)
    with EmbeddedServer(options) as server:
        measured = asyncio.run(
            measure_routes(
                server.grpc_address,
                routes,
                rows=rows,
                stages=len(spec.stages),
                concurrency=load["concurrency"],
                rounds=load["rounds"],
                progress=progress,
            )
        )
        version = server.version
    check = compare_with_replay(spec, records, next(m for m in measured if m.route.kind == "cascade"))
    return report_from_routes(measured, check, triton_version=version, settings=dict(load))
