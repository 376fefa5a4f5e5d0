"""`committee check`: everything that is wrong with a model repository, in one run."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.repository.check import CheckReport
from orchestrator.repository.check import check as check_repository


def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Models; all if none.")] = None,
    repository: Annotated[Path, typer.Option(help="Model repository to look at.")] = Path("model_repository"),
    triton: Annotated[
        str | None, typer.Option(metavar="YY.MM", help="Also compare with what this Triton image carries.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare plans, configs, model files and manifests, and list every fault at once.

    Exits with 1 when there are faults; notes alone do not count.

    Example: committee check digits_cascade --repository model_repository --triton 26.09
    """
    report = check_repository(repository, names or None, triton=triton)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        print_report(report, Console())
    if not report:
        raise typer.Exit(1)


def print_report(report: CheckReport, console: Console) -> None:
    """Shows the findings as a table, and one line that says how it went."""
    if report.faults or report.notes:
        table = Table("", "model", "what", "why", title=f"{report.repository}", title_justify="left")
        for kind, style, found in (("fault", "red", report.faults), ("note", "yellow", report.notes)):
            for one in found:
                # Texts hold brackets of shapes, which rich would take for its own markup.
                table.add_row(f"[{style}]{kind}[/]", *map(escape, (one.model, one.field, one.text)))
        console.print(table)
    models = f"{len(report.checked)} model{'s' * (len(report.checked) != 1)}"
    outcome = f"{len(report.faults)} faults" if report.faults else "no faults"
    notes = f", {len(report.notes)} notes" if report.notes else ""
    console.print(f"{models} checked: {outcome}{notes}", highlight=False)
