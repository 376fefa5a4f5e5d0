"""`python -m export prove`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from export.commands.console import needs, progress_on
from export.commands.member import runtimes_said
from export.runtimes.choice import DEFAULT_RUNTIMES, RUNTIMES_HELP, runtimes_from_text


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
        from export.runtimes.members import prove_member

        for name in names:
            found[name] = prove_member(
                repository, name, versions=versions, progress=lambda text, name=name: progress(f"{name}: {text}")
            )
    if as_json:
        typer.echo(json.dumps({name: manifest.runtimes for name, manifest in found.items()}))
        return
    for name, manifest in found.items():
        typer.echo(f"{repository / name}: {', '.join(runtimes_said(manifest))}")
