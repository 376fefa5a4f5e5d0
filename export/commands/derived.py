"""`python -m export precision`, `tensorrt`, `fuse` and `onefile`: models made of exported members."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from export.commands.console import REPOSITORY, needs, numbers_from_text, progress_on
from export.precision import MIN_AGREEMENT_HELP
from orchestrator.commandline import with_options
from orchestrator.errors import ExportError
from orchestrator.repository.files import write_all
from orchestrator.spec import (
    FusedPrefix,
    Manifest,
    Member,
    cascade_from_path,
    json_from_cascade,
    manifest_from_path,
)
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.manifest import MANIFEST

# What is said last of a member made from random weights.
RANDOM = "; RANDOM WEIGHTS: its answers mean nothing"


def precision(
    member: Annotated[str, Argument(metavar="MEMBER", help="An fp32 ONNX member.", show_default=False)],
    to: Annotated[str, Option("--to", help="fp16 or int8.", show_default=False)],
    calibrate: Annotated[
        Path | None,
        Option(help="Rows as the member takes them, .npy or .npz; int8 needs them, and compares on some."),
    ] = None,
    repository: Annotated[Path, Option(help="Model repository that holds the member.")] = REPOSITORY,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Repository to write into; the same by default.")
    ] = None,
    name: Annotated[str | None, Option(help="Of the new member; MEMBER_fp16 or MEMBER_int8 by default.")] = None,
    min_agreement: Annotated[float | None, Option(min=0, max=1, help=MIN_AGREEMENT_HELP)] = None,
    force: Annotated[bool, Option(help="Make it again, also over another exported member.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Make a member of lower precision from an fp32 one, and say how often both agree.

    fp16 is for GPUs: a CPU computes in fp32 all the same and converts besides, so it is mostly slower there, in
    half the space. int8 can be faster on both where the work is in large convolutions and dense layers (ResNet-50
    and ViT-B/16 take 0.7 times as long on a CPU); small networks and depthwise convolutions get slower
    (EfficientNet-B0 2.5 times). Measure before you use it.

    Examples:
        python -m export precision digits_large --to fp16
        python -m export precision digits_large --to int8 --calibrate rows.npy
    """
    start = time.monotonic()
    with needs("export precision"), progress_on(f"{member} to {to}") as progress:
        # Optional packages, and slow to import.
        from export.precision.derive import export_precision

        made, what = export_precision(
            repository,
            member,
            to=to,
            calibrate=calibrate,
            output=output,
            name=name,
            min_agreement=min_agreement,
            force=force,
            progress=progress,
        )
    folder = (output or repository) / made
    manifest = manifest_from_path(folder / MANIFEST)
    if as_json:
        seconds = round(time.monotonic() - start, 1)
        agreement = manifest.agreement
        typer.echo(json.dumps({"member": made, "done": what, "agreement": agreement, "seconds": seconds}))
        return
    typer.echo(f"{folder}: {what}; {_said(manifest)}")


def _said(manifest: Manifest) -> str:
    found = manifest.agreement
    low, high = found["same_top1_ci95"]
    text = (
        f"same top-1 as {found['with']} on {found['same_top1']:.2%} of {found['rows']} rows "
        f"(95 % interval {low:.2%} to {high:.2%}; {found['rows_from']}), "
        f"scores differ by {found['mean_abs']:.2g} on average and {found['max_abs']:.2g} at most"
    )
    if found.get("tiny_weights"):
        text += f"; {found['tiny_weights']} weights are smaller than fp16 can hold"
    return text + (RANDOM if manifest.random_weights else "")


def tensorrt(
    context: typer.Context,
    member: Annotated[str, Argument(help="ONNX member to build from.", show_default=False)],
    repository: Annotated[Path, Option(help="Model repository that holds it.")] = REPOSITORY,
    min_rows: Annotated[int, Option("--min", help="Fewest rows of a request; cascades need 1.")] = 1,
    opt_rows: Annotated[
        int | None, Option("--opt", help="Rows to tune for; None: 16, or --max if that is less.")
    ] = None,
    max_rows: Annotated[
        int | None, Option("--max", help="Most rows, the served max_batch_size; None: the member's.")
    ] = None,
    precision: Annotated[
        str | None, Option(help="fp32, fp16 or int8; None: the member's. int8 needs an int8 member.")
    ] = None,
    tf32: Annotated[bool, Option("--tf32", help="Let fp32 products be rounded to TF32.")] = False,
    version_compatible: Annotated[
        bool, Option("--version-compatible", help="Loads in later TensorRT releases of this major version too.")
    ] = False,
    workspace_mib: Annotated[int | None, Option(help="Most scratch memory of a layer.")] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Repository to write into; None: the member's.")
    ] = None,
    name: Annotated[str | None, Option(help="Name of the engine's model; None: MEMBER_trt.")] = None,
    force: Annotated[bool, Option(help="Build again, over any model of that name.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print what was done as JSON.")] = False,
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
            **{word: getattr(manifest, word) for word in ("precision", "max_batch_size", "engine", "parity")},
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


