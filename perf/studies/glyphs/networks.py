"""A family of small residual networks for grey images, scaled together in resolution, width and depth.

Compound scaling as in EfficientNet (Tan and Le, 2019), with plain 3x3 convolutions: on a CPU they train several
times faster than depthwise ones of the same cost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import nn

from perf.studies.glyphs.data import CLASSES


@dataclass(frozen=True, kw_only=True)
class GlyphsNet:
    """One size of the family.

    Args:
        resolution_px: side of the image that the network looks at; the graph shrinks the 32 pixels to it.
        width: channels of the first group; the second has twice as many, the third four times.
        blocks: residual blocks in each of the three groups.
        epochs: passes over the training rows.
        also_px: other resolutions that training batches take in turn, for a network that is asked at several.
    """

    resolution_px: int
    width: int
    blocks: int
    epochs: int
    also_px: Sequence[int] = ()


# From 0.2 to 26 million multiply-accumulates per row. Small networks are cheap to train for longer and need it.
FAMILY = {
    "glyphs_b0": GlyphsNet(resolution_px=16, width=8, blocks=1, epochs=24),
    "glyphs_b1": GlyphsNet(resolution_px=20, width=12, blocks=1, epochs=24),
    "glyphs_b2": GlyphsNet(resolution_px=24, width=16, blocks=1, epochs=24),
    "glyphs_b3": GlyphsNet(resolution_px=28, width=24, blocks=1, epochs=18),
    "glyphs_b4": GlyphsNet(resolution_px=32, width=32, blocks=1, epochs=15),
    "glyphs_b5": GlyphsNet(resolution_px=32, width=32, blocks=2, epochs=14),
}
FAMILY_SEEDS = (0, 1)
# One network that is asked at 20 pixels first and at 32 after that.
SELF = GlyphsNet(resolution_px=32, width=24, blocks=1, epochs=18, also_px=(20,))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width_in != width_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResidualNet(nn.Module):
    """Half the resolution at once, three groups of blocks, the mean over the image, a linear head.

    Takes float32 (n, 1, r, r) of any r, normalised; returns logits (n, k).
    """

    def __init__(self, size: GlyphsNet, classes: int = len(CLASSES)) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, size.width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(size.width),
            nn.ReLU(),
        ]
        width = size.width
        for group in range(3):
            for block in range(size.blocks):
                out = size.width * 2**group
                layers.append(_Block(width, out, 2 if group and not block else 1))
                width = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (n, k)."""
        return self.head(self.body(image).mean(dim=(2, 3)))


BATCH_ROWS = 128
PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.02
MAX_ROTATION_RAD = math.radians(8)
MAX_SHIFT = 0.1  # of half the image
SCALE_RANGE = 0.1


def train(
    size: GlyphsNet,
    images: Mapping[int, npt.NDArray[np.float32]],
    labels: npt.NDArray[np.int64],
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> ResidualNet:
    """A trained network in evaluation mode.

    Args:
        size: which network.
        images: resolution in pixels -> float32 (n, 1, r, r), as they come out of the image processing; for
            `size.resolution_px` and each of `size.also_px`.
        labels: int64 (n,).
        seed: of weights, order and augmentation.
        progress: told after each epoch.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    # Channels last and 16-bit products: measured 2.3 times as fast as the plain form on a two-core CPU.
    model = ResidualNet(size).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    tensors = [torch.from_numpy(images[side]) for side in (size.resolution_px, *size.also_px)]
    y = torch.from_numpy(labels)
    steps = size.epochs * math.ceil(len(y) / BATCH_ROWS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LEARNING_RATE, total_steps=steps)
    step = 0
    for epoch in range(size.epochs):
        for rows in torch.randperm(len(y), generator=generator).split(BATCH_ROWS):
            x = augmented(tensors[step % len(tensors)][rows], generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            functional.cross_entropy(logits.float(), y[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            step += 1
        if progress is not None:
            progress(epoch + 1)
    return model.eval()


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image turned, scaled and shifted a little, and half of them with ink and paper exchanged.

    Args:
        images: float32 (n, 1, r, r), zero in the middle of their range.
        generator: of the random numbers.

    Returns:
        float32 (n, 1, r, r).
    """
    moved = moved_at_random(
        images, generator, rotation_rad=MAX_ROTATION_RAD, scale=SCALE_RANGE, shift=MAX_SHIFT, padding="border"
    )
    inverted = torch.rand(len(images), generator=generator) < 0.5
    return moved * torch.where(inverted, 1.0, -1.0)[:, None, None, None]


def moved_at_random(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    rotation_rad: float,
    scale: float,
    shift: float,
    padding: str,
) -> torch.Tensor:
    """Every image rotated, scaled and shifted at random, up to the given reach.

    Args:
        images: float32 (n, 1, h, w).
        generator: of the random numbers.
        rotation_rad: largest rotation.
        scale: largest change of size, as a share.
        shift: largest shift, as a share of half the image.
        padding: what lies outside an image, in `grid_sample`'s words.

    Returns:
        float32 (n, 1, h, w).
    """
    count = len(images)

    def uniform(reach: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * reach

    angle, size = uniform(rotation_rad), 1 + uniform(scale)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) * size
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle) * size, torch.sin(angle) * size
    theta[:, 0, 2], theta[:, 1, 2] = uniform(shift), uniform(shift)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode=padding, align_corners=False)
