"""`python -m export tokenizer` and `image-decoder`: models that derive tensors from what clients send."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from export.commands.console import REPOSITORY, needs, progress_on
from export.deriving.writing import DerivingModel, write_deriving
from orchestrator.errors import ExportError
from orchestrator.spec.validation import MOST_PX, MOST_ROWS, MOST_SIZE

MODES = ("RGB", "L")
Output = Annotated[Path, Option("--output", "-o", help="Model repository to write into.")]
Batch = Annotated[int, Option(min=1, max=MOST_ROWS, help="Largest batch of the served model.")]
Force = Annotated[bool, Option("--force", help="Write over another model of that name.")]
AsJson = Annotated[
    bool, Option("--json", help="Print what was done as JSON, with the entry for a plan's `derived`.")
]


def tokenizer(
    source: Annotated[str, Argument(metavar="SOURCE", help="hf:<hub id or folder>.", show_default=False)],
    output: Output = REPOSITORY,
    name: Annotated[
        str | None,
        Option(help="Model name; None: tokenizer_ and the last part of SOURCE, _pair behind it for pairs."),
    ] = None,
    pair: Annotated[
        bool,
        Option(
            "--pair", help="Rows are two texts, `text` and `text_pair`, as classifiers of pairs of sentences take."
        ),
    ] = False,
    max_length: Annotated[
        int | None, Option(min=1, max=MOST_SIZE, help="Most tokens of a text; None: as the tokenizer says.")
    ] = None,
    over_length: Annotated[
        str, Option(help="What becomes of texts of more tokens: truncate, as the tokenizer does, or refuse.")
    ] = "truncate",
    empty: Annotated[
        str, Option(help="What becomes of texts without a token of their own: refuse, or keep the special tokens.")
    ] = "refuse",
    max_bytes: Annotated[
        int, Option(min=1, max=MOST_SIZE, help="Longer texts are refused before they are tokenised.")
    ] = 1 << 18,
    padding_side: Annotated[
        str | None,
        Option(
            help="right or left: where shorter rows of a request are filled up. Default: as the tokenizer does; "
            "plans need right."
        ),
    ] = None,
    max_batch_size: Batch = 64,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a tokenizer as a Triton model: STRING [1] in, two with --pair; input_ids and other tensors out.

    These are input_ids, attention_mask and token_type_ids, INT64 [-1]: what a member does not read is not made.

    The server's Python needs numpy and tokenizers; deploy/image/Dockerfile adds them to NVIDIA's image.

    Example: python -m export tokenizer hf:distilbert/distilbert-base-uncased -o model_repository
    """
    with needs("export tokenizer"), progress_on(f"reading {source}") as progress:
        # Optional packages, and slow to import.
        from export.deriving.tokenizer import tokenizer_model

        model = tokenizer_model(
            source,
            name=name,
            pair=pair,
            max_length=max_length,
            over_length=over_length,
            empty=empty,
            max_bytes=max_bytes,
            padding_side=padding_side,
            max_batch_size=max_batch_size,
            progress=progress,
        )
        _write(output, model, force=force, as_json=as_json)


def image_decoder(
    output: Output = REPOSITORY,
    name: Annotated[str, Option(help="Model name.")] = "image_decoder",
    like: Annotated[
        str | None, Option(metavar="MEMBER", help="An exported member whose rows are made, as its manifest says.")
    ] = None,
    height_px: Annotated[int | None, Option("--height", min=1, max=MOST_PX, help="Of the rows.")] = None,
    width_px: Annotated[
        int | None, Option("--width", min=1, max=MOST_PX, help="Of the rows; None: square.")
    ] = None,
    shortest_px: Annotated[
        int | None,
        Option(
            "--shortest",
            min=1,
            max=MOST_PX,
            help="Shorter side before a centre crop; None squeezes pictures of another shape.",
        ),
    ] = None,
    mode: Annotated[str, Option(help="RGB, or L for grey.")] = "RGB",
    max_bytes: Annotated[int, Option(min=1, max=MOST_SIZE, help="Larger pictures are refused.")] = 1 << 26,
    max_batch_size: Batch = 64,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write an image decoder as a Triton model: an encoded picture, STRING [1], in; a row of pixels out.

    It makes the rows that `committee infer` makes of pictures. The server's Python needs numpy and Pillow.

    Example: python -m export image-decoder --like efficientnet_b0 -o model_repository
    """
    if (like is None) == (height_px is None):
        got = "neither `like` nor `height_px`" if like is None else "`like` and `height_px`"
        raise ExportError("rows to make", got=got, expected="one of them")
    if like is not None and (width_px, shortest_px, mode) != (None, None, "RGB"):
        raise ExportError("`like`", got="a size or colours beside it", expected="those of the member alone")
    if mode not in MODES:
        raise ExportError("`mode`", got=mode, expected=" or ".join(MODES))
    with needs("export image-decoder"):
        # Only this command reads graphs and pictures.
        from export.deriving.decoder import decoder_model, rows_of_member, rows_of_size

        if like is not None:
            row, preprocess = rows_of_member(output, like)
        else:
            assert height_px is not None
            row, preprocess = rows_of_size((height_px, width_px or height_px), shortest_px=shortest_px, mode=mode)
        source = "image-decoder" if like is None else f"image-decoder --like {like}"
        model = decoder_model(
            row, preprocess, name=name, max_bytes=max_bytes, max_batch_size=max_batch_size, source=source
        )
        _write(output, model, force=force, as_json=as_json)


def _write(repository: Path, model: DerivingModel, *, force: bool, as_json: bool) -> None:
    manifest, is_new = write_deriving(repository, model, force=force)
    what = "exported" if is_new else "up to date"
    if as_json:
        typer.echo(json.dumps({"model": model.name, "done": what, "derived": manifest.as_derived()}))
        return
    needed = ", ".join(f"{package} {version}" for package, version in manifest.packages.items())
    outputs = ", ".join(f"{one.name} {one.dtype} {list(one.dims)}" for one in manifest.outputs)
    inputs = ", ".join(f"{name} STRING [1]" for name in model.inputs)
    typer.echo(f"{repository / model.name}: {what}; {inputs} -> {outputs}; {model.said}; needs {needed}")
