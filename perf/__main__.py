"""`python -m perf`: measure routes under load."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import guarded
from perf.bench.command import leak, run
from perf.gpu.command import gpu
from perf.int8 import int8
from perf.live.command import live
from perf.load.command import analyzer, inputs, tritonserver
from perf.onefile import onefile
from perf.overload.command import overload
from perf.planner import planner
from perf.readme import write_readme
from perf.reproduce.command import reproduce

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Measure what is served."""


app.command()(run)
app.command()(leak)
app.command()(onefile)
app.command()(planner)
app.command()(int8)
app.command()(live)
app.command()(overload)
# Options behind these names are the other program's.
_HANDED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=_HANDED_ON)(analyzer)
app.command(context_settings=_HANDED_ON)(tritonserver)
app.command()(inputs)
app.command()(gpu)
app.command()(reproduce)


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
) -> None:
    """Write the demo's table, the headline about the paper's claims and the speed targets into README.md.

    Example: committee demo --output docs/demo && python -m perf readme
    """
    write_readme(path, report=report, claims=claims, targets=targets)
    typer.echo(f"Written: {path}")


if __name__ == "__main__":
    # gRPC's core otherwise tells users about every connection that ends.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Servers end and what can be resumed says so, whichever of the two signals it is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(guarded(lambda: app(prog_name="python -m perf", standalone_mode=False)))
