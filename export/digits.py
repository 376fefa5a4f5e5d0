"""The digits members: train on the train split, export, prove, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch

from export.members import manifest_of, require_ours, up_to_date, write_member
from export.networks import DIGITS, ConvNet
from export.parity import parity_of
from export.to_onnx import onnx_from_torch
from export.training import train
from orchestrator.rows.digits import DigitsSplit, digits_split
from orchestrator.spec import Preprocess, TensorSpec

# A scan's strokes are dark on light paper; the data set counts dark pixels, so pictures are inverted.
PREPROCESS = Preprocess(mode="L", height_px=8, width_px=8, value_min=0.0, value_max=16.0, invert=True)


def training_settings(name: str, seed: int) -> dict[str, object]:
    """What decides the weights of a member, as the manifest keeps it."""
    architecture = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(DIGITS[name]).items()}
    return {"data": "digits:train", "rows": 800, "seed": seed, **architecture}


def export_digits(
    repository: Path, *, seed: int = 0, force: bool = False, progress: Callable[[str], None]
) -> dict[str, str]:
    """Trains and writes every digits member that is not there yet.

    Args:
        repository: model repository to write into.
        seed: of weights, order and augmentation.
        force: train again even where the member is up to date.
        progress: told what is being done.

    Returns:
        member name -> "trained" or "up to date".

    Raises:
        ExportError: the repository holds other models of these names.
        RepositoryError: the repository cannot be written.
    """
    require_ours(repository, DIGITS, force=force)
    done: dict[str, str] = {}
    rows = digits_split("train")
    for name in DIGITS:
        if not force and up_to_date(repository, name, training_settings(name, seed)):
            done[name] = "up to date"
            continue
        _export_one(repository, name, rows, seed=seed, progress=progress)
        done[name] = "trained"
    return done


def _export_one(
    repository: Path, name: str, rows: DigitsSplit, *, seed: int, progress: Callable[[str], None]
) -> None:
    epochs = DIGITS[name].epochs
    model = train(
        DIGITS[name],
        rows.images,
        rows.labels,
        seed=seed,
        progress=lambda epoch: progress(f"{name}: epoch {epoch} of {epochs}"),
    )
    progress(f"{name}: exporting")
    proto = onnx_from_torch(model, torch.from_numpy(rows.images[:2]))
    data = proto.SerializeToString(deterministic=True)
    parity = parity_of(data, lambda x: _reference(model, x), rows.images[:128])
    manifest = manifest_of(
        name,
        proto,
        data,
        source="python -m export digits",
        input_spec=TensorSpec(name="image", dtype="FP32", dims=(1, 8, 8)),
        output_spec=TensorSpec(name="logits", dtype="FP32", dims=(10,)),
        parity=parity,
        training=training_settings(name, seed),
        labels=tuple(str(digit) for digit in range(10)),
        preprocess=PREPROCESS,
        versions={"torch": torch.__version__, "onnx": onnx.__version__},
    )
    write_member(repository, data, manifest)


def _reference(model: ConvNet, rows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(rows)).numpy()
