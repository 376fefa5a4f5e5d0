"""From an encoded picture to the row of a model; the whole of decoding, which a server runs as well as a client.

Image decoders that `python -m export image-decoder` makes carry a copy of this file, beside which only numpy and
Pillow need to be installed: it imports nothing else. Whatever the decoder raises refuses that picture alone, since
Pillow's readers raise nearly anything on broken files (struct.error, TypeError, KeyError, MemoryError, ...).
"""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

# For types alone.
if TYPE_CHECKING:
    from PIL.Image import Image

    from orchestrator.spec.request import Preprocess

Pixels = npt.NDArray[Any]


class PictureError(ValueError):
    """A picture that makes no row; its text is one line.

    `is_shape` says whether the picture is fine, but gives a row of another shape than the model's.
    """

    def __init__(self, *, got: str, expected: str | None = None, fix: str | None = None, is_shape: bool = False):
        self.got, self.expected, self.fix, self.is_shape = got, expected, fix, is_shape
        text = f"got {got}" + (f", expected {expected}" if expected else "") + (f"; {fix}" if fix else "")
        super().__init__(" ".join(text.split()))


# Pillow's names of the formats that are read, whatever a file is called. EPS is not among them, since Pillow runs
# Ghostscript for it, nor are containers and documents that are no pictures by themselves.
_FORMATS = (
    "PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF",
    "JPEG2000", "DIB", "ICO", "QOI", "TGA", "PCX", "SGI", "PSD", "DDS",
)  # fmt: skip
# TIFF tags.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _LOWEST_SAMPLE, _HIGHEST_SAMPLE = 258, 262, 340, 341
_WHITE_IS_ZERO = 0


def keep_quiet() -> None:
    """Keeps Pillow's warnings about odd files off the terminal: what cannot be read is refused with a reason."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logger = logging.getLogger("PIL")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def decoded(data: bytes) -> "Image":
    """The decoded picture with 8 bits per sample, turned upright where a camera noted how it was held.

    Raises PictureError where it is no picture, a broken one, one of absurd size, or one whose samples have no
    known range.
    """
    from PIL import Image, ImageOps  # optional

    # Older releases of Pillow do not have all of them.
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with _refused(), Image.open(io.BytesIO(data), formats=formats) as image:
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception as error:
            got = f"EXIF that cannot be read ({_reason(error)})"
            raise PictureError(got=got, fix="save it without EXIF") from error
        return _eight_bits(upright, _tags(image))


def row_of(image: "Image", preprocess: "Preprocess", *, dtype: str, dims: tuple[int, ...]) -> Pixels:
    """One row (*dims) from a picture, decoded or just opened by Pillow.

    The order is: colours, resize (shorter side, then centre crop, where `resize_px` is given), inversion, value
    range, layout. Transparent parts are put on white, like the paper of a scan. `dtype` is numpy's name of the
    model's input dtype; in `dims` -1 is a free size.

    Raises PictureError where the crop is larger than the resized picture, Pillow cannot convert the picture, or
    the row does not have the model's shape.
    """
    with _refused():
        coloured = _coloured(_eight_bits(image, _tags(image)), preprocess.mode)
        pixels = np.asarray(_resized(coloured, preprocess), np.float32)
    if preprocess.invert:
        pixels = 255 - pixels
    span = np.float32(preprocess.value_max - preprocess.value_min)
    values = pixels / np.float32(255) * span + np.float32(preprocess.value_min)
    if values.ndim == 2:
        values = values[:, :, None]
    if preprocess.layout == "CHW":
        values = values.transpose(2, 0, 1)
    shaped = _shaped(values, dims)
    typed = shaped if np.dtype(dtype).kind == "f" else np.rint(shaped)
    return np.ascontiguousarray(typed.astype(dtype))


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Turns whatever a decoder raises into the refusal of that picture."""
    try:
        yield
    except PictureError:
        raise
    except Exception as error:
        got = f"no picture that can be read ({_reason(error)})"
        raise PictureError(got=got, expected="PNG or JPEG") from error


def _reason(error: Exception) -> str:
    # Pillow names the buffer it was given, which says nothing to anybody.
    text = str(error).split("<_io", 1)[0].strip()
    if text and isinstance(error, (OSError, SyntaxError, ValueError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _tags(image: "Image") -> Any:
    """TIFF tags by number; none for pictures of other kinds."""
    return getattr(image, "tag_v2", {})


def _eight_bits(image: "Image", tags: Any) -> "Image":
    """The picture itself, or greys of more bits or floats scaled from their range to 0 to 255.

    Pillow would clip such greys at 255 instead of scaling them: floats of 0 to 1 would be black.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    from PIL import Image  # optional

    low, high = _sample_range(image.mode, tags)
    with np.errstate(all="ignore"):
        grey = (np.asarray(image).astype(np.float64) - low) * (255 / (high - low))
    if not np.isfinite(grey).all():
        raise PictureError(got="NaN or infinity in it", expected="finite samples")
    levels = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return Image.fromarray(255 - levels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else levels)


def _sample_range(mode: str, tags: Any) -> tuple[float, float]:
    """Black and white of a picture of more than 8 bits; `mode` is Pillow's word for its samples."""
    if mode.startswith("I;16"):
        bits = int(np.ravel(tags.get(_BITS_PER_SAMPLE, 16))[0])
        return 0, 2**bits - 1
    if mode == "I" and not tags:
        # PNG and PGM of 16 bits, which Pillow widens.
        return 0, 2**16 - 1
    low, high = (float(np.ravel(tags.get(tag, math.nan))[0]) for tag in (_LOWEST_SAMPLE, _HIGHEST_SAMPLE))
    if not 0 < high - low < math.inf:
        kind = "floats" if mode == "F" else "signed or 32-bit whole numbers"
        raise PictureError(
            got=f"{kind} as samples, and no range of them (TIFF tags SMinSampleValue and SMaxSampleValue)",
            expected="8 or 16 bits per sample, or a range",
            fix="save it with 8 or 16 bits",
        )
    return low, high


def _coloured(image: "Image", mode: str) -> "Image":
    from PIL import Image  # optional

    if "A" in image.mode or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert(mode)


def _resized(image: "Image", preprocess: "Preprocess") -> "Image":
    from PIL import Image  # optional

    size = (preprocess.width_px, preprocess.height_px)
    if preprocess.resize_px is None:
        return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
    scale = preprocess.resize_px / min(image.size)
    scaled = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scaled[0] < size[0] or scaled[1] < size[1]:
        got = f"a crop of {size} from a picture resized to {scaled}"
        raise PictureError(got=got, expected="a larger resize_px")
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return image.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + size[0], top + size[1]))


def _shaped(values: Pixels, dims: tuple[int, ...]) -> Pixels:
    if len(dims) == 2 and 1 in (values.shape[0], values.shape[2]):
        # A model of grey pictures may have no channel axis at all.
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != len(dims) or any(d not in (s, -1) for s, d in zip(values.shape, dims, strict=True)):
        got = f"shape {list(values.shape)} after preprocessing"
        raise PictureError(got=got, expected=f"the model's {list(dims)}", is_shape=True)
    return values
