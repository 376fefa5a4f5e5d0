"""`python -m export digits`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from export.commands.console import needs, progress_on


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
    with needs("export digits"):
        from export.digits import export_digits
    start = time.monotonic()
    with progress_on("reading digits") as progress:
        done = export_digits(output, seed=seed, force=force, progress=progress)
    if as_json:
        typer.echo(json.dumps({"members": done, "seconds": round(time.monotonic() - start, 1)}))
        return
    for name, what in done.items():
        typer.echo(f"{output / name}: {what}")
