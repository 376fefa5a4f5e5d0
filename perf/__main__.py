"""`python -m perf`: measure routes under load."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.commandline import HandsOn, interrupt_on_signals, new_program, run_program
from perf.load.analyzer import analyzer, tritonserver
from perf.load.inputs import inputs
from perf.readme import write_blocks
from perf.studies.batch import batch
from perf.studies.bench.command import run
from perf.studies.clock.command import clock
from perf.studies.core import core
from perf.studies.false_openings import false_openings
from perf.studies.gpu.command import gpu
from perf.studies.int8 import int8
from perf.studies.leak import leak
from perf.studies.live import live
from perf.studies.onefile import onefile
from perf.studies.overload.command import overload
from perf.studies.planner import planner
from perf.studies.reproduce.command import reproduce
from perf.studies.scaling.command import scaling
from perf.studies.scaling.served import size
from perf.studies.servers import servers
from perf.studies.soak import soak
from perf.studies.tables import tables
from perf.studies.text.command import text, text_study
from perf.studies.training import digits, glyphs, glyphs_data, text_data

app = new_program("perf", "Measure what is served.")


@app.callback()
def main() -> None:
    """Measure what is served."""


command: Any
for command in (
    run,
    batch,
    leak,
    core,
    clock,
    onefile,
    planner,
    int8,
    live,
    overload,
    soak,
    servers,
    false_openings,
):
    app.command()(command)
# Options behind these names are the other program's.
for command in (analyzer, tritonserver):
    app.command(cls=HandsOn)(command)
for command in (
    inputs,
    gpu,
    tables,
    scaling,
    size,
    reproduce,
    digits,
    glyphs,
    glyphs_data,
    text_data,
    text,
    text_study,
):
    app.command()(command)


@app.command()
def readme(
    report: Annotated[Path, typer.Option(help="report.json of a demo run.")] = Path("docs/demo/report.json"),
    claims: Annotated[Path, typer.Option(help="results.json of `python -m perf reproduce`.")] = Path(
        "docs/reproduce/results.json"
    ),
    targets: Annotated[Path, typer.Option(help="verdict.json of `python -m perf run`.")] = Path(
        "perf/verdict.json"
    ),
    path: Annotated[Path, typer.Option(help="README to write into.")] = Path("README.md"),
    performance: Annotated[Path, typer.Option(help="Page that gets the speed targets.")] = Path(
        "docs/performance.md"
    ),
) -> None:
    """Write the demo's table and the paper's headline into README.md, the speed targets into docs/performance.md.

    Example: committee demo --output docs/demo && python -m perf readme
    """
    write_blocks(readme=path, performance=performance, report=report, claims=claims, targets=targets)
    typer.echo(f"Written: {path}, {performance}")


if __name__ == "__main__":
    # Servers end and what can be resumed says so, whichever signal it is.
    interrupt_on_signals()
    sys.exit(run_program(typer.main.get_command(app), "python -m perf"))
