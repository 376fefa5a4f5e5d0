"""From a picture to one row, as the plan's `preprocess` section says. Needs Pillow, imported when used."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, InputError
from orchestrator.spec import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

Rows = npt.NDArray[Any]


def row_from_bytes(
    data: bytes, preprocess: Preprocess, *, dtype: str, dims: tuple[int, ...], what: str = "picture"
) -> Rows:
    """One row from an encoded picture (PNG, JPEG or whatever else Pillow reads).

    Args:
        data: the file's content.
        preprocess: what to do with it.
        dtype: numpy name of the model's input dtype.
        dims: shape of one row, -1 where the size is free.
        what: names the picture in errors.

    Raises:
        DataError: it is no picture.
        InputError: the row it makes does not have the model's shape.
    """
    return row_from_image(image_from_bytes(data, what=what), preprocess, dtype=dtype, dims=dims)


def image_from_bytes(data: bytes, *, what: str) -> Image:
    """The decoded picture, turned upright where a camera noted how it was held.

    Raises:
        DataError: it is no picture, a broken one, or one of absurd size.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow names the buffer it was given, which says nothing to anybody.
        reason = str(error).split("<_io", 1)[0].strip()
        raise DataError(what, got=f"no picture that can be read ({reason})", expected="PNG or JPEG") from error


def row_from_image(image: Image, preprocess: Preprocess, *, dtype: str, dims: tuple[int, ...]) -> Rows:
    """One row (*dims) from a picture.

    The order is: colours, resize (shorter side, then centre crop, where `resize_px` is given), inversion, value
    range, layout. Transparent parts are put on white, like the paper of a scan.

    Raises:
        DataError: the crop is larger than the resized picture.
        InputError: the row does not have the model's shape.
    """
    pixels = np.asarray(_resized(_coloured(image, preprocess.mode), preprocess), np.float32)
    if preprocess.invert:
        pixels = 255 - pixels
    span = np.float32(preprocess.value_max - preprocess.value_min)
    values = pixels / np.float32(255) * span + np.float32(preprocess.value_min)
    if values.ndim == 2:
        values = values[:, :, None]
    if preprocess.layout == "CHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(_typed(_shaped(values, dims), np.dtype(dtype)))


def _coloured(image: Image, mode: str) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):
        # Pillow would clip 16-bit greys at 255 instead of scaling them.
        grey = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert(mode)


def _resized(image: Image, preprocess: Preprocess) -> Image:
    from PIL import Image

    size = (preprocess.width_px, preprocess.height_px)
    if preprocess.resize_px is None:
        return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
    scale = preprocess.resize_px / min(image.size)
    scaled = tuple(max(1, round(side * scale)) for side in image.size)
    if scaled[0] < size[0] or scaled[1] < size[1]:
        raise DataError(
            "preprocess", got=f"a crop of {size} from a picture resized to {scaled}", expected="a larger resize_px"
        )
    image = image.resize((scaled[0], scaled[1]), Image.Resampling.BILINEAR)
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def _shaped(values: Rows, dims: tuple[int, ...]) -> Rows:
    if len(dims) == 2 and 1 in (values.shape[0], values.shape[2]):
        # A model of grey pictures may have no channel axis at all.
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    same = values.ndim == len(dims) and all(d in (s, -1) for s, d in zip(values.shape, dims, strict=True))
    if not same:
        raise InputError(
            "picture", got=f"shape {list(values.shape)} after preprocessing", expected=f"the model's {list(dims)}"
        )
    return values


def _typed(values: Rows, dtype: np.dtype[Any]) -> Rows:
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.rint(values).astype(dtype)
