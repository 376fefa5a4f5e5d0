"""`python -m export cost`."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from export.commands.console import progress_on
from export.cost.counting import COUNTER, GraphCost, cost_of
from export.cost.shapes import graph_from_path
from orchestrator.errors import ExportError

_LISTED = 10


def cost(
    model: Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)],
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape", help="Shape of an input, batch first, where the file leaves it open: image=1,3,224,224."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Count multiply-accumulates per row and parameters of an ONNX graph; its weights are not needed.

    Example: python -m export cost model_repository/digits_large/1/model.onnx
    """
    given = dict(_shape_from_text(text) for text in shapes or ())
    with progress_on(f"counting {model}"):
        counted = cost_of(graph_from_path(model), given)
    found = _summary(model, counted)
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_totals(found))
    console.print(_table("by operator", found["by_operator"], ("operator", "nodes", "macs_per_row")))
    console.print(_table("most expensive", found["most_expensive"], ("name", "operator", "macs_per_row")))
    for note in counted.notes:
        typer.echo(f"note: {note}")


def _shape_from_text(text: str) -> tuple[str, list[int]]:
    name, _, sizes = text.rpartition("=")
    parts = sizes.split(",")
    if not name or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ExportError("`shapes`", got=text, expected="INPUT=1,3,224,224")
    return name, [int(part) for part in parts]


def _summary(model: Path, counted: GraphCost) -> dict[str, Any]:
    network = [node for node in counted.nodes if not node.preprocess]
    operators = Counter(node.operator for node in network)
    by_operator = [
        {
            "operator": operator,
            "nodes": count,
            "macs_per_row": counted.per_row(node for node in network if node.operator == operator),
        }
        for operator, count in operators.items()
    ]
    dearest = sorted(network, key=lambda node: -node.macs)[:_LISTED]
    return {
        "model": str(model),
        "macs_per_row": counted.macs_per_row,
        "preprocess_macs_per_row": counted.preprocess_macs_per_row,
        "parameters": counted.parameters,
        "rows_counted": counted.rows,
        "by_operator": sorted(by_operator, key=lambda row: -int(str(row["macs_per_row"]))),
        "most_expensive": [
            {"name": node.name, "operator": node.operator, "macs_per_row": counted.per_row([node])}
            for node in dearest
        ],
        "counter": COUNTER,
        "notes": list(counted.notes),
    }


def _totals(found: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("MACs per row", f"{found['macs_per_row']:,}")
    if found["preprocess_macs_per_row"]:
        table.add_row("of image processing, besides", f"{found['preprocess_macs_per_row']:,}")
    table.add_row("parameters", f"{found['parameters']:,}")
    if found["rows_counted"] != 1:
        table.add_row("counted at a batch of", str(found["rows_counted"]))
    return table


def _table(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        number = column in ("nodes", "macs_per_row")
        table.add_column(
            column.replace("macs_per_row", "MACs per row"), justify="right" if number else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(f"{row[c]:,}" if isinstance(row[c], int) else str(row[c]) for c in columns))
    return table
