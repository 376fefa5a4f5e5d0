"""`python -m export zoo`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from export.commands.console import needs, progress_on


def zoo(as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False) -> None:
    """List the networks known by short name, with parameters and cost per image.

    Cost is multiply-accumulates of convolutions, matrix products and attention: PyTorch's FLOP counter, halved. No
    weights are read or made.

    Example: python -m export zoo --json
    """
    with progress_on("loading torch and transformers") as progress:
        with needs("export zoo"):
            # The zoo imports both only when asked to count; what is missing is said before that.
            import torch  # noqa: F401
            import transformers  # noqa: F401

            from export.zoo import ZOO, counted_of
        rows = []
        for entry in ZOO.values():
            progress(f"counting {entry.name}")
            rows.append((entry, counted_of(entry)))
    if as_json:
        listed = [
            {
                "name": entry.name,
                "family": entry.family,
                "resolution": entry.resolution_px,
                "params_m": counted.params_m,
                "gmacs": counted.gmacs,
            }
            for entry, counted in rows
        ]
        typer.echo(json.dumps(listed))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "family"):
        table.add_column(column, no_wrap=True)
    for column in ("pixels", "params M", "GMAC"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("hub checkpoint", overflow="fold")
    for entry, counted in rows:
        table.add_row(
            entry.name,
            entry.family,
            str(entry.resolution_px),
            f"{counted.params_m:.2f}",
            f"{counted.gmacs:.3f}",
            entry.hub_id or "none known",
        )
    # Without a terminal nothing says how wide a line may be, and names are there to be copied whole.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
