"""A family of small residual networks for grey images, scaled together in resolution, width and depth.

Compound scaling as in EfficientNet (Tan and Le, 2019), with plain 3x3 convolutions: on a CPU they train several
times faster than depthwise ones of the same cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from export.glyphs.data import CLASSES


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