def fuse(
    members: Annotated[
        list[str] | None, Argument(metavar="MEMBER...", help="At least two.", show_default=False)
    ] = None,
    combine: Annotated[str | None, Option(help="mean_logit or mean_prob.", show_default=False)] = None,
    weights: Annotated[str | None, Option(help="One per member: 1,1,2. All 1 by default.")] = None,
    temperatures: Annotated[str | None, Option(help="One per member: 1,1.5,1. All 1 by default.")] = None,
    plan: Annotated[
        Path | None, Option(metavar="CASCADE_JSON", help="Fuse every stage of several members of this plan.")
    ] = None,
    plan_output: Annotated[
        Path | None, Option("--plan-output", "-o", help="Where the new plan goes; <name>.json here by default.")
    ] = None,
    repository: Annotated[Path, Option(help="Model repository that holds the members.")] = REPOSITORY,
    output: Annotated[
        Path | None, Option("--output", help="Repository for the fused members; the same by default.")
    ] = None,
    name: Annotated[str | None, Option(help="Of the fused member, or of the new plan.")] = None,
    allow_whole_failure: Annotated[
        bool, Option("--allow-whole-failure", help="Fuse stages too that may answer without one of their members.")
    ] = False,
    force: Annotated[bool, Option(help="Fuse again, also over other exported members.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Merge members and their average into one member: one call to the server instead of several.

    Image processing that they share happens once. With --plan, every stage of several members becomes one fused
    member, and the new plan answers as the old one; `committee render` takes it from there.

    Examples:
        python -m export fuse digits_small digits_large --combine mean_logit --name digits_two
        python -m export fuse --plan cascade.json -o fused.json
    """
    start = time.monotonic()
    with needs("export fuse"), progress_on("reading members") as progress:
        # Optional packages, and slow to import.
        from export.fusing import Fusion, fuse_plan
        from export.fusing import fuse as fuse_members

        how: dict[str, Any] = {"output": output, "force": force, "progress": progress}
        if plan is None:
            _refuse_with("members", {"--plan-output": plan_output, "--allow-whole-failure": allow_whole_failure})
            if combine is None or name is None:
                missing = [word for word, value in (("--combine", combine), ("--name", name)) if value is None]
                raise ExportError("fuse", got=f"no {' and no '.join(missing)}", expected="both, or --plan")
            asked = _members_from_options(members or [], weights, temperatures)
            made, what = fuse_members(repository, Fusion(name=name, members=asked, combine=combine), **how)
            said: dict[str, Any] = {"members": {made.name: what}}
        else:
            given = {"MEMBER": members, "--combine": combine, "--weights": weights, "--temperatures": temperatures}
            _refuse_with("--plan", given)
            spec = cascade_from_path(plan)
            path = plan_output or Path(f"{name or f'{spec.name}_fused'}.json")
            if path.resolve() == plan.resolve():
                raise ExportError("--plan-output", got=str(path), expected="another file than the old plan")
            fused, done = fuse_plan(spec, repository, name=name, allow_whole_failure=allow_whole_failure, **how)
            written = write_all(path.parent, {path.name: json_from_cascade(fused)}).written
            said = {"members": done, "plan": str(path), "plan_done": "written" if written else "up to date"}
    if as_json:
        typer.echo(json.dumps({**said, "seconds": round(time.monotonic() - start, 1)}))
        return
    for member, what in said["members"].items():
        folder = (output or repository) / member
        manifest = manifest_from_path(folder / MANIFEST)
        text = f"{folder}: {what}; {manifest.macs / 1e9:.3g} GMACs a row, differs from its members by "
        text += f"at most {manifest.parity['max_abs']:.1e} on {manifest.parity['rows']} rows"
        typer.echo(text + (RANDOM if manifest.random_weights else ""))
    if "plan" in said:
        typer.echo(f"{said['plan']}: {said['plan_done']}; render it with `committee render {said['plan']}`")


def _refuse_with(word: str, given: Mapping[str, object]) -> None:
    extra = [option for option, value in given.items() if value]
    if extra:
        raise ExportError(f"fuse with {word}", got=", ".join(extra), expected="either members or --plan")


def _members_from_options(names: list[str], weights: str | None, temperatures: str | None) -> tuple[Member, ...]:
    columns = []
    for option, text in (("--weights", weights), ("--temperatures", temperatures)):
        numbers = [1.0] * len(names) if text is None else numbers_from_text(option, text, float)
        if len(numbers) != len(names):
            raise ExportError(option, got=f"{len(numbers)} numbers", expected=f"{len(names)}, one per member")
        columns.append(numbers)
    # The manifest has the names of its tensors; only name, weight and temperature count here.
    triples = zip(names, *columns, strict=True)
    return tuple(Member(name=name, output="scores", weight=w, temperature=t) for name, w, t in triples)


def onefile(
    cascade: Annotated[Path, Argument(help="A cascade.json, or the folder of a rendered cascade.")],
    repository: Annotated[
        Path, Option("--repository", "-r", help="Model repository with its members.")
    ] = REPOSITORY,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Model repository to write into; else the same.")
    ] = None,
    name: Annotated[str | None, Option(help="Name of the model; else <cascade>_onefile or _lead.")] = None,
    stages: Annotated[
        int | None, Option(min=1, help="Only that many leading stages, giving the raw outputs of their members.")
    ] = None,
    plan_output: Annotated[
        Path | None,
        Option(
            "--plan-output",
            help="With --stages: write the plan that uses them as its fused prefix, for `committee render`.",
        ),
    ] = None,
    force: Annotated[bool, Option(help="Write over a model that this command did not make.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print what was written as JSON.")] = False,
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
