"""Models of timm, where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from export.images.processing import Processing
from export.sources.base import Asked, Identity, Loaded, Rows, member_name, nearest
from orchestrator.errors import ExportError


def identify_timm(what: str, asked: Asked, *, timm: Any = None) -> Identity:
    """Which weights `timm:<name>` means: the pretrained ones of that tag.

    Args:
        what: a timm model name, with or without its tag.
        asked: the options.
        timm: the package; None imports it.

    Raises:
        ExportError: timm is not installed or knows no such model, or its weights cannot be had.
    """
    timm = timm or _package(what)
    if not timm.is_model(what.partition(".")[0]):
        raise ExportError(f"timm:{what}", got="no such model", fix=nearest(what, timm.list_models()))
    return Identity(
        text=f"timm:{what}",
        name=member_name(what.replace(".", "_")),
        files={"timm": timm.__version__, "name": what, "random": str(asked.random_weights)},
        load=lambda: _load(timm, what, asked),
        image_px=lambda: _processing(timm, timm.get_pretrained_cfg(what).to_dict(), asked).image_px(),
    )


def _package(what: str) -> Any:
    try:
        import timm
    # A torchvision that does not fit torch fails with a RuntimeError while timm imports it.
    except (ImportError, RuntimeError) as error:
        raise ExportError(
            f"timm:{what}",
            got=f"no timm ({error})",
            expected="it installed",
            fix="pip install timm, with the torchvision that fits your torch",
        ) from error
    return timm


def _load(timm: Any, what: str, asked: Asked) -> Loaded:
    torch.manual_seed(asked.seed)
    try:
        model = timm.create_model(what, pretrained=not asked.random_weights).eval()
    # Hub, disk and weight errors share no base.
    except Exception as error:
        raise ExportError(
            f"timm:{what}",
            got=f"weights that cannot be had ({type(error).__name__})",
            expected="the published ones",
            fix=f"where there is a network run `hf download timm/{what} --local-dir FOLDER`, bring FOLDER "
            "into the hub's cache here, or use --random-weights",
        ) from error
    processing = _processing(timm, model.pretrained_cfg, asked)
    sides = processing.network_px()
    assert sides is not None
    config = timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    own = processing == processing_from_timm(config)
    transform = timm.data.create_transform(**config, is_training=False) if own else None
    return Loaded(
        network=model,
        dims=(processing.channels, *sides),
        processing=processing,
        own_processor=None if transform is None else lambda rows: transformed(transform, rows),
        own_processor_name="" if transform is None else "timm transform",
        versions={"torch": torch.__version__, "timm": timm.__version__},
    )


def _processing(timm: Any, pretrained_cfg: Any, asked: Asked) -> Processing:
    by_hand = asked.processing("timm")
    if by_hand is not None:
        return by_hand
    processing = processing_from_timm(timm.data.resolve_data_config({}, pretrained_cfg=pretrained_cfg))
    return processing.at(asked.resolution_px) if asked.resolution_px else processing


def processing_from_timm(config: dict[str, Any]) -> Processing:
    """The processing of a timm data config: resize the shorter side to size / crop_pct, then crop."""
    channels, height, width = config["input_size"]
    share = float(config.get("crop_pct") or 0.875)
    squash = config.get("crop_mode") == "squash"
    return Processing(
        resize_px=(int(height / share), int(width / share)) if squash else None,
        shortest_px=None if squash else int(height / share),
        filter=str(config.get("interpolation", "bilinear")).replace("random", "bilinear"),
        crop_px=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        channels=channels,
    )


def transformed(transform: Any, rows: Rows) -> Rows:
    """Images through a torchvision-like transform of one PIL image; uint8 (n, c, H, W) -> float32 (n, c, h, w)."""
    return np.stack([transform(Image.fromarray(np.moveaxis(row, 0, -1))).numpy() for row in rows])
