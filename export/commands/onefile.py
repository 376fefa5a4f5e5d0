"""`python -m export onefile`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from export.commands.console import needs, progress_on
from orchestrator.errors import ExportError
from orchestrator.spec import FusedPrefix, cascade_from_path, json_from_cascade
from orchestrator.spec.cascade import PLAN


def onefile(
    cascade: Annotated[Path, typer.Argument(help="A cascade.json, or the folder of a rendered cascade.")],
    repository: Annotated[
        Path, typer.Option("--repository", "-r", help="Model repository with its members.")
    ] = Path("model_repository"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Model repository to write into; else the same.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; else <cascade>_onefile or _lead.")] = None,
    stages: Annotated[
        int | None,
        typer.Option(min=1, help="Only that many leading stages, giving the raw outputs of their members."),
    ] = None,
    plan_output: Annotated[
        Path | None,
        typer.Option(
            "--plan-output",
            help="With --stages: write the plan that uses them as its fused prefix, for `committee render`.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option(help="Write over a model that this command did not make.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a whole cascade as one ONNX model, for any ONNX Runtime.

    The graph skips the stages that no row of a batch needs, and asks later ones for the unsure rows only. Its
    answers are the cascade's own. It takes no request parameters (min_stage, max_stage, threshold_shift,
    deadline_us), and a row for which a member's output is no number gets label -1, NaN and status bit 1.

    With --stages the graph covers the leading stages only. As the fused prefix of a cascade it answers their rows
    in one call, and the cascade decides as ever.

    Examples:
        python -m export onefile model_repository/digits_cascade/1/cascade.json --output build/onefile
        python -m export onefile cascade.json --stages 2 --plan-output with_lead.json
    """
    with needs("export onefile"):
        # Optional packages, and slow to import.
        from export.onefile.writing import write_onefile
        from orchestrator.repository.files import write_all
        from orchestrator.repository.index import plan_path
    path = cascade
    if cascade.is_dir():
        path = plan_path(cascade) or cascade / "1" / PLAN
    spec = cascade_from_path(path)
    if plan_output is not None and (stages is None or stages < 2):
        raise ExportError("--plan-output", got=f"--stages {stages}", expected="at least 2 leading stages")
    with progress_on(f"putting {path} into one graph"):
        done = write_onefile(spec, repository, output=output, name=name, stages=stages, force=force)
    if plan_output is not None and stages is not None:
        prefix = FusedPrefix(name=done.name, stages=stages, max_batch_size=spec.limits.max_batch_size)
        text = json_from_cascade(dataclasses.replace(spec, fused_prefix=prefix))
        write_all(plan_output.parent, {plan_output.name: text})
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(done), "folder": str(done.folder)}))
        return
    what = f"{done.stages} stages, {', '.join(done.members)}, {done.size_bytes / 1e6:.1f} MB"
    typer.echo(f"{done.folder}: {what if done.changed else f'up to date ({what})'}")
