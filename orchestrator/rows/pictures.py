"""From a picture to one row, as the plan's `preprocess` section says. Needs Pillow, imported when used.

Every picture of every command is decoded here. Whatever the decoder raises refuses that picture alone, since
Pillow's readers raise nearly anything on broken files (struct.error, TypeError, KeyError, MemoryError, ...).
"""

import contextlib
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, InputError
from orchestrator.files import irregular_kind
from orchestrator.spec import Preprocess
from orchestrator.spec.inputs import INPUT_DTYPES
from orchestrator.spec.served_model import ModelInfo, input_tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Rows = npt.NDArray[Any]
# One row (*dims) from an encoded picture and its name for errors.
ReadPicture = Callable[[bytes, str], npt.NDArray[Any]]
# Endings of the files that are taken for pictures in a folder.
PICTURE_ENDINGS = frozenset(
    [".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"]
)
# Pillow's names of the formats that are read, whatever a file is called. EPS is not among them, since Pillow runs
# Ghostscript for it, nor are containers and documents that are no pictures by themselves.
_FORMATS = (
    "PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF",
    "JPEG2000", "DIB", "ICO", "QOI", "TGA", "PCX", "SGI", "PSD", "DDS",
)  # fmt: skip
# First bytes of such files, more of them than a raw tensor would have by chance.
_SURE_START = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|RIFF....WEBP|II[*+]\0|MM\0[*+]|....ftyp"
    rb"|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
# P5 and a size in text, as in .pgm; or a bitmap whose reserved bytes are in use.
_LIKELY_START = re.compile(rb"P[1-7f]\s+[\d#W]|BM")
# TIFF tags.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _LOWEST_SAMPLE, _HIGHEST_SAMPLE = 258, 262, 340, 341
_WHITE_IS_ZERO = 0


def picture_bytes(path: Path, what: str) -> bytes:
    """The content of a picture's file.

    Args:
        path: of the file.
        what: names the picture in errors.

    Raises:
        DataError: it cannot be read, or is no regular file.
    """
    try:
        kind = irregular_kind(path)
        if kind is not None:
            raise DataError(what, got=kind, expected="a regular file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(what, got=f"a file that cannot be read ({error.strerror})") from error


def quiet_pillow() -> None:
    """Keeps Pillow's warnings about odd files off the terminal; unreadable files are refused with a reason."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logger = logging.getLogger("PIL")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def is_picture(data: bytes, *, tensor_bytes: int | None) -> bool:
    """Whether stored bytes are an encoded picture rather than a raw tensor, by how they begin.

    Args:
        data: the stored bytes.
        tensor_bytes: size of a raw tensor; bytes of this size are one unless they surely are a picture.
    """
    return bool(_SURE_START.match(data) or (len(data) != tensor_bytes and _LIKELY_START.match(data)))


def row_from_bytes(
    data: bytes, preprocess: Preprocess, *, dtype: str, dims: tuple[int, ...], what: str = "picture"
) -> Rows:
    """One row from an encoded picture (PNG, JPEG or another format of `_FORMATS`).

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
    image = image_from_bytes(data, what=what)
    return row_from_image(image, preprocess, dtype=dtype, dims=dims, what=what)


def image_from_bytes(data: bytes, *, what: str) -> "Image":
    """The decoded picture with 8 bits per sample, turned upright where a camera noted how it was held.

    Raises:
        DataError: it is no picture, a broken one, one of absurd size, or one whose samples have no known range.
    """
    from PIL import Image  # optional

    # Older releases of Pillow do not have all of them.
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with _refused_as(what), Image.open(io.BytesIO(data), formats=formats) as image:
        image.load()
        return _eight_bits(_upright(image), _tags(image))


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps  # optional

    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        got = f"EXIF that cannot be read ({_reason(error)})"
        raise DataError("picture", got=got, fix="save it without EXIF") from error


def row_from_image(
    image: "Image", preprocess: Preprocess, *, dtype: str, dims: tuple[int, ...], what: str = "picture"
) -> Rows:
    """One row (*dims) from a picture.

    The order is: colours, resize (shorter side, then centre crop, where `resize_px` is given), inversion, value
    range, layout. Transparent parts are put on white, like the paper of a scan.

    Args:
        image: decoded, or opened by Pillow.
        preprocess: what to do with it.
        dtype: numpy name of the model's input dtype.
        dims: shape of one row, -1 where the size is free.
        what: names the picture in errors.

    Raises:
        DataError: the crop is larger than the resized picture, or Pillow cannot convert the picture.
        InputError: the row does not have the model's shape.
    """
    with _refused_as(what):
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
    return np.ascontiguousarray(_typed(_shaped(values, dims), np.dtype(dtype)))


@contextlib.contextmanager
def _refused_as(what: str) -> Iterator[None]:
    """Turns whatever a decoder raises into the refusal of that picture."""
    try:
        yield
    except DataError as error:
        raise DataError(what, got=error.got, expected=error.expected, fix=error.fix) from error
    except Exception as error:
        raise DataError(
            what, got=f"no picture that can be read ({_reason(error)})", expected="PNG or JPEG"
        ) from error


def _reason(error: Exception) -> str:
    # Pillow names the buffer it was given, which says nothing to anybody.
    text = str(error).split("<_io", 1)[0].strip()
    if text and isinstance(error, (OSError, SyntaxError, ValueError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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
        raise DataError("picture", got="NaN or infinity in it", expected="finite samples")
    levels = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return Image.fromarray(255 - levels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else levels)


def _tags(image: "Image") -> Any:
    """TIFF tags by number; none for pictures of other kinds."""
    return getattr(image, "tag_v2", {})


def _sample_range(mode: str, tags: Any) -> tuple[float, float]:
    """Black and white of a picture of more than 8 bits.

    Args:
        mode: Pillow's word for its samples.
        tags: TIFF tags by number; none for pictures of other kinds.

    Raises:
        DataError: neither its kind nor its tags say.
    """
    if mode.startswith("I;16"):
        bits = int(np.ravel(tags.get(_BITS_PER_SAMPLE, 16))[0])
        return 0, 2**bits - 1
    if mode == "I" and not tags:
        # PNG and PGM of 16 bits, which Pillow widens.
        return 0, 2**16 - 1
    low, high = (float(np.ravel(tags.get(tag, math.nan))[0]) for tag in (_LOWEST_SAMPLE, _HIGHEST_SAMPLE))
    if not 0 < high - low < math.inf:
        kind = "floats" if mode == "F" else "signed or 32-bit whole numbers"
        raise DataError(
            "picture",
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


def _resized(image: "Image", preprocess: Preprocess) -> "Image":
    from PIL import Image  # optional

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


def reader_for(info: ModelInfo, preprocess: Callable[[], Preprocess]) -> ReadPicture:
    """A function from an encoded picture and its name to one row (*dims).

    Args:
        info: the model that takes the rows.
        preprocess: says how pictures become rows; called when the first one is read.
    """
    quiet_pillow()
    known: list[Preprocess] = []
    tensor = input_tensor(info)
    dtype = INPUT_DTYPES.get(tensor.dtype, "float32")

    def read(data: bytes, what: str) -> npt.NDArray[Any]:
        if not known:
            known.append(preprocess())
        return row_from_bytes(data, known[0], dtype=dtype, dims=tensor.shape[1:], what=what)

    return read
