"""`python -m export precision`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from export.commands.console import needs, progress_on
from export.precision import MIN_AGREEMENT_HELP
from orchestrator.spec import Manifest, manifest_from_path
from orchestrator.spec.manifest import MANIFEST


def precision(
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="An fp32 ONNX member.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="fp16 or int8.", show_default=False)],
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Rows as the member takes them, .npy or .npz; int8 needs them, and compares on some."),
    ] = None,
    repository: Annotated[Path, typer.Option(help="Model repository that holds the member.")] = Path(
        "model_repository"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Repository to write into; the same by default.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the new member; MEMBER_fp16 or MEMBER_int8 by default.")
    ] = None,
    min_agreement: Annotated[float | None, typer.Option(min=0, max=1, help=MIN_AGREEMENT_HELP)] = None,
    force: Annotated[bool, typer.Option(help="Make it again, also over another exported member.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
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
    return text + ("; RANDOM WEIGHTS: its answers mean nothing" if manifest.random_weights else "")
