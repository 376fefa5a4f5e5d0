"""Models of torchvision, where it is installed and fits the torch beside it."""

from __future__ import annotations

from typing import Any

import torch

from export.images.processing import Processing
from export.sources.base import Asked, Identity, Loaded, member_name, nearest
from export.sources.timm_models import transformed
from orchestrator.errors import ExportError


def identify_torchvision(what: str, asked: Asked, *, models: Any = None) -> Identity:
    """Which weights `torchvision:<name>` means: the default ones.

    Args:
        what: a name of torchvision.models.list_models().
        asked: the options.
        models: the `torchvision.models` package; None imports it.

    Raises:
        ExportError: torchvision is not usable or knows no such model, or its weights cannot be had.
    """
    models = models or _package(what)
    if what not in models.list_models():
        raise ExportError(f"torchvision:{what}", got="no such model", fix=nearest(what, models.list_models()))
    weights = models.get_model_weights(what).DEFAULT
    return Identity(
        text=f"torchvision:{what}",
        name=member_name(what),
        files={"weights": str(weights), "random": str(asked.random_weights)},
        load=lambda: _load(models, what, weights, asked),
        image_px=lambda: _processing(weights.transforms(), asked).image_px(),
    )


def _package(what: str) -> Any:
    try:
        from torchvision import models
    # Beside a torch it was not built for it fails with a RuntimeError about a missing operator.
    except (ImportError, RuntimeError) as error:
        raise ExportError(
            f"torchvision:{what}",
            got=f"no usable torchvision ({error})",
            expected="one that fits your torch",
            fix="pip install torchvision, or use the same network of transformers: hf:<id>",
        ) from error
    return models


def _load(models: Any, what: str, weights: Any, asked: Asked) -> Loaded:
    torch.manual_seed(asked.seed)
    try:
        model = models.get_model(what, weights=None if asked.random_weights else weights).eval()
    # URLError, OSError and RuntimeError, depending on where the download stops.
    except Exception as error:
        raise ExportError(
            f"torchvision:{what}",
            got=f"weights that cannot be had ({type(error).__name__})",
            expected=f"{weights.url.rpartition('/')[2]} in the torch hub cache",
            fix=f"bring that file to {torch.hub.get_dir()}/checkpoints, or use --random-weights",
        ) from error
    transform = weights.transforms()
    processing = _processing(transform, asked)
    own = processing == processing_from_torchvision(transform)
    sides = processing.network_px()
    assert sides is not None
    return Loaded(
        network=model,
        dims=(3, *sides),
        processing=processing,
        own_processor=(lambda rows: transformed(transform, rows)) if own else None,
        own_processor_name="torchvision transforms" if own else "",
        labels=tuple(weights.meta["categories"]) or None,
        versions={"torch": torch.__version__},
    )


def _processing(transform: Any, asked: Asked) -> Processing:
    by_hand = asked.processing("torchvision")
    if by_hand is not None:
        return by_hand
    processing = processing_from_torchvision(transform)
    return processing.at(asked.resolution_px) if asked.resolution_px else processing


def processing_from_torchvision(transform: Any) -> Processing:
    """The processing of a torchvision classification preset."""
    return Processing(
        shortest_px=int(transform.resize_size[0]),
        filter=str(transform.interpolation.value),
        crop_px=(int(transform.crop_size[0]),) * 2,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
