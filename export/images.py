"""A model's own image processing: as plain numbers, and as the first nodes of its graph.

Every source of models describes it differently; `Processing` is the one form that the graph is built from. What a
description says and this form cannot is refused; `export.parity` measures the rest against the model's own.

With it one uint8 image serves members of any resolution, and a client sends a quarter of the bytes. A resize
between two fixed sizes is one constant matrix per axis: exact for any filter, antialiased ones included, and made
of MatMul, which every runtime has (TensorRT's parser has no antialiased Resize). Pillow rounds to whole levels
after each axis, and so do we. A matrix of an antialiased filter is a narrow band; long ones are cut into blocks
that skip the zeros.

All names begin with "preprocess/", so that cost, precision and fusing can tell these nodes from the network's.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from orchestrator.errors import ExportError
from orchestrator.graphs.combining import IR_VERSION, OPSET
from orchestrator.graphs.editing import full_check, opset_of, rename_tensors

# Pillow's numbers of its filters, which processor files use.
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# From this size on ConvNeXt's processor resizes to a square; below it crops.
_WARP_FROM_PX = 384
# Switches of processor files that the graph has no nodes for.
_UNSUPPORTED = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_color_quantize", "do_splits", "size_divisor")


@dataclass(frozen=True, kw_only=True)
class Processing:
    """What happens to an image before the network."""

    resize_px: tuple[int, int] | None = None  # (height, width) to resize to; None leaves the size
    shortest_px: int | None = None  # resize so that the shorter side has this length, instead of resize_px
    filter: str = "bilinear"  # one of FILTERS' names, antialiased when it shrinks, as Pillow does
    crop_px: tuple[int, int] | None = None  # (height, width) of the centre crop; None for none
    scale: float = 1 / 255  # pixels 0 to 255 are multiplied by it
    offset: float = 0.0  # added after scaling
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # per channel; subtracted, before std divides
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channels: int = 3  # 3 (RGB) or 1 (grey)
    reverse_channels: bool = False  # True where the network wants BGR
    # Resize the vertical axis before the horizontal one. Pillow did the horizontal one first for ten years;
    # 13.0 picks per size. Whole levels are kept between the two, so the order shows.
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
        return self.crop_px or self.resize_px or self._square()

    def image_px(self) -> tuple[int, int] | None:
        """(height, width) of the smallest image that loses nothing: what it would be resized to."""
        return self._square() or self.resize_px or self.crop_px

    def _square(self) -> tuple[int, int] | None:
        return None if self.shortest_px is None else (self.shortest_px, self.shortest_px)

    def at(self, resolution_px: int) -> "Processing":
        """The processing for a network at another resolution; the share that a crop keeps stays.

        Raises ExportError where the size the network sees is not fixed.
        """
        old = self.network_px()
        if old is None:
            got = "a model without a size of its own"
            raise ExportError("`resolution_px`", got=got, expected="one that resizes")
        ratio_h, ratio_w = resolution_px / old[0], resolution_px / old[1]
        return dataclasses.replace(
            self,
            resize_px=self.resize_px and (round(self.resize_px[0] * ratio_h), round(self.resize_px[1] * ratio_w)),
            shortest_px=self.shortest_px and round(self.shortest_px * min(ratio_h, ratio_w)),
            crop_px=self.crop_px and (resolution_px, resolution_px),
        )


_BY_HAND = "give `mean`, `std` and `resolution_px` by hand"


def processing_from_config(config: Mapping[str, Any], subject: str, *, channels: int = 3) -> Processing:
    """The processing a `preprocessor_config.json` describes; ExportError for what the graph cannot do."""
    if asked := [key for key in _UNSUPPORTED if config.get(key)]:
        expected = "resize, centre crop, rescale and normalise"
        raise ExportError(subject, got=", ".join(asked), expected=expected, fix=_BY_HAND)
    try:
        return _processing(config, channels)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        got = f"settings that cannot be read ({error})"
        raise ExportError(subject, got=got, expected="those of an image processor", fix=_BY_HAND) from error


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
        std = tuple(a * b for a, b in zip(std, _per_channel(config.get("image_std", 1.0), channels), strict=True))
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


PREFIX = "preprocess/"
IMAGE = f"{PREFIX}image"
INPUT = "image"
# Rows of a resize matrix that are worked on together: small enough to skip most zeros, large enough that a block
# is worth a call. Bicubic 600 -> 224 pixels, one image on one thread of ONNX Runtime: 6.8 ms in one piece, 2.5 in
# blocks of 64, 1.6 in blocks of 16.
BLOCK = 16
# Since then the bounds of Clip are inputs.
_MIN_OPSET = 11


def resize_matrix(size_in: int, size_out: int, filter_name: str) -> npt.NDArray[np.float32]:
    """The resize of one axis as a matrix, float32 (size_out, size_in), rows sum to 1.

    Sample positions and supports are Pillow's (Resample.c): output i looks at (i + 0.5) * in / out, through a
    filter stretched by the ratio when it shrinks.
    """
    matrix = np.zeros((size_out, size_in), np.float64)
    ratio = size_in / size_out
    if filter_name == "nearest":
        # Pillow sums the ratio pixel by pixel, so rounding decides where a position is a whole number.
        places = np.cumsum([ratio * 0.5, *([ratio] * (size_out - 1))]).astype(np.int64)
        matrix[np.arange(size_out), places] = 1
        return matrix.astype(np.float32)
    support, function = _FILTERS[filter_name]
    stretch = max(ratio, 1.0)
    for i in range(size_out):
        centre = (i + 0.5) * ratio
        low = max(int(centre - support * stretch + 0.5), 0)
        high = min(int(centre + support * stretch + 0.5), size_in)
        weights = np.array([function((x + low - centre + 0.5) / stretch) for x in range(high - low)])
        matrix[i, low:high] = weights / weights.sum()
    return matrix.astype(np.float32)


def with_preprocess(
    network: onnx.ModelProto, processing: Processing, *, height_px: int, width_px: int
) -> onnx.ModelProto:
    """The network behind its own image processing, which takes `image` uint8 (n, channels, height_px, width_px).

    The network has one float32 input (n, channels, height, width). Raises ExportError where the processing does
    not end at that size, or the network is too old for it or no valid model.
    """
    old = network.graph.input[0]
    batch = old.type.tensor_type.shape.dim[0]
    graph = _Prefix()
    sides = graph.build(processing, height_px, width_px)
    want = [dim.dim_value for dim in old.type.tensor_type.shape.dim[2:]]
    if any(a and a != b for a, b in zip(want, sides, strict=True)):
        raise ExportError("preprocessing", got=f"{sides[0]}x{sides[1]} pixels", expected=f"{want[0]}x{want[1]}")
    opset = opset_of(network)
    if opset is not None and opset < _MIN_OPSET:
        got = f"a network of opset {opset}"
        fix = f"export it again with opset {OPSET}"
        raise ExportError("image processing in the graph", got=got, expected=f"{_MIN_OPSET} or more", fix=fix)
    merged = onnx.ModelProto()
    merged.CopyFrom(network)
    rename_tensors(merged.graph, {old.name: IMAGE}, reserved={INPUT}, reserved_prefixes=(PREFIX,))
    del merged.graph.input[:]
    merged.graph.input.append(_input(processing, height_px, width_px, batch=batch.dim_param or "batch"))
    nodes = [*graph.nodes, *merged.graph.node]
    del merged.graph.node[:]
    merged.graph.node.extend(nodes)
    merged.graph.initializer.extend(graph.constants)
    full_check(merged, "image processing and network as one")
    return merged


def preprocess_only(processing: Processing, *, height_px: int, width_px: int) -> onnx.ModelProto:
    """The image processing alone, uint8 (n, c, H, W) -> float32 (n, c, h, w), for measuring it."""
    graph = _Prefix()
    sides = graph.build(processing, height_px, width_px)
    body = helper.make_graph(
        graph.nodes,
        "preprocess",
        [_input(processing, height_px, width_px)],
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, ["batch", processing.channels, *sides])],
        initializer=graph.constants,
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _input(processing: Processing, *sides_px: int, batch: str = "batch") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [batch, processing.channels, *sides_px])


@dataclass(frozen=True)
class _Axis:
    """One axis: the part of the input that is used, and the matrix on that part (None: nothing to resize)."""

    first: int
    last: int
    matrix: npt.NDArray[np.float32] | None
    size: int


def _axis(size_in: int, size_resized: int, size_crop: int | None, filter_name: str) -> _Axis:
    size = size_crop or size_resized
    top = (size_resized - size) // 2
    inside = top >= 0
    if size_resized == size_in and inside:
        return _Axis(top, top + size, None, size)
    full = resize_matrix(size_in, size_resized, filter_name) if size_resized != size_in else np.eye(size_in)
    matrix = np.zeros((size, size_in), np.float32)
    # A crop larger than the image leaves black around it, as zero rows do.
    low, high = max(top, 0), min(top + size, size_resized)
    # The left margin takes the larger half of an odd one, as transformers' center_crop pads.
    start = 0 if inside else math.ceil((size - size_resized) / 2)
    matrix[start : start + high - low] = full[low:high]
    used = np.flatnonzero(matrix.any(axis=0))
    first, last = int(used[0]), int(used[-1]) + 1
    return _Axis(first, last, np.ascontiguousarray(matrix[:, first:last]), size)


class _Prefix:
    """Nodes and constants of the image processing, named in order."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._last = INPUT

    def build(self, processing: Processing, height_px: int, width_px: int) -> tuple[int, int]:
        """Adds everything; returns the (height, width) that come out."""
        resized = processing.resized_px(height_px, width_px)
        crop = processing.crop_px or (None, None)
        rows = _axis(height_px, resized[0], crop[0], processing.filter)
        columns = _axis(width_px, resized[1], crop[1], processing.filter)
        # The border that no output pixel depends on is cut off while a pixel is still one byte.
        if (rows.first, rows.last, columns.first, columns.last) != (0, height_px, 0, width_px):
            starts, ends = [rows.first, columns.first], [rows.last, columns.last]
            self._op("Slice", "cut", starts, ends, [2, 3], dtype=np.int64)
        self._op("Cast", "float", to=TensorProto.FLOAT)
        passes = [(columns.matrix, 3, "columns"), (rows.matrix, 2, "rows")]
        for matrix, axis, word in reversed(passes) if processing.vertical_first else passes:
            if matrix is not None:
                self._blocks(matrix, axis=axis, word=word)
                self._whole_levels(word)
        if processing.reverse_channels:
            self._op("Gather", "channels", [2, 1, 0], dtype=np.int64, axis=1)
        self._normalise(processing)
        return rows.size, columns.size

    def _op(self, kind: str, word: str, *constants: Any, dtype: type = np.float32, **attributes: Any) -> None:
        names = [self._constant(f"{word}_{i}", value, dtype) for i, value in enumerate(constants)]
        self._node(kind, [self._last, *names], PREFIX + word, **attributes)

    def _node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self._last = name

    def _constant(self, word: str, value: Any, dtype: type) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), PREFIX + word))
        return PREFIX + word

    def _blocks(self, matrix: npt.NDArray[np.float32], *, axis: int, word: str) -> None:
        """Multiplies one axis by its matrix, in blocks of rows that each use a part of the input only."""
        source, parts = self._last, []
        single = len(matrix) <= 2 * BLOCK
        for start in range(0, len(matrix), len(matrix) if single else BLOCK):
            block = matrix if single else matrix[start : start + BLOCK]
            used = np.flatnonzero(block.any(axis=0))
            low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
            self._last = source
            name = word if single else f"{word}_{start}"
            if not single:
                self._op("Slice", f"{name}_part", [low], [high], [axis], dtype=np.int64)
                block = block[:, low:high]
            self._product(block, axis=axis, word=name)
            parts.append(self._last)
        if not single:
            self._node("Concat", parts, PREFIX + word, axis=axis)

    def _product(self, block: npt.NDArray[np.float32], *, axis: int, word: str) -> None:
        if axis == 3:
            self._op("MatMul", word, block.T)
        else:
            self._node("MatMul", [self._constant(f"{word}_0", block, np.float32), self._last], PREFIX + word)

    def _whole_levels(self, word: str) -> None:
        """Rounds half up to whole levels from 0 to 255, as an image in bytes does."""
        self._op("Add", f"{word}_half", 0.5)
        self._op("Floor", f"{word}_floor")
        self._op("Clip", f"{word}_levels", 0.0, 255.0)

    def _normalise(self, processing: Processing) -> None:
        """(x * scale + offset - mean) / std as one product and one sum."""
        mean, std = (np.array(v, np.float64).reshape(1, -1, 1, 1) for v in (processing.mean, processing.std))
        self._op("Mul", "scaled", processing.scale / std)
        shift = self._constant("image_0", (processing.offset - mean) / std, np.float32)
        self._node("Add", [self._last, shift], IMAGE)


def _cubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


# name -> (half width in input pixels at ratio 1, function), as Pillow defines them
_FILTERS: dict[str, tuple[float, Callable[[float], float]]] = {
    "box": (0.5, lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0),
    "bilinear": (1.0, lambda x: max(1 - abs(x), 0.0)),
    "hamming": (1.0, lambda x: _sinc(x) * (0.54 + 0.46 * math.cos(math.pi * x)) if abs(x) < 1 else 0.0),
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, lambda x: _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0),
}
