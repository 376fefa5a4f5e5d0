"""A loaded model as a function of the rows its member takes, to compare the member with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from export.sources import Loaded
from orchestrator.spec import TensorSpec


def original_of(loaded: Loaded, tensor: TensorSpec) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """The original on the rows as the member takes them; images go through the graph's processing first.

    Otherwise the one-level differences from the model's own processor, measured apart, would hide the network's.
    """
    network = loaded.reference or _torch_reference(loaded)
    if loaded.processing is None:
        return network
    from export.images.parity import processor_of

    processed = processor_of(loaded.processing, height_px=tensor.dims[1], width_px=tensor.dims[2])
    return lambda rows: network(processed(rows))


def _torch_reference(loaded: Loaded) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    import torch

    module = loaded.network
    assert module is not None

    def ask(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(rows))).float().numpy()

    return ask
