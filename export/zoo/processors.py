"""Image processing of the zoo's families, as their checkpoints' `preprocessor_config.json` has it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
# Pillow's numbers of its filters.
NEAREST, BILINEAR, BICUBIC = 0, 2, 3


def processor_of(family: str, resolution_px: int) -> dict[str, Any]:
    """Settings of the image processor of a family's networks.

    Args:
        family: of the zoo.
        resolution_px: side of the image the network takes.
    """
    return _PROCESSORS[family](resolution_px)


def _efficientnet_processor(side: int) -> dict[str, Any]:
    # The checkpoints' processor divides by the deviation twice (include_top), hence its square root here.
    root = [math.sqrt(deviation) for deviation in IMAGENET_STD]
    settings = _processor("EfficientNet", NEAREST, _square(side), None, IMAGENET_MEAN, root)
    return {**settings, "rescale_offset": False, "include_top": True}


def _resnet_processor(side: int) -> dict[str, Any]:
    # ConvNeXt's processor resizes the shorter side to size / crop_pct and crops the middle by itself.
    size = {"shortest_edge": side}
    return {**_processor("ConvNext", BICUBIC, size, None, IMAGENET_MEAN, IMAGENET_STD), "crop_pct": 0.875}


def _mobilenet_processor(side: int) -> dict[str, Any]:
    # 32 px around the crop whatever its size: what the checkpoints were converted with.
    return _processor("MobileNetV2", BILINEAR, {"shortest_edge": side + 32}, _square(side), HALF, HALF)


def _vit_processor(side: int) -> dict[str, Any]:
    return _processor("ViT", BILINEAR, _square(side), None, HALF, HALF)


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _processor(
    kind: str, resample: int, size: dict[str, int], crop: dict[str, int] | None, mean: Any, std: Any
) -> dict[str, Any]:
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": resample,
        "do_center_crop": crop is not None,
        **({"crop_size": crop} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


_PROCESSORS: dict[str, Callable[[int], dict[str, Any]]] = {
    "EfficientNet": _efficientnet_processor,
    "ResNet": _resnet_processor,
    "MobileNetV2": _mobilenet_processor,
    "ViT": _vit_processor,
}
