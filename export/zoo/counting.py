"""Networks of the zoo, and what they cost: counted on tensors without storage, never typed in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from export.zoo.entries import ZOO, ZooEntry

if TYPE_CHECKING:
    from torch import nn

COUNTER = "torch FlopCounterMode / 2"


@dataclass(frozen=True)
class Counted:
    """Size and cost of a network; gmacs are multiply-accumulates per image in billions."""

    params_m: float
    gmacs: float


def network_of(entry: ZooEntry, resolution_px: int | None = None) -> nn.Module:
    """The classifier with fresh weights; seed torch before.

    Args:
        entry: which network.
        resolution_px: another than the entry's own.

    Returns:
        in evaluation mode; float32 (n, 3, r, r) -> an output whose `logits` are float32 (n, 1000).
    """
    import transformers

    kind: Callable[..., nn.Module] = getattr(transformers, f"{entry.architecture}ForImageClassification")
    return kind(entry.config(resolution_px)).eval()


def counted_of(entry: ZooEntry, resolution_px: int | None = None) -> Counted:
    """Parameters and multiply-accumulates of one image, without any weight being allocated.

    Args:
        entry: which network.
        resolution_px: another than the entry's own.
    """
    return _counted(entry.name, resolution_px or entry.resolution_px)


@functools.lru_cache(maxsize=256)
def _counted(name: str, resolution_px: int) -> Counted:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = network_of(ZOO[name], resolution_px)
        image = torch.empty(1, 3, resolution_px, resolution_px)
    # Eager attention is two plain matrix products, which every release of the counter knows; which fused kernel a
    # device picks, and whether that one is counted, differs between releases.
    config: Any = network.config
    config._attn_implementation = "eager"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    parameters = sum(weight.numel() for weight in network.parameters())
    return Counted(parameters / 1e6, counter.get_total_flops() / 2e9)
