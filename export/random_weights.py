"""Making a network with random weights answer like one: some rows surely, others not.

For cost and speed work only. Freshly drawn networks give every row nearly the same scores, so no threshold splits
them. Three mends: convolutions are drawn so that they keep the size of their signal (He et al. 2015), which some
libraries leave to the training; batch normalisation gets the statistics its layers would have learnt; and the head
is centred and scaled until the top probability spreads over 0.1 to 0.9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from orchestrator.errors import ExportError

# Rows that go through the network together while statistics are taken; EfficientNet-B7 needs about 0.3 GB a row.
_CHUNK = 4
_TARGET = 0.5


def spread_scores(network: nn.Module, images: np.ndarray[Any, Any], *, seed: int = 0) -> dict[str, float]:
    """Changes the network in place.

    Args:
        network: image in, logits out; in evaluation mode before and after.
        images: float32 (n, c, h, w), at least 16 varied rows.
        seed: of the convolutions.

    Returns:
        quantiles of the top probability over the rows.

    Raises:
        ExportError: the network has no linear head, or its answers do not differ between rows.
    """
    rows = torch.from_numpy(np.ascontiguousarray(images))
    torch.manual_seed(seed)
    for module in network.modules():
        # Those with a bias stand outside batch normalisation, such as the gates of squeeze-and-excitation: drawn
        # wide they saturate, and a gate that is open or shut in every block leaves one row with all the signal.
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight)
    _learn_statistics(network, rows)
    head = _head(network)
    with torch.inference_mode():
        logits = torch.cat([network(part) for part in rows.split(_CHUNK)]).double()
    centred = logits - logits.mean(dim=0)
    if not torch.isfinite(centred).all() or centred.abs().max() < 1e-6:
        raise ExportError("random weights", got="the same answer for every row", fix="try another --seed")
    scale = _scale(centred)
    with torch.no_grad():
        # logits' = scale * (logits - mean): the weights take the scale, the bias the shift.
        head.weight.mul_(scale)
        assert head.bias is not None
        old = head.bias.double()
        head.bias.copy_(((old - logits.mean(dim=0)) * scale).to(head.bias.dtype))
    top = torch.softmax(centred * scale, dim=1).max(dim=1).values
    return {f"q{round(100 * q):02d}": round(float(torch.quantile(top, q)), 4) for q in (0.05, 0.5, 0.95)}


def _scale(centred: torch.Tensor) -> float:
    """The factor at which the median top probability is in the middle."""
    low, high = 0.0, 1.0
    while _median_top(centred, high) < _TARGET and high < 1e9:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _median_top(centred, middle) < _TARGET else (low, middle)
    return high


def _median_top(centred: torch.Tensor, scale: float) -> float:
    return float(torch.softmax(centred * scale, dim=1).max(dim=1).values.median())


def _learn_statistics(network: nn.Module, rows: torch.Tensor) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        # Scale and shift too: some libraries draw them near zero, and the signal dies.
        norm.reset_parameters()
        # None averages all batches alike.
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for part in rows.split(_CHUNK):
            network(part)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()


def _head(network: nn.Module) -> nn.Linear:
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ExportError("random weights", got="a network without a linear head", expected="a classifier")
    head = linear[-1]
    if head.bias is None:
        head.bias = nn.Parameter(torch.zeros(head.out_features))
    return head
