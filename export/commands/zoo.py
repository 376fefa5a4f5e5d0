"""`python -m export zoo`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from export.commands.console import needs, progress_on


def zoo(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="With --runtimes: networks; all if none.")
    ] = None,
    runtimes: Annotated[
        bool,
        typer.Option(
            "--runtimes", help="Export them and ask them in several ONNX Runtimes; half an hour for all."
        ),
    ] = False,
    docs: Annotated[
        Path, typer.Option(help="With --runtimes and no names: the document that gets the table.")
    ] = Path("docs/export.md"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """List the networks known by short name, with parameters and cost per image.

    Cost is multiply-accumulates of convolutions, matrix products and attention: PyTorch's FLOP counter, halved. No
    weights are read or made, unless --runtimes asks whether old and new ONNX Runtimes answer the same.

    Examples:
        python -m export zoo --json
        python -m export zoo --runtimes efficientnet_b0 resnet50
    """
    if runtimes:
        _in_runtimes(names or [], docs, as_json=as_json)
        return
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


def _in_runtimes(names: list[str], docs: Path, *, as_json: bool) -> None:
    """Asks networks in several runtimes; the whole table goes into the document, a part of it to the screen."""
    with progress_on("loading torch and transformers") as progress:
        with needs("export zoo --runtimes"):
            from export.blocks import write_block
            from export.runtimes.families import BEGIN, VERSIONS, block_from_rows, family_row
            from export.zoo import ZOO, entry_from_name
        chosen = [entry_from_name(name).name for name in names] or list(ZOO)
        rows = [family_row(name, VERSIONS, progress=progress) for name in chosen]
    block = block_from_rows(rows, VERSIONS)
    typer.echo(json.dumps([dataclasses.asdict(row) for row in rows]) if as_json else block)
    if not names:
        write_block(docs, BEGIN, block)
        typer.echo(f"Written: {docs}", err=True)
    if any(row.fault is not None for row in rows):
        raise typer.Exit(1)
