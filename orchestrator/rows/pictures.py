"""Pictures: how one becomes a row, as the plan's `preprocess` section says, and folders of them.

Needs Pillow, imported when used. Every picture of every command is decoded by `decoding`. Of a folder, memory
holds the names; pictures are read piece by piece.
"""

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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
    SourceFile,
    StoredRows,
    check_regular,
    left_out_note,
    readable,
    spans,
)
from orchestrator.rows.decoding import PictureError, decoded, keep_quiet, row_of
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
# First bytes of such files, more of them than a raw tensor would have by chance.
_SURE_START = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|RIFF....WEBP|II[*+]\0|MM\0[*+]|....ftyp"
    rb"|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
# P5 and a size in text, as in .pgm; or a bitmap whose reserved bytes are in use.
_LIKELY_START = re.compile(rb"P[1-7f]\s+[\d#W]|BM")


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
    keep_quiet()
    once = functools.cache(preprocess)

    def read(data: bytes, what: str) -> Rows:
        # A model that takes no pictures has other rows.
        tensor = input_tensor(info)
        dtype = INPUT_DTYPES.get(tensor.dtype, "float32")
        image = image_from_bytes(data, what=what)
        return row_from_image(image, once(), dtype=dtype, dims=tensor.shape[1:], what=what)

    return read


def image_from_bytes(data: bytes, *, what: str) -> "Image":
    """The decoded picture; DataError where `decoded` refuses it."""
    with _refused_as(what):
        return decoded(data)


def row_from_image(
    image: "Image", preprocess: Preprocess, *, dtype: str, dims: tuple[int, ...], what: str = "picture"
) -> Rows:
    """One row (*dims) from a picture, decoded or just opened by Pillow; see `row_of`.

    Raises:
        DataError: the crop is larger than the resized picture, or Pillow cannot convert the picture.
        InputError: the row does not have the model's shape.
    """
    with _refused_as(what):
        return row_of(image, preprocess, dtype=dtype, dims=dims)


@contextlib.contextmanager
def _refused_as(what: str) -> Iterator[None]:
    """Turns a refused picture into an error with its name."""
    try:
        yield
    except PictureError as error:
        if error.is_shape:
            raise InputError("picture", got=error.got, expected=error.expected) from error
        raise DataError(what, got=error.got, expected=error.expected, fix=error.fix) from error


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


def folder_rows(root: Path, *, read_picture: ReadPicture) -> StoredRows:
    """The pictures of a folder and those below it, whatever their classes; ids are their paths in it.

    Raises DataError for none.
    """
    listing = _Listing(root)
    try:
        listing.walk("")
    except OSError as error:
        raise DataError(f"folder {error.filename}", got=f"one that cannot be read ({error.strerror})") from error
    if not listing.names:
        raise DataError(f"{root}", got="a folder without .parquet files, other tables, arrays or pictures")
    ids = np.array(listing.names, np.str_)

    def blocks(size: int, start: int = 0) -> Iterator[RowBlock]:
        for first, stop in spans(len(ids), start, size):
            block = _load(root, ids[first:stop].tolist(), first, read_picture)
            refused = tuple(RefusedRow(id=ids[int(one.id)].item(), reason=one.reason) for one in block.refused)
            yield RowBlock(ids=ids[block.ids], rows=block.rows, refused=refused)

    return StoredRows(
        total=len(ids),
        blocks=blocks,
        notes=left_out_note("pictures", listing.left_out),
        files=(SourceFile(name=root.name, rows=len(ids), state=listing.digest.hexdigest()),),
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
