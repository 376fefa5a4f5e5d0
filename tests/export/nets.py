"""Networks that the tests of `torch:` sources name."""

from __future__ import annotations

import torch
from torch import nn


def small() -> nn.Module:
    """Image (n, 3, 8, 8) in, logits (n, 5) out."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(36, 5))


def pooled(classes: int = 7) -> nn.Module:
    """Image (n, 3, h, w) of any size in, logits out."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, classes),
    )  # fmt: skip


def pooled_to_five() -> nn.Module:
    """The same with fewer classes."""
    return pooled(5)


def no_module() -> int:
    """Something else."""
    return 1


def needs_more(width: int) -> nn.Module:
    """Cannot be called without arguments."""
    return nn.Linear(width, 2)


class FixedBatch(nn.Module):
    """Takes exactly two rows."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (2, 4)."""
        return image.reshape(2, 4, -1).sum(dim=2)
