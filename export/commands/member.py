"""`python -m export member`."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from typer import Argument, Option

from export.commands.console import REPOSITORY, needs, numbers_from_text, progress_on
from export.output import CHOICES, labels_from_path
from export.precision import MIN_AGREEMENT_HELP
from export.runtimes import DEFAULT_RUNTIMES, RUNTIMES_HELP, runtimes_from_text
from orchestrator.errors import ExportError
from orchestrator.spec import Manifest, manifest_from_path
from orchestrator.spec.manifest import MANIFEST

V = TypeVar("V", str, float)
PRECISIONS = ("fp32", "fp16", "int8")


def member(
    sources: Annotated[
        list[str],
        Argument(
            metavar="SOURCE...",
            help="hf:<hub id or folder>, timm:<name>, torchvision:<name>, torch:<module>:<callable>, onnx:<path>, "
            "sklearn:<file of joblib, which runs code>, lightgbm:<file>, xgboost:<file>, "
            "or a name of `python -m export zoo`. NAME=SOURCE names the member.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, Option("--output", "-o", help="Model repository to write into.")] = REPOSITORY,
    name: Annotated[str | None, Option(help="Member name; one source and one resolution only.")] = None,
    image_px: Annotated[
        int | None,
        Option(
            min=8,
            max=4096,
            help="Side of the uint8 images the committee takes; None: the largest any of these members needs.",
        ),
    ] = None,
    resolution_px: Annotated[
        list[int] | None,
        Option(
            "--resolution",
            min=8,
            max=4096,
            help="Side the network sees; give it twice for two members of one network.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        Option(help="fp32, fp16 or int8, also several; fp16 and int8 are made from the fp32 member."),
    ] = None,
    calibrate: Annotated[
        Path | None, Option(help="Rows for int8: .npy, or .npz with images, as the member takes them.")
    ] = None,
    random_weights: Annotated[
        bool, Option("--random-weights", help="New weights, for cost and speed work only.")
    ] = False,
    seed: Annotated[int, Option(help="Of random weights.")] = 0,
    weights: Annotated[Path | None, Option(help="State dict for torch: sources.")] = None,
    mean: Annotated[str | None, Option(help="Per channel, on a 0-1 scale: 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, Option(help="Per channel, on a 0-1 scale.")] = None,
    dims: Annotated[
        str | None,
        Option(help="Dims of a row without the batch, for torch: sources and free axes of ONNX files: 3,32,32."),
    ] = None,
    output_name: Annotated[
        str | None, Option(help="Output to take from an ONNX file with several; also a tensor inside its graph.")
    ] = None,
    keep_opset: Annotated[
        bool, Option("--keep-opset", help="Take an ONNX file whose opset only newer Triton releases read.")
    ] = False,
    macs: Annotated[
        float | None,
        Option(min=0, help="Multiply-accumulates of one row, where they cannot be counted, as of trees."),
    ] = None,
    max_length: Annotated[
        int | None,
        Option(
            min=1,
            help="Most tokens of a row, or positions where an ONNX file leaves a row's first axis free. "
            "Default: as many as a text classifier takes.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        Option(
            "--input",
            metavar="THEIRS=OURS",
            help="Name in the member of an input of the source, as input_ids=ids; once per input. Without it "
            "several inputs keep their names, and the only one is called image.",
        ),
    ] = None,
    pads: Annotated[
        list[str] | None,
        Option(
            "--pad",
            metavar="THEIRS=NUMBER",
            help="What fills up shorter rows of an input of the source, as input_ids=1; once per input. Default: "
            "the padding of a text classifier's config, else 0.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        Option(
            help="Text file with the names of the classes, one a line, in the order of the scores; instead of the "
            "source's own."
        ),
    ] = None,
    output_kind: Annotated[
        str,
        Option(
            help="logits, probabilities, or auto: found in the graph and in its values. It is an error to name "
            "the one that these speak against."
        ),
    ] = "auto",
    probabilities: Annotated[
        bool, Option("--probabilities", help="The same as --output-kind probabilities.")
    ] = False,
    min_agreement: Annotated[float | None, Option(min=0, max=1, help=MIN_AGREEMENT_HELP)] = None,
    parity_rows: Annotated[int, Option(min=8, help="Rows compared with the original.")] = 64,
    max_batch_size: Annotated[int, Option(min=1, help="Largest batch of the served member.")] = 64,
    runtimes: Annotated[str, Option(help=RUNTIMES_HELP)] = DEFAULT_RUNTIMES,
    force: Annotated[bool, Option(help="Export again even where the member is up to date.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Export trained models as members of one committee: ONNX, image processing inside, proof in the manifest.

    Text classifiers of hf: take token ids and a mask, of any length and with padding.

    Examples:
        python -m export member hf:google/efficientnet-b0 hf:microsoft/resnet-50 -o model_repository
        python -m export member hf:./my_model --resolution 160 --resolution 224
        python -m export member torch:my_package.nets:make --weights net.safetensors --dims 3,32,32
        python -m export member hf:./my_text_model --max-length 128
        python -m export member onnx:text.onnx --input ids=input_ids --input mask=attention_mask --max-length 256
        python -m export member sklearn:pipeline.joblib xgboost:trees.json
    """
    with needs("export member"):
        # Optional packages, and slow to import.
        from export.sources import ExportOptions
    options = ExportOptions(
        random_weights=random_weights,
        seed=seed,
        weights=weights,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        dims=_dims(dims),
        output_kind=_output_kind(output_kind, probabilities=probabilities),
        output_name=output_name,
        keep_opset=keep_opset,
        macs=macs,
        labels=None if labels is None else labels_from_path(labels),
        max_length=max_length,
        inputs=_pairs("--input", inputs, str),
        pads=_pairs("--pad", pads, float),
    )
    kinds = _precisions(precision)
    proven_on = runtimes_from_text(runtimes)
    start = time.monotonic()
    with needs("export member"), progress_on("reading sources") as progress:
        # Optional packages, and slow to import.
        from export.member import export_committee, member_exports

        options = dataclasses.replace(options, progress=progress)
        plans = member_exports(sources, options, resolutions=resolution_px or [None], name=name, image_px=image_px)
        plans = [
            dataclasses.replace(plan, parity_rows=parity_rows, max_batch_size=max_batch_size, runtimes=proven_on)
            for plan in plans
        ]
        done = export_committee(
            output,
            plans,
            precisions=kinds,
            calibrate=calibrate,
            min_agreement=min_agreement,
            force=force,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps({"members": done, "seconds": round(time.monotonic() - start, 1)}))
        return
    for name, what in done.items():
        manifest = manifest_from_path(output / name / MANIFEST)
        typer.echo(f"{output / name}: {what}; {_summary(manifest)}")


