"""`python -m perf overload`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from orchestrator.repository.files import write_all
from perf.harness.machine import bench_machine, cores_in_use_now
from perf.studies.overload.ground import DIGITS, GLYPHS, make_setup
from perf.studies.overload.report import document_from, draw, report_from
from perf.studies.overload.run import OverloadLoad, run_overload

OUTPUT = Path("build/bench")
REPORT = Path("perf/OVERLOAD.md")
PICTURE = "overload.png"


def report_path(named: Path | None, *, output: Path, quick: bool) -> Path:
    """Where the report goes: a quick look must not replace that of a whole run."""
    return named or (output / REPORT.name if quick else REPORT)


def overload(
    output: Annotated[Path, typer.Option(help="Folder for recordings, results and the repository.")] = OUTPUT,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Report to write, its picture in plots/ beside it; perf/OVERLOAD.md, with --quick in --output."
        ),
    ] = None,
    factor: Annotated[
        list[float] | None,
        typer.Option("--rate-factor", help="Arrivals over capacity, once for each rate; 2 if none."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Rows per request.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Of every variant at every rate.")] = 3,
    seconds: Annotated[float, typer.Option(min=2, max=120, help="Of each load.")] = 10.0,
    deadline: Annotated[float, typer.Option(min=1, help="The deadline in unloaded medians.")] = 10.0,
    raise_wait_ms: Annotated[
        float | None,
        typer.Option(
            "--raise-wait", min=0.1, help="Milliseconds deferred rows wait when a cheaper gear is due; 50 if none."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Digits in place of glyphs, one round of 2 s.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure a cascade at more than its capacity: with gears, without, and turning requests away.

    Example: python -m perf overload --rate-factor 1 --rate-factor 2
    """
    cores_in_use = cores_in_use_now()
    report = report_path(report, output=output, quick=quick)
    load = OverloadLoad(
        batch=batch,
        factors=tuple(factor or (2.0,)),
        rounds=1 if quick else rounds,
        seconds=2.0 if quick else seconds,
        deadline_factor=deadline,
    )
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("preparing")

        def say(text: str) -> None:
            progress.update(task, description=text)

        ground = make_setup(
            output / "overload" / "model_repository",
            source=DIGITS if quick else GLYPHS,
            cache=output / "overload" / "recordings",
            say=say,
            raise_wait_us=None if raise_wait_ms is None else int(1000 * raise_wait_ms),
        )
        measured = run_overload(ground, load, say=say)
    machine = bench_machine(triton=measured.triton, perf_analyzer="not used", cores_in_use=cores_in_use)
    document = document_from(measured, ground, load, machine=machine)
    write_all(output, {"overload.json": json.dumps(document, indent=2, allow_nan=False) + "\n"})
    draw(measured, report.parent / "plots" / PICTURE)
    text = report_from(measured, ground, load, machine=machine, picture=f"plots/{PICTURE}")
    write_all(report.parent, {report.name: text})
    typer.echo(json.dumps(document, indent=2) if as_json else f"Written: {output / 'overload.json'}, {report}")
