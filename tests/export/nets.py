"""Networks that the tests of `torch:` sources name."""

from collections.abc import Callable
from typing import Any

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
    return pooled(5)


def no_module() -> int:
    return 1


def needs_more(width: int) -> nn.Module:
    return nn.Linear(width, 2)


class FixedBatch(nn.Module):
    """Takes exactly two rows."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.reshape(2, 4, -1).sum(dim=2)


class Gives(nn.Module):
    """Whatever it is told to make of an image."""

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, image: torch.Tensor) -> Any:
        return self.make(image)


def flat(image: torch.Tensor) -> torch.Tensor:
    """The first five values of each row."""
    return image.flatten(1)[:, :5]


def gives_a_dict() -> nn.Module:
    return Gives(lambda image: {"logits": flat(image)})


def gives_three_axes() -> nn.Module:
    return Gives(lambda image: flat(image).unsqueeze(2))


def raises() -> nn.Module:
    def fail(image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    return Gives(fail)


def not_finite() -> nn.Module:
    return Gives(lambda image: flat(image) + float("inf"))


def zeros() -> nn.Module:
    """Zero for everything, as a head that was never trained may give."""
    return Gives(lambda image: flat(image) * 0)


def soft() -> nn.Module:
    return Gives(lambda image: flat(image).softmax(dim=1))
