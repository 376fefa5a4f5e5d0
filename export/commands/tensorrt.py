"""`python -m export tensorrt`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from export.commands.console import needs, progress_on
from orchestrator.commandline import with_options


def tensorrt(
    context: typer.Context,
    member: Annotated[str, typer.Argument(help="ONNX member to build from.", show_default=False)],
    repository: Annotated[Path, typer.Option(help="Model repository that holds it.")] = Path("model_repository"),
    min_rows: Annotated[int, typer.Option("--min", help="Fewest rows of a request; cascades need 1.")] = 1,
    opt_rows: Annotated[
        int | None, typer.Option("--opt", help="Rows to tune for; None: 16, or --max if that is less.")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max", help="Most rows, the served max_batch_size; None: the member's.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8; None: the member's. int8 needs an int8 member.")
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let fp32 products be rounded to TF32.")] = False,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Loads in later TensorRT releases of this major version too."),
    ] = False,
    workspace_mib: Annotated[int | None, typer.Option(help="Most scratch memory of a layer.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Repository to write into; None: the member's.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the engine's model; None: MEMBER_trt.")] = None,
    force: Annotated[bool, typer.Option(help="Build again, over any model of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Build a TensorRT engine from an ONNX member, for the GPU of this machine.

    Example: python -m export tensorrt digits_small --min 1 --opt 16 --max 64

    Where TensorRT or the GPU is missing: docker compose run --rm engines digits_small --min 1 --opt 16 --max 64
    """
    with needs("export tensorrt"):
        # Optional packages, and slow to import.
        from export.members import manifest_in
        from export.tensorrt.engine import EngineOptions
        from export.tensorrt.member import export_engine
    start = time.monotonic()
    largest = manifest_in(repository, member).max_batch_size if max_rows is None else max_rows
    options = EngineOptions(
        min_rows=min_rows,
        opt_rows=max(min_rows, min(16, largest)) if opt_rows is None else opt_rows,
        max_rows=largest,
        precision=precision,
        tf32=tf32,
        version_compatible=version_compatible,
        workspace_mib=workspace_mib,
    )
    with progress_on(f"reading {member}") as progress:
        done = export_engine(
            member, repository, options=options, output=output, name=name, force=force, progress=progress
        )
    manifest = done.manifest
    notes = [with_options(note, context.command) for note in done.notes]
    if as_json:
        facts = {
            "name": manifest.name,
            "folder": str(done.folder),
            "built": done.built,
            "precision": manifest.precision,
            "max_batch_size": manifest.max_batch_size,
            "engine": manifest.engine,
            "parity": manifest.parity,
            "notes": notes,
            "seconds": round(time.monotonic() - start, 1),
        }
        typer.echo(json.dumps(facts))
        return
    if not done.built:
        typer.echo(f"{done.folder}: up to date")
        return
    typer.echo(
        f"{done.folder}: {manifest.precision} engine for {manifest.engine['device']} in "
        f"{manifest.engine['build_s']} s, largest difference from ONNX Runtime {manifest.parity['max_abs']:.2g}"
    )
    for note in notes:
        typer.echo(f"note: {note}", err=True)
