"""A model's own image processing as plain numbers: resize, centre crop, scale, normalise.

Every source of models describes it differently; this is the one form the graph is built from. What a description
says and this form cannot is refused; `export.images.parity` measures the rest against the model's own processor.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ExportError

# Pillow's numbers of its filters, which processor files use.
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# From this size on ConvNeXt's processor resizes to a square; below it crops.
_WARP_FROM_PX = 384
# Switches of processor files that the graph has no nodes for.
_UNSUPPORTED = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_color_quantize", "do_splits", "size_divisor")


@dataclass(frozen=True, kw_only=True)
class Processing:
    """What happens to an image before the network.

    Args:
        resize_px: (height, width) to resize to; None leaves the size.
        shortest_px: resize so that the shorter side has this length, instead of resize_px.
        filter: one of FILTERS' names, antialiased when it shrinks, as Pillow does.
        crop_px: (height, width) of the centre crop; None for none.
        scale: pixels 0 to 255 are multiplied by it.
        offset: added after scaling.
        mean, std: per channel, subtracted and divided after that.
        channels: 3 (RGB) or 1 (grey).
        reverse_channels: True where the network wants BGR.
        vertical_first: resize the vertical axis before the horizontal one. Pillow did the horizontal one first for
            ten years; 13.0 picks per size. Whole levels are kept between the two, so the order shows.
    """

    resize_px: tuple[int, int] | None = None
    shortest_px: int | None = None
    filter: str = "bilinear"
    crop_px: tuple[int, int] | None = None
    scale: float = 1 / 255
    offset: float = 0.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channels: int = 3
    reverse_channels: bool = False
    vertical_first: bool = False

    def resized_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Size of an image of that size after resizing, before the crop."""
        if self.resize_px is not None:
            return self.resize_px
        if self.shortest_px is None:
            return height_px, width_px
        short, long = sorted((height_px, width_px))
        longer = int(self.shortest_px * long / short)
        return (self.shortest_px, longer) if height_px <= width_px else (longer, self.shortest_px)

    def network_px(self) -> tuple[int, int] | None:
        """(height, width) the network sees, or None where it depends on the image."""
        if self.crop_px is not None:
            return self.crop_px
        if self.resize_px is not None:
            return self.resize_px
        return None if self.shortest_px is None else (self.shortest_px, self.shortest_px)

    def image_px(self) -> tuple[int, int] | None:
        """(height, width) of the smallest image that loses nothing: what it would be resized to."""
        if self.shortest_px is not None:
            return self.shortest_px, self.shortest_px
        return self.resize_px or self.crop_px

    def at(self, resolution_px: int) -> "Processing":
        """The processing for a network at another resolution; the share that a crop keeps stays.

        Raises:
            ExportError: the size the network sees is not fixed.
        """
        old = self.network_px()
        if old is None:
            raise ExportError(
                "`resolution_px`", got="a model without a size of its own", expected="one that resizes"
            )
        ratio_h, ratio_w = resolution_px / old[0], resolution_px / old[1]
        resize = self.resize_px and (round(self.resize_px[0] * ratio_h), round(self.resize_px[1] * ratio_w))
        return dataclasses.replace(
            self,
            resize_px=resize,
            shortest_px=self.shortest_px and round(self.shortest_px * min(ratio_h, ratio_w)),
            crop_px=self.crop_px and (resolution_px, resolution_px),
        )


def processing_from_config(config: Mapping[str, Any], subject: str, *, channels: int = 3) -> Processing:
    """The processing a `preprocessor_config.json` describes.

    Raises:
        ExportError: it asks for something the graph cannot do, or is not the file of an image processor.
    """
    asked = [key for key in _UNSUPPORTED if config.get(key)]
    if asked:
        raise ExportError(
            subject, got=", ".join(asked), expected="resize, centre crop, rescale and normalise", fix=_BY_HAND
        )
    try:
        return _processing(config, channels)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            subject,
            got=f"settings that cannot be read ({error})",
            expected="those of an image processor",
            fix=_BY_HAND,
        ) from error


_BY_HAND = "give `mean`, `std` and `resolution_px` by hand"


def _processing(config: Mapping[str, Any], channels: int) -> Processing:
    resize, shortest, crop = _sizes(config)
    for sides in (resize or (), (shortest,) if shortest is not None else (), crop or ()):
        if any(side < 1 for side in sides):
            raise ValueError(f"a size of {'x'.join(map(str, sides))}")
    std = _per_channel(config.get("image_std", 1.0), channels)
    mean = _per_channel(config.get("image_mean", 0.0), channels)
    kind = str(config.get("image_processor_type", ""))
    # A missing switch means the default of the processor's class; only MobileViT does not normalise by default.
    if not config.get("do_normalize", "MobileViT" not in kind):
        mean, std = (0.0,) * channels, (1.0,) * channels
    if "EfficientNet" in kind and config.get("include_top", True):
        # That processor divides by the deviation twice, as the network was trained to expect.
        second = _per_channel(config.get("image_std", 1.0), channels)
        std = tuple(a * b for a, b in zip(std, second, strict=True))
    scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    return Processing(
        resize_px=resize,
        shortest_px=shortest,
        filter=FILTERS[2 if config.get("resample") is None else int(config["resample"])],
        crop_px=crop,
        scale=scale,
        offset=-1.0 if config.get("rescale_offset") else 0.0,
        mean=mean,
        std=std,
        channels=channels,
        reverse_channels=bool(config.get("do_flip_channel_order", False)),
    )


def _sizes(config: Mapping[str, Any]) -> tuple[tuple[int, int] | None, int | None, tuple[int, int] | None]:
    """(resize, shorter side, crop) of a processor file."""
    crop = _pair(config["crop_size"]) if config.get("do_center_crop") else None
    if not config.get("do_resize", True):
        return None, None, crop
    size = config["size"]
    if isinstance(size, int) and "ConvNext" in str(config.get("image_processor_type", "")):
        # In old files of that processor the number is the side after the crop.
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and "shortest_edge" in size:
        edge = int(size["shortest_edge"])
        if size.get("longest_edge"):
            raise ValueError("size with a longest edge")
        if "crop_pct" not in config and "ConvNext" not in str(config.get("image_processor_type", "")):
            return None, edge, crop
        if edge >= _WARP_FROM_PX:
            return (edge, edge), None, crop
        return None, int(edge / float(config.get("crop_pct") or 224 / 256)), crop or (edge, edge)
    if isinstance(size, int) and crop is not None:
        # Old processor files: one number is the shorter side where a crop follows, else both sides.
        return None, size, crop
    return _pair(size), None, crop


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    values = tuple(float(x) for x in value) if isinstance(value, list | tuple) else (float(value),) * channels
    if len(values) != channels:
        raise ValueError(f"{len(values)} values for {channels} channels")
    return values
