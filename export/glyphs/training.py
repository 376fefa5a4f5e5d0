"""Training a network of the glyphs family on the train part alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from export.glyphs.networks import GlyphsNet, ResidualNet

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
    model = ResidualNet(size).train().to(memory_format=torch.channels_last)
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
    count = len(images)

    def uniform(reach: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * reach

    angle, scale = uniform(MAX_ROTATION_RAD), 1 + uniform(SCALE_RANGE)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) * scale
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle) * scale, torch.sin(angle) * scale
    theta[:, 0, 2], theta[:, 1, 2] = uniform(MAX_SHIFT), uniform(MAX_SHIFT)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved * torch.where(torch.rand(count, generator=generator) < 0.5, 1.0, -1.0)[:, None, None, None]
