"""Training the digits members on the train split alone, with augmentation and fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from export.networks import FULL_SCALE, Architecture, ConvNet

BATCH_ROWS = 64
PEAK_LEARNING_RATE = 4e-3
MAX_ROTATION_RAD = math.radians(12)
MAX_SHIFT = 0.25  # of half the image: one pixel
SCALE_RANGE = 0.15
NOISE = 1.0  # standard deviation, on the 0 to 16 scale


def augment(images: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Every image rotated, scaled, shifted and made noisy at random.

    Args:
        images: float32 (n, 1, 8, 8), values 0 to 16.
        generator: of the random numbers.
        strength: of shift, scale and noise, from 0 to 1.

    Returns:
        float32 (n, 1, 8, 8).
    """
    count = len(images)

    def uniform(reach: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * reach

    angle, scale = uniform(MAX_ROTATION_RAD), 1 + uniform(SCALE_RANGE * strength)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) * scale
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle) * scale, torch.sin(angle) * scale
    theta[:, 0, 2], theta[:, 1, 2] = uniform(MAX_SHIFT * strength), uniform(MAX_SHIFT * strength)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
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
    """A trained network in evaluation mode.

    Args:
        architecture: which network.
        images: float32 (n, 1, 8, 8), values 0 to 16.
        labels: int64 (n,).
        seed: of weights, order and augmentation.
        progress: told after each epoch.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ConvNet(architecture).train()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = architecture.epochs * math.ceil(len(x) / BATCH_ROWS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LEARNING_RATE, total_steps=steps)
    for epoch in range(architecture.epochs):
        for part in torch.randperm(len(x), generator=generator).split(BATCH_ROWS):
            loss = functional.cross_entropy(
                model(augment(x[part], generator, architecture.augmentation)), y[part], label_smoothing=0.05
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1)
    return model.eval()
