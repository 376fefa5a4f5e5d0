"""Small convolutional networks for 8x8 grey images; scaling happens inside, so members take raw values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

# scikit-learn's digits count dark pixels of 4x4 blocks, so values run from 0 to 16.
FULL_SCALE = 16.0


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network and how long it is trained.

    Args:
        channels: output channels of each 3x3 convolution.
        strides: stride of each.
        hidden: width of a hidden dense layer, 0 for none.
        epochs: passes over the training rows.
        augmentation: strength of it, 1 for all of what training.py allows.
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
