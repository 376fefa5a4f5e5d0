"""`python -m export zoo`."""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from export.commands.console import END, needs, progress_on, write_block
from export.runtimes import installed_version
from export.zoo import ZOO, entry_from_name, network_cost
from orchestrator.errors import ExportError
from orchestrator.spec import manifest_from_path
from orchestrator.spec.manifest import MANIFEST


def zoo(
    names: Annotated[
        list[str] | None, Argument(metavar="[NAME]...", help="With --runtimes: networks; all if none.")
    ] = None,
    runtimes: Annotated[
        bool, Option("--runtimes", help="Export them and ask them in several ONNX Runtimes; half an hour for all.")
    ] = False,
    docs: Annotated[Path, Option(help="With --runtimes and no names: the document that gets the table.")] = Path(
        "docs/export.md"
    ),
    as_json: Annotated[bool, Option("--json", help="Print the rows as JSON.")] = False,
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
            # Counting needs both; a missing one is reported before the first network is counted.
            import torch  # noqa: F401
            import transformers  # noqa: F401

        rows = []
        for entry in ZOO.values():
            progress(f"counting {entry.name}")
            rows.append((entry, network_cost(entry)))
    if as_json:
        listed = [
            {"name": e.name, "family": e.family, "resolution": e.resolution_px, **dataclasses.asdict(counted)}
            for e, counted in rows
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
        counts = str(entry.resolution_px), f"{counted.params_m:.2f}", f"{counted.gmacs:.3f}"
        table.add_row(entry.name, entry.family, *counts, entry.hub_id or "none known")
    # Without a terminal rich would cut lines at 80 columns, and names have to stay whole.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _in_runtimes(names: list[str], docs: Path, *, as_json: bool) -> None:
    with needs("export zoo --runtimes"), progress_on("loading torch and transformers") as progress:
        chosen = [entry_from_name(name).name for name in names] or list(ZOO)
        rows = [family_row(name, progress=progress) for name in chosen]
    block = block_from_rows(rows)
    typer.echo(json.dumps([dataclasses.asdict(row) for row in rows]) if as_json else block)
    if not names:
        write_block(docs, BEGIN, block)
        typer.echo(f"Written: {docs}", err=True)
    if any(row.fault is not None for row in rows):
        raise typer.Exit(1)


# The oldest version in a supported image, and the two between which answers were seen to change.
VERSIONS = ("1.19.2", "1.27.0", "1.28.0")
BEGIN = "<!-- begin: python -m export zoo --runtimes -->"
ROWS = 8


@dataclass(frozen=True, kw_only=True)
class FamilyRow:
    """One network in every version of ONNX Runtime."""

    name: str
    family: str
    relative: dict[str, float]  # version -> largest difference of a logit from PyTorch's, by the largest logit
    fault: str | None = None  # why it was refused; None where it was not


def family_row(name: str, *, progress: Callable[[str], None]) -> FamilyRow:
    """Exports one network of the zoo with random weights, and gives what its proof says of each ONNX Runtime."""
    # Optional packages, and slow to import.
    from export.member import MemberExport, export_member
    from export.sources import ExportOptions, identify

    options = ExportOptions(random_weights=True)
    plan = MemberExport(
        name=name,
        source=identify(name, options),
        options=options,
        parity_rows=ROWS,
        runtimes=tuple(version for version in VERSIONS if version != installed_version()),
    )
    family = ZOO[name].family
    with tempfile.TemporaryDirectory(prefix="committee-zoo-") as folder:
        repository = Path(folder) / "repository"
        try:
            export_member(repository, plan, force=False, progress=progress)
        except ExportError as error:
            return FamilyRow(name=name, family=family, relative={}, fault=str(error))
        manifest = manifest_from_path(repository / name / MANIFEST)
    # Both come from one comparison, so their ratio is the size of the largest logit.
    largest = manifest.parity["max_abs"] / manifest.parity["max_rel"] if manifest.parity["max_rel"] else 1.0
    found = {version: proof.get("max_abs") for version, proof in manifest.runtimes.items()}
    found[installed_version()] = manifest.parity["max_abs"]
    relative = {version: value / largest for version, value in found.items() if value is not None}
    return FamilyRow(name=name, family=family, relative=relative)


def block_from_rows(rows: Sequence[FamilyRow]) -> str:
    """The table as Markdown, marks included."""
    columns = [*dict.fromkeys([*VERSIONS, installed_version()])]
    lines = [f"| network | family | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for row in rows:
        if row.fault is not None:
            cells = [f"refused: {row.fault}", *[""] * (len(columns) - 1)]
        else:
            cells = [f"{row.relative[one]:.0e}" if one in row.relative else "not to be had" for one in columns]
        lines.append(f"| {row.name} | {row.family} | {' | '.join(cells)} |")
    return "\n".join([BEGIN, *lines, END])
