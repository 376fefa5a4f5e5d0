"""`python -m perf digits`, `glyphs`, `glyphs-data`, `text-data`: train committed members, write their rows."""

import csv
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from export.commands.console import needs, progress_on
from orchestrator.errors import ExportError
from orchestrator.repository.files import write_all
from orchestrator.rows.docstrings import CLASSES, SHA256, docstrings_split

# The committed glyphs members, apart from those that are served by default, which they would slow down.
REPOSITORY = Path("perf/glyphs/model_repository")
# Members that were trained on some of the rows go here, apart from the committed ones.
TRY = Path("build/glyphs_try")


def digits(
    output: Annotated[Path, typer.Option("--output", "-o", help="Model repository to write into.")] = Path(
        "model_repository"
    ),
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    force: Annotated[bool, typer.Option(help="Train again even where a member is up to date.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Train three small networks on the digits of scikit-learn and export them.

    Example: python -m perf digits --output model_repository
    """
    with needs("perf digits"):
        # Optional packages, and slow to import.
        from perf.studies.digits import export_digits
    start = time.monotonic()
    with progress_on("reading digits") as progress:
        done = export_digits(output, seed=seed, force=force, progress=progress)
    show_members(done, folder=output, start_s=start, as_json=as_json)


def glyphs(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help=f"Model repository to write into; {REPOSITORY}, or {TRY} with --rows."
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A member to make, may be repeated.")] = None,
    rows: Annotated[int | None, typer.Option(help="Train on so many rows only, for a try.", min=128)] = None,
    force: Annotated[bool, typer.Option(help="Train again even where a member is up to date.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Train the family of networks on pictures of letters and digits drawn here, and export it.

    All of it takes about an hour on two cores; the members are committed, so nobody has to.

    Example: python -m perf glyphs --only glyphs_b0_s0 --rows 2000
    """
    with needs("perf glyphs"):
        # Optional packages, and slow to import.
        from perf.studies.glyphs_members import export_glyphs
    start = time.monotonic()
    folder = output or (REPOSITORY if rows is None else TRY)
    with progress_on("glyphs") as progress:
        done = export_glyphs(folder, only=only or (), rows=rows, force=force, progress=progress)
    show_members(done, folder=folder, start_s=start, as_json=as_json)


def show_members(done: Mapping[str, str], *, folder: Path, start_s: float, as_json: bool) -> None:
    """Prints what was done for each member of a folder, since a time of the monotonic clock."""
    lines = [f"{folder / name}: {what}" for name, what in done.items()]
    document = {"members": dict(done), "repository": str(folder), "seconds": round(time.monotonic() - start_s, 1)}
    typer.echo(json.dumps(document) if as_json else "\n".join(lines))


def glyphs_data(
    part: Annotated[str, typer.Option(help="train, plan or test.")] = "plan",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where; build/glyphs/<part>.npz.")] = None,
    rows: Annotated[int | None, typer.Option(help="The first so many rows; all if left out.", min=1)] = None,
) -> None:
    """Draw a part of the glyphs into one .npz with ids, images and labels, which `committee record` reads.

    Example: python -m perf glyphs-data --part plan --rows 2000
    """
    with needs("perf glyphs-data"):
        # Optional packages, and slow to import.
        from perf.studies.glyphs_data import store_split
    path = output if output is not None else Path("build/glyphs") / f"{part}.npz"
    if path.is_dir() or path.suffix != ".npz":
        got = "a folder" if path.is_dir() else "another kind of file"
        raise ExportError(f"glyphs-data --output {path}", got=got, expected="a file name ending in .npz")
    with progress_on("glyphs") as progress:
        count = store_split(path, part, rows=rows, progress=progress)
    typer.echo(f"{path}: {count:,} rows")


def text_data(
    part: Annotated[str, typer.Option(help="fit, plan or test.")] = "plan",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where; build/docstrings/<part>.csv.")
    ] = None,
) -> None:
    """Write a part of the docstrings into a .csv with id, docstring, text and label: which subpackage is it about?

    The text is that of the installed scipy, scikit-learn and matplotlib. The command says whether these are the
    releases that its rows are written down for.

    Example: python -m perf text-data --part plan
    """
    path = output if output is not None else Path("build/docstrings") / f"{part}.csv"
    with progress_on("reading docstrings"):
        rows = docstrings_split(part)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "docstring", "text", "label"))
    names = (CLASSES[label] for label in rows.labels)
    writer.writerows(zip(rows.ids, rows.groups, rows.texts, names, strict=True))
    write_all(path.parent, {path.name: text.getvalue()})
    same = "" if rows.sha256() == SHA256[part] else "; not those of the pinned releases"
    typer.echo(f"{path}: {len(rows.ids):,} rows{same}")