def runtimes_said(manifest: Manifest) -> list[str]:
    """Differences of scores by version of ONNX Runtime, and versions without proof, in words."""
    whys = {"fault": "wrong", "not_proven": "not proven"}
    apart = {version: one["max_abs"] for version, one in manifest.runtimes.items() if not whys.keys() & one}
    shown = [f"{error:.1e} on {version}" for version, error in apart.items()]
    said = [f"at most {', '.join(shown).replace(' on ', ' apart on ONNX Runtime ', 1)}"] if shown else []
    for word, what in whys.items():
        found = {version: one[word] for version, one in manifest.runtimes.items() if word in one}
        said += [f"{what} on ONNX Runtime {version} ({why})" for version, why in found.items()]
    return said


def _summary(manifest: Manifest) -> str:
    words = [f"{manifest.parameters / 1e6:.2f} M parameters", f"{manifest.macs / 1e9:.3f} GMACs a row"]
    if manifest.length is not None:
        words[1] += f" of length {manifest.length.macs_at}, up to {manifest.length.longest} long"
    words.append(f"gives {manifest.output_kind}")
    if "max_abs" in manifest.parity:
        words.append(f"differs from the original by at most {manifest.parity['max_abs']:.1e}")
    words += runtimes_said(manifest)
    if agreed := manifest.agreement:
        words.append(f"same top-1 as fp32 on {agreed['same_top1']:.1%} of {agreed['rows']} rows")
    words += manifest.original.get("changes", [])
    if manifest.random_weights:
        words.append("RANDOM WEIGHTS: its answers mean nothing")
    return ", ".join(words)


def _output_kind(word: str, *, probabilities: bool) -> str:
    if word not in CHOICES:
        raise ExportError("--output-kind", got=word, expected=" or ".join(CHOICES))
    if probabilities and word == "logits":
        raise ExportError("--probabilities", got="--output-kind logits beside it", expected="one of them")
    return "probabilities" if probabilities else word


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    return None if text is None else tuple(numbers_from_text(option, text, float))


def _pairs(option: str, texts: list[str] | None, kind: Callable[[str], V]) -> dict[str, V]:
    """What NAME=VALUE, given once per name, says."""
    pairs: dict[str, V] = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            made = kind(value) if name and value and name not in pairs else None
        except ValueError:
            made = None
        if made is None:
            what = "a number" if kind is float else "a name"
            raise ExportError(option, got=text, expected=f"NAME={what}, each name once")
        pairs[name] = made
    return pairs


def _dims(text: str | None) -> tuple[int, ...] | None:
    sizes = None if text is None else tuple(numbers_from_text("--dims", text, int))
    if sizes is not None and min(sizes) < 1:
        raise ExportError("--dims", got=text, expected="sizes of at least 1, such as 3,32,32")
    return sizes


def _precisions(words: list[str] | None) -> list[str]:
    wrong = [word for word in words or [] if word not in PRECISIONS]
    if wrong:
        raise ExportError("--precision", got=", ".join(wrong), expected=", ".join(PRECISIONS))
    return list(dict.fromkeys(words or ["fp32"]))
