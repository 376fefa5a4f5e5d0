"""`python -m export show`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from export.commands.console import needs, progress_on
from export.commands.member import runtimes_said
from export.runtimes import DEFAULT_RUNTIMES, RUNTIMES_HELP, runtimes_from_text
from orchestrator.errors import ExportError
from orchestrator.spec import Manifest, manifest_from_path
from orchestrator.spec.manifest import MANIFEST, json_from_manifest


def show(
    member: Annotated[str, typer.Argument(help="Member name, or the path of its folder.", show_default=False)],
    repository: Annotated[Path, typer.Option(help="Model repository that holds it.")] = Path("model_repository"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest itself.")] = False,
) -> None:
    """Print what is known of a member: source, size, cost, image processing, proof.

    Example: python -m export show digits_small
    """
    manifest = manifest_from_path(_folder(member, repository) / MANIFEST)
    if as_json:
        typer.echo(json_from_manifest(manifest), nl=False)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for what, value in _lines(manifest):
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


def _lines(m: Manifest) -> Iterator[tuple[str, str]]:
    yield "name", m.name
    yield "file", f"{m.file} (sha256 {m.sha256[:16]}...)"
    for name, digest in m.data_files.items():
        yield "weights", f"{name} (sha256 {digest[:16]}...)"
    yield "source", m.source
    if m.random_weights:
        yield "weights", "RANDOM, never trained: its answers mean nothing"
    yield "precision", f"{m.precision}, opset {m.opset}" if m.opset else m.precision
    yield "input", f"{m.input.name} {m.input.dtype} {list(m.input.dims)}"
    classes = f" ({', '.join(m.labels[:4])}{', ...' if len(m.labels) > 4 else ''})" if m.labels else ""
    yield "output", f"{m.output.name} {m.output.dtype} {list(m.output.dims)} {m.output_kind}{classes}"
    yield "parameters", f"{m.parameters:,}"
    yield "MACs per row", f"{m.macs:,.0f} ({m.macs_counter})"
    if m.preprocess_macs:
        yield "", f"and {m.preprocess_macs:,.0f} for resizing, not counted as cost"
    yield "batch", f"up to {m.max_batch_size}"
    if m.in_graph:
        yield from _image_lines(m.in_graph)
    yield from _where_lines(m)
    for word in ("parity", "agreement", "original", "engine", "training", "versions"):
        if facts := getattr(m, word):
            yield word, _facts(facts)


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
    names: Annotated[list[str], typer.Argument(metavar="MEMBER...", help="ONNX members.", show_default=False)],
    runtimes: Annotated[str, typer.Option(help=RUNTIMES_HELP)] = DEFAULT_RUNTIMES,
    repository: Annotated[Path, typer.Option(help="Model repository that holds them.")] = Path("model_repository"),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
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
