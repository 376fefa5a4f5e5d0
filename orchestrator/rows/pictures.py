"""Pictures: how one becomes a row, as the plan's `preprocess` section says, and folders of them.

Needs Pillow, imported when used. Every picture of every command is decoded here. Whatever the decoder raises
refuses that picture alone, since Pillow's readers raise nearly anything on broken files (struct.error, TypeError,
KeyError, MemoryError, ...). Of a folder, memory holds the names; pictures are read piece by piece.
"""

import contextlib
import functools
import hashlib
import io
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.errors import DataError, InputError, first_few
from orchestrator.rows.blocks import (
    Indices,
    RefusedRow,
    RowBlock,
    RowLabels,
    RowPiece,
    Rows,
    RowSource,
    check_regular,
    left_out_note,
    readable,
    spans,
)
from orchestrator.rows.labels import MemberClasses, labels_from_names
from orchestrator.spec import Preprocess
from orchestrator.spec.answer import in_order
from orchestrator.spec.request import INPUT_DTYPES
from orchestrator.spec.served_model import ModelInfo, input_tensor

if TYPE_CHECKING:
    from PIL.Image import Image

# One row (*dims) from an encoded picture and its name for errors.
ReadPicture = Callable[[bytes, str], Rows]
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
    """The content of a picture's file; DataError where it cannot be read, or is no regular file."""
    with readable(what):
        check_regular(path, what)
        return path.read_bytes()


def is_picture(data: bytes, *, tensor_bytes: int | None) -> bool:
    """Whether stored bytes are an encoded picture rather than a raw tensor, by how they begin.

    Bytes of the size of a raw tensor are one unless they surely are a picture.
    """
    return bool(_SURE_START.match(data) or (len(data) != tensor_bytes and _LIKELY_START.match(data)))


def reader_for(info: ModelInfo, preprocess: Callable[[], Preprocess]) -> ReadPicture:
    """A function from an encoded picture and its name to one row (*dims) for a model.

    `preprocess` says how pictures become rows; it is called when the first one is read.
    """
    # Unreadable files are refused with a reason; Pillow's warnings about odd ones stay off the terminal.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logger = logging.getLogger("PIL")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    tensor = input_tensor(info)
    dtype = INPUT_DTYPES.get(tensor.dtype, "float32")
    once = functools.cache(preprocess)

    def read(data: bytes, what: str) -> Rows:
        image = image_from_bytes(data, what=what)
        return row_from_image(image, once(), dtype=dtype, dims=tensor.shape[1:], what=what)

    return read


def image_from_bytes(data: bytes, *, what: str) -> "Image":
    """The decoded picture with 8 bits per sample, turned upright where a camera noted how it was held.

    Raises DataError where it is no picture, a broken one, one of absurd size, or one whose samples have no known
    range.
    """
    from PIL import Image, ImageOps  # optional

    # Older releases of Pillow do not have all of them.
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with _refused_as(what), Image.open(io.BytesIO(data), formats=formats) as image:
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception as error:
            got = f"EXIF that cannot be read ({_reason(error)})"
            raise DataError(what, got=got, fix="save it without EXIF") from error
        return _eight_bits(upright, _tags(image))


