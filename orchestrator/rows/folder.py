"""A folder of pictures, one sub-folder per class. Memory holds the names; pictures are read piece by piece."""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from orchestrator.errors import DataError, first_few
from orchestrator.rows.blocks import Indices, RefusedRow, RowBlock, RowPiece, RowSource, spans
from orchestrator.rows.labels import MemberClasses, RowLabels, labels_from_names
from orchestrator.rows.pictures import PICTURE_ENDINGS, ReadPicture, picture_bytes
from orchestrator.spec.class_names import in_order


class _Listing:
    """The pictures found so far, with hashes of their names, sizes and times."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: list[str] = []
        self.left_out: list[str] = []
        self._digest = hashlib.sha256()
        self._changes = hashlib.sha256()

    def walk(self, folder: str) -> int:
        """Adds the pictures below a sub-folder, sorted, and returns their number."""
        before = len(self.names)
        for place, folders, files in os.walk(self.root / folder):
            folders[:] = in_order(name for name in folders if not name.startswith("."))
            for file in in_order(files):
                self._add(Path(place, file))
        return len(self.names) - before

    def add_direct(self) -> None:
        """Adds the pictures that lie in the root itself."""
        for name in in_order(path.name for path in self.root.iterdir() if not path.is_dir()):
            self._add(self.root / name)

    def sha256(self) -> str:
        """Hash of names, sizes and times of modification."""
        return self._digest.hexdigest()

    def changes_sha256(self) -> str:
        """Hash of the times of status changes, which cannot be set back as times of modification can."""
        return self._changes.hexdigest()

    def _add(self, path: Path) -> None:
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
            self._digest.update(encoded + b"\0-")
        else:
            self._digest.update(encoded + f"\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
            self._changes.update(f"{stat.st_ctime_ns}\n".encode())
        self.names.append(name)


def folder_source(root: Path, *, classes: MemberClasses, read_picture: ReadPicture) -> RowSource:
    """The pictures of a folder; ids are their paths in it. Without sub-folders they have no labels.

    Raises:
        DataError: no pictures, an empty class folder, or classes that the members do not have.
    """
    listing = _Listing(root)
    try:
        folders = in_order(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        known = _labelled(listing, folders, classes) if folders else _unlabelled(listing, classes)
    except OSError as error:
        raise DataError(f"folder {error.filename}", got=f"one that cannot be read ({error.strerror})") from error
    if not listing.names:
        raise DataError(f"folder {root}", got="no pictures", expected="a sub-folder of pictures per class")
    notes: tuple[str, ...] = ()
    if listing.left_out:
        count = len(listing.left_out)
        notes = (f"{count} files are no pictures by their ending and left out: {first_few(listing.left_out)}",)
    ids = np.array(listing.names, np.str_)

    def pieces(wanted: Indices, start: int, size: int) -> Iterator[RowPiece]:
        for first, stop in spans(len(wanted), start, size):
            load = partial(_load, root, ids[wanted[first:stop]].tolist(), first, read_picture)
            yield RowPiece(first=first, stop=stop, load=load)

    return RowSource(
        name=f"{root}",
        ids=ids,
        labels=known,
        pieces=pieces,
        identity={"listing_sha256": listing.sha256()},
        data_sha256=None,
        notes=notes,
        state=listing.changes_sha256(),
    )


def _unlabelled(listing: _Listing, classes: MemberClasses) -> RowLabels:
    what = f"folder {listing.root}"
    if classes.class_map is not None:
        raise DataError(what, got="a class map, and no sub-folders", expected="one per class")
    if classes.first_label:
        raise DataError(what, got="no labels", expected="numbers, which `first_label` is for", fix="leave it out")
    listing.add_direct()
    return RowLabels(notes=("no sub-folders, so no classes: recorded without labels",))


def _labelled(listing: _Listing, folders: list[str], classes: MemberClasses) -> RowLabels:
    loose = [p.name for p in sorted(listing.root.iterdir()) if p.suffix.lower() in PICTURE_ENDINGS and p.is_file()]
    if loose:
        got = f"pictures beside the class folders: {first_few(loose)}"
        raise DataError(f"folder {listing.root}", got=got, expected="every picture in a class folder")
    counts = [listing.walk(folder) for folder in folders]
    empty = [folder for folder, count in zip(folders, counts, strict=True) if not count]
    if len(empty) == len(folders):
        raise DataError(
            f"folder {listing.root}", got="no pictures in its sub-folders", expected="PNG or JPEG files"
        )
    if empty:
        got = f"class folders without pictures: {first_few(empty)}"
        raise DataError(f"folder {listing.root}", got=got, fix="fill them, or remove them")
    return labels_from_names(f"folder {listing.root}", np.repeat(folders, counts), classes=classes)


def _load(root: Path, names: list[str], first: int, read_picture: ReadPicture) -> RowBlock:
    positions: list[int] = []
    rows = []
    digests = []
    refused = []
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
