"""`python -m export`: trained models into members."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from orchestrator.errors import CommitteeError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Trained models into members.")


@app.callback()
def main() -> None:
    """Trained models into members of a model repository."""


@app.command()
def digits(
    output: Annotated[Path, typer.Option("--output", "-o", help="Model repository to write into.")] = Path(
        "model_repository"
    ),
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    force: Annotated[bool, typer.Option(help="Train again even where a member is up to date.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Train three small networks on the digits of scikit-learn and export them.

    Example: python -m export digits --output model_repository
    """
    try:
        from export.digits import export_digits
    except ImportError as error:
        typer.echo(f"error: export digits: got no {error.name}; run `make setup`", err=True)
        raise typer.Exit(2) from error
    start = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading digits")
        done = export_digits(
            output, seed=seed, force=force, progress=lambda text: progress.update(task, description=text)
        )
    if as_json:
        typer.echo(json.dumps({"members": done, "seconds": round(time.monotonic() - start, 1)}))
        return
    for name, what in done.items():
        typer.echo(f"{output / name}: {what}")


def run() -> int:
    """Runs the command; an error a user can mend is one line."""
    try:
        app()
    except CommitteeError as error:
        typer.echo(f"error: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run())
