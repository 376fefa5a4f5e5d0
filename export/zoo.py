"""The families of networks that cascades are usually made of, by short name, each at its own resolution.

Built with transformers' own classes, so that a hub checkpoint of the same name loads into them, with 1000 classes.
"""

import difflib
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ExportError

# Imports here and inside functions: both packages are optional and take seconds.
if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig


CLASSES = 1000
# What EfficientNet's stem and each of its seven stages do to the size, and how often a stage repeats at depth 1.
STRIDES = (1, 2, 2, 2, 1, 2, 1)
REPEATS = (1, 2, 2, 3, 3, 4, 1)


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One network at one resolution."""

    name: str
    family: str  # of the architecture: what transformers calls its classes
    resolution_px: int  # side of the square image it takes
    hub_id: str | None  # the usual hub checkpoint; None where no checkpoint of that resolution is known there
    settings: Mapping[str, Any] = field(hash=False)  # of its config, besides classes and image size

    def config(self, resolution_px: int | None = None) -> "PretrainedConfig":
        """The config of a network with 1000 classes; ExportError where it cannot take that resolution."""
        # Optional, and slow to import.
        import transformers

        settings = dict(self.settings)
        size = self.resolution_px if resolution_px is None else resolution_px
        multiple = {"ViT": self.settings.get("patch_size", 1), "EfficientNet": 2}.get(self.family, 1)
        # Below 32 a feature map shrinks to nothing. EfficientNet's stem in transformers pads for even sizes only.
        if size < 32 or size % multiple:
            expected = f"a multiple of {multiple}, at least 32 px"
            raise ExportError(f"resolution of {self.name}", got=f"{size} px", expected=expected)
        if self.family == "EfficientNet":
            settings["depthwise_padding"] = same_padding_blocks(settings["depth_coefficient"], size)
        if self.family != "ResNet":
            settings["image_size"] = size
        kind: Callable[..., PretrainedConfig] = getattr(transformers, f"{self.family}Config")
        return kind(num_labels=CLASSES, **settings)

    @property
    def processor(self) -> dict[str, Any]:
        """Settings of its image processor, as `preprocessor_config.json` has them."""
        return processor_of(self.family, self.resolution_px)


def same_padding_blocks(depth: float, resolution_px: int) -> list[int]:
    """Blocks of an EfficientNet, from 0, whose stride-2 convolution meets an odd size: its `depthwise_padding`.

    The original pads so that a stride of 2 makes ceil(size / 2). transformers fixes the padding at construction:
    one pixel less on the top and left for even sizes, equal on all sides in the blocks listed. Without the list B7
    at 600 px goes on with 37 instead of 38 pixels, and costs 6 % too little.
    """
    size, block, found = -(-resolution_px // 2), 0, []
    for stride, repeats in zip(STRIDES, REPEATS, strict=True):
        if stride == 2:
            if size % 2:
                found.append(block)
            size = -(-size // 2)
        block += math.ceil(depth * repeats)
    return found


def entry_from_name(name: str) -> ZooEntry:
    """The entry of that name; the ExportError where there is none suggests the nearest."""
    if name in ZOO:
        return ZOO[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), ZOO, n=3, cutoff=0.5)
    raise ExportError(
        f"model {name}",
        got="no such name in the zoo",
        expected=f"one like {', '.join(near)}" if near else f"one of {', '.join(ZOO)}",
        fix="`python -m export zoo` lists all",
    )


def _efficientnet(variant: int, side: int, *, width: float, depth: float, hidden: int, dropout: float) -> ZooEntry:
    sizes = {"width_coefficient": width, "depth_coefficient": depth, "hidden_dim": hidden, "dropout_rate": dropout}
    name = f"efficientnet_b{variant}"
    return _entry(name, "EfficientNet", side, f"google/efficientnet-b{variant}", **sizes)


def _mobilenet(name: str, side: int, width: float, hub_id: str | None) -> ZooEntry:
    return _entry(name, "MobileNetV2", side, hub_id, depth_multiplier=width)


def _resnet(layers: int, *depths: int) -> ZooEntry:
    return _entry(f"resnet{layers}", "ResNet", 224, f"microsoft/resnet-{layers}", depths=list(depths))


def _vit(size: str, side: int, **sizes: int) -> ZooEntry:
    hub_id = f"google/vit-{size}-patch16-{side}"
    return _entry(f"vit_{size[0]}16_{side}", "ViT", side, hub_id, patch_size=16, **sizes)


def _entry(name: str, family: str, side: int, hub_id: str | None, **settings: Any) -> ZooEntry:
    return ZooEntry(name=name, family=family, resolution_px=side, hub_id=hub_id, settings=settings)


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_ENTRIES = (
    _efficientnet(0, 224, width=1.0, depth=1.0, hidden=1280, dropout=0.2),
    _efficientnet(1, 240, width=1.0, depth=1.1, hidden=1280, dropout=0.2),
    _efficientnet(2, 260, width=1.1, depth=1.2, hidden=1408, dropout=0.3),
    _efficientnet(3, 300, width=1.2, depth=1.4, hidden=1536, dropout=0.3),
    _efficientnet(4, 380, width=1.4, depth=1.8, hidden=1792, dropout=0.4),
    _efficientnet(5, 456, width=1.6, depth=2.2, hidden=2048, dropout=0.4),
    _efficientnet(6, 528, width=1.8, depth=2.6, hidden=2304, dropout=0.5),
    _efficientnet(7, 600, width=2.0, depth=3.1, hidden=2560, dropout=0.5),
    _resnet(50, 3, 4, 6, 3),
    _resnet(101, 3, 4, 23, 3),
    _resnet(152, 3, 8, 36, 3),
    # The hub has width 1.0 trained at 224 px only; its MobileNets answer 1001 classes, the first one "background".
    _mobilenet("mobilenet_v2_100_160", 160, 1.0, None),
    _mobilenet("mobilenet_v2_100_192", 192, 1.0, None),
    _mobilenet("mobilenet_v2_100_224", 224, 1.0, "google/mobilenet_v2_1.0_224"),
    _mobilenet("mobilenet_v2_140_224", 224, 1.4, "google/mobilenet_v2_1.4_224"),
    _vit("base", 224),
    _vit("base", 384),
    _vit("large", 224, **_LARGE),
    _vit("large", 384, **_LARGE),
)
ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in _ENTRIES}


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
# Pillow's numbers of its filters.
NEAREST, BILINEAR, BICUBIC = 0, 2, 3


def processor_of(family: str, resolution_px: int) -> dict[str, Any]:
    """Settings of the image processor of a family's networks."""
    square = {"height": resolution_px, "width": resolution_px}
    if family == "EfficientNet":
        # The checkpoints' processor divides by the deviation twice (include_top), hence its square root here.
        root = [math.sqrt(deviation) for deviation in IMAGENET_STD]
        settings = _processor(family, NEAREST, square, None, IMAGENET_MEAN, root)
        return {**settings, "rescale_offset": False, "include_top": True}
    if family == "ResNet":
        # ConvNeXt's processor resizes the shorter side to size / crop_pct and crops the middle by itself.
        size = {"shortest_edge": resolution_px}
        return {**_processor("ConvNext", BICUBIC, size, None, IMAGENET_MEAN, IMAGENET_STD), "crop_pct": 0.875}
    if family == "MobileNetV2":
        # 32 px around the crop whatever its size: what the checkpoints were converted with.
        return _processor(family, BILINEAR, {"shortest_edge": resolution_px + 32}, square, HALF, HALF)
    return _processor(family, BILINEAR, square, None, HALF, HALF)


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


