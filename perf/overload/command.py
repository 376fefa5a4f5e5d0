"""`python -m perf overload`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from orchestrator.repository.files import write_all
from perf.bench.machine import bench_machine, load_average_now
from perf.overload.ground import make_ground
from perf.overload.report import document_from, draw, report_from
from perf.overload.run import Load, run_overload

OUTPUT = Path("build/overload")
PICTURE = "overload.png"


def overload(
    output: Annotated[Path, typer.Option(help="Folder for recordings, results and the repository.")] = OUTPUT,
    report: Annotated[Path, typer.Option(help="Report to write; its picture goes into plots/ beside it.")] = Path(
        "perf/OVERLOAD.md"
    ),
    factor: Annotated[
        list[float] | None, typer.Option(help="Arrivals over capacity, once for each; 0.5, 1 and 2 if none.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Rows per request.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Of every variant at every rate.")] = 3,
    seconds: Annotated[float, typer.Option(min=2, max=120, help="Of each load.")] = 8.0,
    deadline: Annotated[float, typer.Option(min=1, help="The deadline in unloaded medians.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure a cascade at more than its capacity: with gears, without, and turning requests away.

    Example: python -m perf overload --factor 2 --rounds 5
    """
    load_average = load_average_now()
    load = Load(
        batch=batch,
        factors=tuple(factor or (0.5, 1.0, 2.0)),
        rounds=rounds,
        seconds=seconds,
        deadline_factor=deadline,
    )
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True)
    ) as progress:
        task = progress.add_task("preparing")

        def say(text: str) -> None:
            progress.update(task, description=text)

        ground = make_ground(output / "model_repository", cache=output / "recordings", say=say)
        measured = run_overload(ground, load, say=say)
    machine = bench_machine(triton=measured.triton, perf_analyzer="not used", load_average=load_average)
    document = document_from(measured, ground, load, machine=machine)
    write_all(output, {"overload.json": json.dumps(document, indent=2, allow_nan=False) + "\n"})
    draw(measured, report.parent / "plots" / PICTURE)
    text = report_from(measured, ground, load, machine=machine, picture=f"plots/{PICTURE}")
    write_all(report.parent, {report.name: text})
    typer.echo(json.dumps(document, indent=2) if as_json else f"Written: {output / 'overload.json'}, {report}")
