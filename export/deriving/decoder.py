"""An image decoder as a model: encoded pictures in, the rows out that a client would make of them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import orchestrator.rows.decoding
from export.deriving.writing import SERVED, DerivingModel
from export.members import manifest_in
from orchestrator.errors import ExportError
from orchestrator.spec import Preprocess, TensorSpec
from orchestrator.spec.deriving import PaddedTensor
from orchestrator.spec.request import INPUT_DTYPES

ENCODED = "encoded"
PACKAGES = ("pillow",)  # that the server needs besides numpy


def decoder_model(
    row: TensorSpec,
    preprocess: Preprocess,
    *,
    name: str,
    max_bytes: int = 1 << 26,
    max_batch_size: int = 64,
    source: str = "image-decoder",
) -> DerivingModel:
    """The model that makes the tensor `row` of a picture as `preprocess` says; nothing is written.

    `max_bytes` is the size of the largest picture, `source` what the description was taken from.
    Raises ExportError for a dtype that no picture fills.
    """
    if row.dtype not in INPUT_DTYPES:
        raise ExportError(f"tensor {row.name}", got=row.dtype, expected=f"one of {', '.join(INPUT_DTYPES)}")
    return DerivingModel(
        name=name,
        derives="pictures",
        source=source,
        inputs=(ENCODED,),
        outputs=(PaddedTensor(name=row.name, dtype=row.dtype, dims=row.dims),),
        files={
            "derive.py": (SERVED / "pictures.py").read_bytes(),
            "decoding.py": Path(orchestrator.rows.decoding.__file__).read_bytes(),
        },
        packages=PACKAGES,
        options={
            "output": row.name,
            "dtype": INPUT_DTYPES[row.dtype],
            "dims": list(row.dims),
            "preprocess": dataclasses.asdict(preprocess),
            "max_bytes": max_bytes,
        },
        said="the rows that clients make of pictures",
        max_batch_size=max_batch_size,
    )


def rows_of_member(repository: Path, member: str) -> tuple[TensorSpec, Preprocess]:
    """The input of an exported member and how a picture becomes a row of it; ExportError where nothing says."""
    manifest = manifest_in(repository, member)
    if manifest.preprocess is None:
        fix = "give `height_px` and `width_px`"
        raise ExportError(f"member {member}", got="no image processing in its manifest", fix=fix)
    return manifest.input, manifest.preprocess


def rows_of_size(sizes: Sequence[int], *, shortest_px: int | None, mode: str) -> tuple[TensorSpec, Preprocess]:
    """A tensor `image`, uint8 [channels, height, width], and how a picture becomes one."""
    height, width = sizes
    preprocess = Preprocess(mode=mode, height_px=height, width_px=width, resize_px=shortest_px)
    channels = 3 if mode == "RGB" else 1
    return TensorSpec(name="image", dtype="UINT8", dims=(channels, height, width)), preprocess