def row_from_image(
    image: "Image", preprocess: Preprocess, *, dtype: str, dims: tuple[int, ...], what: str = "picture"
) -> Rows:
    """One row (*dims) from a picture, decoded or just opened by Pillow.

    The order is: colours, resize (shorter side, then centre crop, where `resize_px` is given), inversion, value
    range, layout. Transparent parts are put on white, like the paper of a scan. `dtype` is numpy's name of the
    model's input dtype; in `dims` -1 is a free size.

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
    shaped = _shaped(values, dims)
    typed = shaped if np.dtype(dtype).kind == "f" else np.rint(shaped)
    return np.ascontiguousarray(typed.astype(dtype))


@contextlib.contextmanager
def _refused_as(what: str) -> Iterator[None]:
    """Turns whatever a decoder raises into the refusal of that picture."""
    try:
        yield
    except DataError as error:
        raise DataError(what, got=error.got, expected=error.expected, fix=error.fix) from error
    except Exception as error:
        got = f"no picture that can be read ({_reason(error)})"
        raise DataError(what, got=got, expected="PNG or JPEG") from error


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
        raise DataError("picture", got="NaN or infinity in it", expected="finite samples")
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
    scaled = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scaled[0] < size[0] or scaled[1] < size[1]:
        got = f"a crop of {size} from a picture resized to {scaled}"
        raise DataError("preprocess", got=got, expected="a larger resize_px")
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return image.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + size[0], top + size[1]))


def _shaped(values: Rows, dims: tuple[int, ...]) -> Rows:
    if len(dims) == 2 and 1 in (values.shape[0], values.shape[2]):
        # A model of grey pictures may have no channel axis at all.
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != len(dims) or any(d not in (s, -1) for s, d in zip(values.shape, dims, strict=True)):
        got = f"shape {list(values.shape)} after preprocessing"
        raise InputError("picture", got=got, expected=f"the model's {list(dims)}")
    return values


class _Listing:
    """The pictures that were found in a folder.

    `digest` is of their names, sizes and times of modification; `changes` of the times of status changes, which
    cannot be set back as times of modification can.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: list[str] = []
        self.left_out: list[str] = []
        self.digest, self.changes = hashlib.sha256(), hashlib.sha256()

    def walk(self, folder: str) -> int:
        """Adds the pictures below a sub-folder, sorted, and returns their number."""
        before = len(self.names)
        for place, folders, files in os.walk(self.root / folder):
            folders[:] = in_order(name for name in folders if not name.startswith("."))
            for file in in_order(files):
                self.add(Path(place, file))
        return len(self.names) - before

    def add(self, path: Path) -> None:
        """Adds a picture, or notes that another file is left out."""
        if path.name.startswith("."):
            return
        name = path.relative_to(self.root).as_posix()
        if path.suffix.lower() not in PICTURE_ENDINGS:
            self.left_out.append(name)
            return
        try:
            encoded = name.encode()
            stat = path.stat()
        except UnicodeEncodeError as error:
            raise DataError(f"picture {name!a}", got="a name that is not UTF-8", fix="rename it") from error
        except OSError:
            # Reading the picture will fail, too, and then says why or skips the row.
            self.digest.update(encoded + b"\0-")
        else:
            self.digest.update(encoded + f"\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
            self.changes.update(f"{stat.st_ctime_ns}\n".encode())
        self.names.append(name)


def folder_source(root: Path, *, classes: MemberClasses, read_picture: ReadPicture) -> RowSource:
    """The pictures of a folder; ids are their paths in it. Without sub-folders they have no labels.

    Raises DataError for no pictures, an empty class folder, or classes that the members do not have.
    """
    listing = _Listing(root)
    try:
        folders = in_order(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        known = _labelled(listing, folders, classes) if folders else _unlabelled(listing, classes)
    except OSError as error:
        raise DataError(f"folder {error.filename}", got=f"one that cannot be read ({error.strerror})") from error
    if not listing.names:
        raise DataError(f"folder {root}", got="no pictures", expected="a sub-folder of pictures per class")
    ids = np.array(listing.names, np.str_)

    def pieces(wanted: Indices, start: int, size: int) -> Iterator[RowPiece]:
        for first, stop in spans(len(wanted), start, size):
            load = functools.partial(_load, root, ids[wanted[first:stop]].tolist(), first, read_picture)
            yield RowPiece(first=first, stop=stop, load=load)

    return RowSource(
        name=f"{root}",
        ids=ids,
        labels=known,
        pieces=pieces,
        identity={"listing_sha256": listing.digest.hexdigest()},
        data_sha256=None,
        notes=left_out_note("pictures", listing.left_out),
        state=listing.changes.hexdigest(),
    )


def _unlabelled(listing: _Listing, classes: MemberClasses) -> RowLabels:
    what = f"folder {listing.root}"
    if classes.class_map is not None:
        raise DataError(what, got="a class map, and no sub-folders", expected="one per class")
    if classes.first_label:
        raise DataError(what, got="no labels", expected="numbers, which `first_label` is for", fix="leave it out")
    for name in in_order(path.name for path in listing.root.iterdir() if not path.is_dir()):
        listing.add(listing.root / name)
    return RowLabels(notes=("no sub-folders, so no classes: recorded without labels",))


def _labelled(listing: _Listing, folders: list[str], classes: MemberClasses) -> RowLabels:
    what = f"folder {listing.root}"
    loose = [p.name for p in sorted(listing.root.iterdir()) if p.suffix.lower() in PICTURE_ENDINGS and p.is_file()]
    if loose:
        got = f"pictures beside the class folders: {first_few(loose)}"
        raise DataError(what, got=got, expected="every picture in a class folder")
    counts = [listing.walk(folder) for folder in folders]
    if not any(counts):
        raise DataError(what, got="no pictures in its sub-folders", expected="PNG or JPEG files")
    if not all(counts):
        empty = [folder for folder, count in zip(folders, counts, strict=True) if not count]
        got = f"class folders without pictures: {first_few(empty)}"
        raise DataError(what, got=got, fix="fill them, or remove them")
    return labels_from_names(what, np.repeat(folders, counts), classes=classes)


def _load(root: Path, names: list[str], first: int, read_picture: ReadPicture) -> RowBlock:
    positions, rows, digests, refused = [], [], [], []
    for position, name in enumerate(names, first):
        try:
            data = picture_bytes(root / name, f"picture {name}")
            rows.append(read_picture(data, f"picture {name}"))
        except DataError as error:
            refused.append(RefusedRow(id=position, reason=str(error)))
        else:
            positions.append(position)
            digests.append(hashlib.sha256(name.encode() + b"\0" + data).digest())
    return RowBlock(
        ids=np.array(positions, np.int64),
        rows=np.stack(rows) if rows else np.zeros((0,)),
        refused=tuple(refused),
        digests=tuple(digests),
    )
