"""`python -m export show`, `prove` and `cost`: what is known of a member, and of a graph."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from export.commands.console import REPOSITORY, needs, progress_on
from export.commands.member import runtimes_said
from export.cost.counting import COUNTER, GraphCost, cost_of
from export.cost.shapes import graph_from_path
from export.runtimes import DEFAULT_RUNTIMES, RUNTIMES_HELP, runtimes_from_text
from orchestrator.errors import ExportError
from orchestrator.spec import Manifest, RowLength, manifest_from_path
from orchestrator.spec.deriving import DerivingManifest, deriving_from_path, is_deriving, json_from_deriving
from orchestrator.spec.manifest import MANIFEST, json_from_manifest


def show(
    member: Annotated[str, Argument(help="Member name, or the path of its folder.", show_default=False)],
    repository: Annotated[Path, Option(help="Model repository that holds it.")] = REPOSITORY,
    as_json: Annotated[bool, Option("--json", help="Print the manifest itself.")] = False,
) -> None:
    """Print what is known of a member, or of a tokenizer or decoder: source, size, cost, image processing, proof.

    Example: python -m export show digits_small
    """
    path = _folder(member, repository) / MANIFEST
    manifest = deriving_from_path(path) if is_deriving(path) else manifest_from_path(path)
    if as_json:
        text = json_from_manifest(manifest) if isinstance(manifest, Manifest) else json_from_deriving(manifest)
        typer.echo(text, nl=False)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for what, value in _deriving_lines(manifest) if isinstance(manifest, DerivingManifest) else _lines(manifest):
        table.add_row(what, value)
    Console().print(table)


def _folder(member: str, repository: Path) -> Path:
    for folder in (repository / member, Path(member)):
        if (folder / MANIFEST).is_file():
            return folder
    known = sorted(path.parent.name for path in repository.glob("*/manifest.json"))
    raise ExportError(
        f"member {member}",
        got=f"no manifest in {repository / member}",
        expected=f"one of {', '.join(known)}" if known else f"a repository with members, not {repository}",
    )


def _deriving_lines(m: DerivingManifest) -> Iterator[tuple[str, str]]:
    yield "name", m.name
    yield "derives", m.derives
    yield "file", f"{m.file} (sha256 {m.sha256[:16]}...)"
    yield "source", m.source
    for what, tensors in (("inputs", m.inputs), ("outputs", m.outputs)):
        yield what, ", ".join(f"{one.name} {one.dtype} {list(one.dims)}" for one in tensors)
    yield "batch", f"up to {m.max_batch_size}"
    for word in ("options", "packages", "parity"):
        if facts := getattr(m, word):
            yield word, _facts(facts)


def _lines(m: Manifest) -> Iterator[tuple[str, str]]:
    yield "name", m.name
    yield "file", f"{m.file} (sha256 {m.sha256[:16]}...)"
    for name, digest in m.data_files.items():
        yield "weights", f"{name} (sha256 {digest[:16]}...)"
    yield "source", m.source
    if m.random_weights:
        yield "weights", "RANDOM, never trained: its answers mean nothing"
    yield "precision", f"{m.precision}, opset {m.opset}" if m.opset else m.precision
    for one in m.inputs:
        yield "input", f"{one.name} {one.dtype} {list(one.dims)}"
    classes = f" ({', '.join(m.labels[:4])}{', ...' if len(m.labels) > 4 else ''})" if m.labels else ""
    yield "output", f"{m.output.name} {m.output.dtype} {list(m.output.dims)} {m.output_kind}{classes}"
    yield "parameters", f"{m.parameters:,}"
    yield "MACs per row", f"{m.macs:,.0f} ({m.macs_counter})"
    yield from _length_lines(m.length)
    if m.preprocess_macs:
        yield "", f"and {m.preprocess_macs:,.0f} for resizing, not counted as cost"
    yield "batch", f"up to {m.max_batch_size}"
    if m.in_graph:
        yield from _image_lines(m.in_graph)
    yield from _where_lines(m)
    for word in ("parity", "agreement", "original", "engine", "training", "versions"):
        if facts := getattr(m, word):
            yield word, _facts(facts)


def _length_lines(length: RowLength | None) -> Iterator[tuple[str, str]]:
    """The work as a function of the length, and what fills up shorter rows; nothing where no length varies."""
    if length is None:
        return
    constant, linear, square = length.macs_coefficients
    yield "", f"at length {length.macs_at}; {constant:,.0f} + {linear:,.0f} n + {square:,.0f} n^2 at length n"
    pads = ", ".join(f"{name} {value:g}" for name, value in length.pad.items())
    yield "length", f"up to {length.longest}, padded with {pads}"


def _where_lines(m: Manifest) -> Iterator[tuple[str, str]]:
    """The runtimes and processors on which the member gives the answers it was compared on."""
    if m.runtimes:
        yield "runtimes", ", ".join(runtimes_said(m))
    if m.processor_flags:
        flags = ", ".join(m.processor_flags)
        yield "processors", f"with one of {flags}; others add its eight-bit products up wrong"


def _image_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The image processing in the graph, in the order it happens."""
    steps = []
    if facts.get("shortest_px"):
        steps.append(f"shorter side to {facts['shortest_px']} ({facts['filter']})")
    if facts.get("resize_px"):
        steps.append(f"resize to {'x'.join(map(str, facts['resize_px']))} ({facts['filter']})")
    if facts.get("crop_px"):
        steps.append(f"centre crop {'x'.join(map(str, facts['crop_px']))}")
    steps.append(f"times {facts['scale']:.6g}, mean {facts['mean']}, std {facts['std']}")
    yield "in the graph", ", ".join(steps)
    yield "", f"against the model's own: {_facts(facts['parity'])}"


def _facts(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return f"({_facts(value)})"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def prove(
    names: Annotated[list[str], Argument(metavar="MEMBER...", help="ONNX members.", show_default=False)],
    runtimes: Annotated[str, Option(help=RUNTIMES_HELP)] = DEFAULT_RUNTIMES,
    repository: Annotated[Path, Option(help="Model repository that holds them.")] = REPOSITORY,
    as_json: Annotated[bool, Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Ask members in other versions of ONNX Runtime, compare with the installed one, and note it in the manifests.

    A member that says something else in one of them is an error, which its manifest keeps as well.

    Examples:
        python -m export prove digits_small digits_large
        python -m export prove my_member --runtimes 25.12,26.09
    """
    versions = runtimes_from_text(runtimes)
    found = {}
    with needs("export prove"), progress_on("reading members") as progress:
        # Optional packages, and slow to import.
        from export.proof import prove_member

        for name in names:
            found[name] = prove_member(repository, name, versions=versions, progress=progress)
    if as_json:
        typer.echo(json.dumps({name: manifest.runtimes for name, manifest in found.items()}))
        return
    for name, manifest in found.items():
        typer.echo(f"{repository / name}: {', '.join(runtimes_said(manifest))}")


_LISTED = 10


def cost(
    model: Annotated[Path, Argument(help="An ONNX file.", show_default=False)],
    shapes: Annotated[
        list[str] | None,
        Option(
            "--shape", help="Shape of an input, batch first, where the file leaves it open: image=1,3,224,224."
        ),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print everything as JSON.")] = False,
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
