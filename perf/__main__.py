"""`python -m perf`: measure routes under load."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import guarded
from perf.bench.command import leak, run
from perf.onefile import onefile
from perf.planner import planner
from perf.readme import readme_with_report, report_from_path

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Measure what is served."""


app.command()(run)
app.command()(leak)
app.command()(onefile)
app.command()(planner)


@app.command()
def readme(
    report: Annotated[Path, typer.Option(help="report.json of a demo run.")] = Path("docs/demo/report.json"),
    path: Annotated[Path, typer.Option(help="README to write into.")] = Path("README.md"),
) -> None:
    """Write the demo's table into README.md from the committed report.

    Example: committee demo --output docs/demo && python -m perf readme
    """
    text = readme_with_report(path.read_text(encoding="utf-8"), report_from_path(report))
    path.write_text(text, encoding="utf-8")
    typer.echo(f"Written: {path}")


if __name__ == "__main__":
    # gRPC's core otherwise tells users about every connection that ends.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.exit(guarded(lambda: app(prog_name="python -m perf", standalone_mode=False)))
