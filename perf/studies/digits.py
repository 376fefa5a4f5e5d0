"""The digits members: small networks trained on the train split alone, exported, compared and written.

Scaling happens inside the networks, so members take raw values. Seeds are fixed, so training again gives the same
bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as functional
from torch import nn

from export.from_torch import onnx_from_torch
from export.members import is_current
from orchestrator.rows.digits import DigitsSplit, digits_split
from orchestrator.spec import Preprocess, TensorSpec
from perf.studies.glyphs_members import (
    answer,
    check_exported_here,
    fitted,
    json_fields,
    moved_at_random,
    write_trained,
)

# scikit-learn's digits count dark pixels of 4x4 blocks, so values run from 0 to 16.
FULL_SCALE = 16.0


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network and how long it is trained.

    Args:
        channels, strides: of each 3x3 convolution.
        hidden: width of a hidden dense layer, 0 for none.
        epochs: passes over the training rows.
        augmentation: strength of it, 1 for all of what `augment` allows.
    """

    channels: Sequence[int]
    strides: Sequence[int]
    hidden: int
    epochs: int
    augmentation: float = 1.0


# The smallest has no room for strong augmentation: in 4-fold cross-validation on the train split, about two thirds
# of it (shift 0.18, scale 0.1, noise 0.6) and half the epochs made it right more often (0.974, else 0.968) and the
# others less often (0.983 and 0.991, else 0.989 and 0.994).
# About 12 k, 50 k and 1.5 M multiply-accumulates per row: a spread of 120.
DIGITS = {
    "digits_small": Architecture(channels=(4, 8, 16), strides=(1, 2, 2), hidden=0, epochs=120, augmentation=0.65),
    "digits_medium": Architecture(channels=(8, 16, 32), strides=(1, 2, 2), hidden=64, epochs=240),
    "digits_large": Architecture(channels=(32, 48, 64, 64), strides=(1, 1, 2, 2), hidden=0, epochs=160),
}


class ConvNet(nn.Module):
    """Convolutions, then a linear head; float32 (n, 1, 8, 8) with values 0 to 16 -> logits (n, 10)."""

    def __init__(self, architecture: Architecture, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, size = 1, 8
        for channels, stride in zip(architecture.channels, architecture.strides, strict=True):
            layers += [nn.Conv2d(width, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            width, size = channels, (size - 1) // stride + 1
        features = width * size * size
        if architecture.hidden:
            layers += [nn.Flatten(), nn.Linear(features, architecture.hidden), nn.ReLU()]
            features = architecture.hidden
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (n, 10)."""
        return self.body(image / FULL_SCALE - 0.3)


MAX_ROTATION_RAD = math.radians(12)
MAX_SHIFT = 0.25  # of half the image: one pixel
SCALE_RANGE = 0.15
NOISE = 1.0  # standard deviation, on the 0 to 16 scale


def augment(images: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Every image, float32 (n, 1, 8, 8) from 0 to 16, rotated, scaled, shifted and made noisy at random.

    The strength, from 0 to 1, is that of shift, scale and noise.
    """
    scale, shift = SCALE_RANGE * strength, MAX_SHIFT * strength
    moved = moved_at_random(
        images, generator, rotation_rad=MAX_ROTATION_RAD, scale=scale, shift=shift, padding="zeros"
    )
    noise = torch.randn(images.shape, generator=generator) * NOISE * strength
    return (moved + noise).clamp(0, FULL_SCALE)


def train(
    architecture: Architecture,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> ConvNet:
    """A trained network in evaluation mode, from float32 (n, 1, 8, 8), values 0 to 16, and labels, int64 (n,).

    The seed is that of weights, order and augmentation; progress is told after each epoch.
    """
    x, y = torch.from_numpy(images), torch.from_numpy(labels)

    def loss(model: nn.Module, part: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        logits = model(augment(x[part], generator, architecture.augmentation))
        return functional.cross_entropy(logits, y[part], label_smoothing=0.05)

    passes: dict[str, Any] = {"rows": len(x), "batch": 64, "epochs": architecture.epochs, "decay": 0.01}
    return fitted(lambda: ConvNet(architecture).train(), loss, **passes, seed=seed, progress=progress)


# A scan's strokes are dark on light paper; the data set counts dark pixels, so pictures are inverted.
PREPROCESS = Preprocess(mode="L", height_px=8, width_px=8, value_min=0.0, value_max=16.0, invert=True)


def training_settings(name: str, seed: int) -> dict[str, object]:
    """What decides the weights of a member, as the manifest keeps it."""
    return {"data": "digits:train", "rows": 800, "seed": seed} | json_fields(DIGITS[name])


def export_digits(
    repository: Path, *, seed: int = 0, force: bool = False, progress: Callable[[str], None]
) -> dict[str, str]:
    """Trains and writes every digits member that is not there yet, with `force` the others too.

    Returns:
        member name -> "trained" or "up to date".

    Raises:
        ExportError: the repository holds other models of these names.
        RepositoryError: the repository cannot be written.
    """
    check_exported_here(repository, DIGITS, force=force)
    done: dict[str, str] = {}
    rows = digits_split("train")
    for name in DIGITS:
        if not force and is_current(repository / name, training_settings(name, seed), field="training"):
            done[name] = "up to date"
            continue
        _export_one(repository, name, rows, seed=seed, progress=progress)
        done[name] = "trained"
    return done


def _export_one(
    repository: Path, name: str, rows: DigitsSplit, *, seed: int, progress: Callable[[str], None]
) -> None:
    epochs = DIGITS[name].epochs

    def trained(epoch: int) -> None:
        progress(f"{name}: epoch {epoch} of {epochs}")

    model = train(DIGITS[name], rows.images, rows.labels, seed=seed, progress=trained)
    progress(f"{name}: exporting")
    write_trained(
        repository,
        onnx_from_torch(model, torch.from_numpy(rows.images[:2])),
        lambda x: answer(model, x),
        rows.images[:128],
        name=name,
        source="python -m perf digits",
        inputs=(TensorSpec(name="image", dtype="FP32", dims=(1, 8, 8)),),
        output=TensorSpec(name="logits", dtype="FP32", dims=(10,)),
        training=training_settings(name, seed),
        labels=tuple(str(digit) for digit in range(10)),
        preprocess=PREPROCESS,
        versions={"torch": torch.__version__, "onnx": onnx.__version__},
    )
