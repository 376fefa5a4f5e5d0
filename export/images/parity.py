"""Is the image processing in the graph the model's own? Measured, on rows that go through both."""

import dataclasses
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.images.preprocess import IMAGE, preprocess_only
from export.images.processing import Processing
from export.sources.base import LoadedModel
from orchestrator.errors import ExportError

# Both round to whole levels after each axis; where the exact value is half a level the last bit decides, and the
# second axis may double that. Another filter, size or order of the axes gives ten levels and more.
MAX_LEVELS = 2.01
# Share of values that may differ at all: 3 % is the worst of the usual sizes tried.
MAX_SHARE = 0.1
_ORDER_ROWS = 4


def in_the_same_order(loaded: LoadedModel, rows: npt.NDArray[np.uint8]) -> LoadedModel:
    """The model with its two resizing passes in the order that its own processor has at this size.

    Measured on rows uint8 (n, c, H, W).
    """
    assert loaded.processing is not None
    rows = rows[:_ORDER_ROWS]
    expected = _expected(loaded, loaded.processing, rows)
    errors = {}
    for vertical_first in (False, True):
        processing = dataclasses.replace(loaded.processing, vertical_first=vertical_first)
        got = processor_of(processing, height_px=rows.shape[2], width_px=rows.shape[3])(rows)
        if got.shape != expected.shape:
            return loaded
        errors[vertical_first] = float(np.abs(got - expected).mean())
    better = errors[True] < errors[False]
    return dataclasses.replace(loaded, processing=dataclasses.replace(loaded.processing, vertical_first=better))


def _expected(loaded: LoadedModel, processing: Processing, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    own = loaded.own_processor
    return own(rows) if own is not None else pillow_processed(processing, rows)


def image_parity(
    loaded: LoadedModel, rows: npt.NDArray[np.uint8], *, height_px: int, width_px: int
) -> dict[str, Any]:
    """What the graph does to an image, and how far that is from the model's own processor.

    Measured on rows uint8 (n, c, H, W).

    Returns:
        the settings, and `parity`: rows, what it was measured against, the largest difference in levels of 0 to
        255, and the share of values that differ at all.

    Raises:
        ExportError: the graph does something else than the model's own processor.
    """
    processing = loaded.processing
    assert processing is not None
    got = processor_of(processing, height_px=height_px, width_px=width_px)(rows)
    name = loaded.own_processor_name if loaded.own_processor is not None else "Pillow with the same settings"
    expected = _expected(loaded, processing, rows)
    if got.shape != expected.shape:
        raise ExportError(
            "image processing in the graph",
            got=f"shape {got.shape}",
            expected=f"{expected.shape} as {name} gives",
            fix="give `mean`, `std` and `resolution_px` by hand",
        )
    level = (processing.scale / np.array(processing.std, np.float64)).reshape(1, -1, 1, 1)
    levels = np.abs(got - expected) / level
    worst, share = float(levels.max()), float((levels > 0.01).mean())
    if not (worst <= MAX_LEVELS and share <= MAX_SHARE):
        raise ExportError(
            "image processing in the graph",
            got=f"values up to {worst:.2f} levels of 255 from {name}, {share:.1%} of them different",
            expected=f"at most {MAX_LEVELS} levels on at most {MAX_SHARE:.0%}",
            fix="give `mean`, `std` and `resolution_px` by hand",
        )
    return {
        **asdict(processing),
        "image_px": [height_px, width_px],
        "parity": {"rows": len(rows), "against": name, "max_levels": round(worst, 4), "share": round(share, 6)},
    }


def processor_of(
    processing: Processing, *, height_px: int, width_px: int
) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """The graph's processing alone, uint8 (n, c, H, W) -> float32 (n, c, h, w)."""
    model = preprocess_only(processing, height_px=height_px, width_px=width_px)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def process(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        images: npt.NDArray[np.float32] = session.run([IMAGE], {"image": rows})[0]
        return images

    return process


def pillow_processed(processing: Processing, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The processing done by Pillow and numpy, uint8 (n, c, H, W) -> float32 (n, c, h, w)."""
    height, width = processing.resized_px(*rows.shape[2:])
    images = np.stack([_resized(row, height, width, processing.filter) for row in rows]).astype(np.float64)
    if processing.crop_px is not None:
        images = _cropped(images, processing.crop_px)
    if processing.reverse_channels:
        images = images[:, ::-1]
    mean, std = (np.array(v, np.float64).reshape(1, -1, 1, 1) for v in (processing.mean, processing.std))
    made: npt.NDArray[np.float32] = ((images * processing.scale + processing.offset - mean) / std).astype(
        np.float32
    )
    return made


def _resized(row: npt.NDArray[np.uint8], height: int, width: int, filter_name: str) -> npt.NDArray[np.uint8]:
    # Optional: only a member with image processing needs it.
    from PIL import Image

    how = Image.Resampling[filter_name.upper()]
    return np.stack([np.array(Image.fromarray(plane).resize((width, height), how)) for plane in row])


def _cropped(images: npt.NDArray[np.float64], crop_px: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Centre crop; a crop larger than the image gets black margins, the larger half of an odd one first."""
    for axis, size in zip((2, 3), crop_px, strict=True):
        have = images.shape[axis]
        if have >= size:
            top = (have - size) // 2
            images = np.take(images, range(top, top + size), axis=axis)
            continue
        before = -(-(size - have) // 2)
        margin = [(0, 0)] * 4
        margin[axis] = (before, size - have - before)
        images = np.pad(images, margin)
    return images