COUNTER = "torch FlopCounterMode / 2"


@dataclass(frozen=True)
class NetworkCost:
    """Size and cost of a network; gmacs are multiply-accumulates per image in billions."""

    params_m: float
    gmacs: float


def network_of(entry: ZooEntry, resolution_px: int | None = None) -> "nn.Module":
    """The classifier with fresh weights, in evaluation mode; seed torch before.

    It takes float32 (n, 3, r, r), and the `logits` of what it gives are float32 (n, 1000).
    """
    # Optional, and slow to import.
    import transformers

    kind: Callable[..., nn.Module] = getattr(transformers, f"{entry.family}ForImageClassification")
    return kind(entry.config(resolution_px)).eval()


@functools.lru_cache(maxsize=256)
def network_cost(entry: ZooEntry, resolution_px: int | None = None) -> NetworkCost:
    """Parameters and multiply-accumulates of one image, without any weight being allocated."""
    side = resolution_px or entry.resolution_px
    # Optional, and slow to import.
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network, image = network_of(entry, side), torch.empty(1, 3, side, side)
    # Eager attention is two plain matrix products, which every release of the counter knows; which fused kernel a
    # device picks, and whether that one is counted, differs between releases.
    config: Any = network.config
    config._attn_implementation = "eager"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    parameters = sum(weight.numel() for weight in network.parameters())
    return NetworkCost(parameters / 1e6, counter.get_total_flops() / 2e9)
