"""Rows that are arrays already: .npy and .npz files, and those that installed packages hold."""

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from orchestrator.errors import DataError, NoRowsError
from orchestrator.rows.blocks import (
    ColumnNames,
    Indices,
    RowBlock,
    RowPiece,
    Rows,
    RowSource,
    StoredRows,
    check_ids,
    check_rows_of,
    plain_ids,
    sha256_of_array,
    sha256_of_parts,
    source_file,
    spans,
)
from orchestrator.rows.digits import digits_split
from orchestrator.rows.docstrings import docstrings_split
from orchestrator.rows.labels import MemberClasses, labels_from_array
from orchestrator.rows.npz import BROKEN, array_header, array_of, opened_npz
from orchestrator.spec.served_model import ModelInfo

# Bytes read at once while an array is hashed.
BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ArrayRows:
    """Rows of one array, in memory, mapped, or in an archive from which they are read in order.

    Args:
        path: of the file; what the user wrote for rows of installed packages.
        shape: (n, *dims).
        dtype: of the rows.
        images: the array, None where it lies in an archive.
        name: of the array in the archive.
        ids: (n,), int64 or text; None where the file has none.
        labels: (n,), None where the file has none.
        groups: (n,), int64 or text, which rows belong together; None where nobody says so.
        kept: name -> array (n,) that goes into the answers.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    images: Rows | None = None
    name: str = ""
    ids: Rows | None = None
    labels: Rows | None = None
    groups: Rows | None = None
    kept: Mapping[str, Rows] = field(default_factory=dict)

    def pieces(self, wanted: Indices | None, start: int, size: int) -> Iterator[RowPiece]:
        """The wanted rows, see `RowSource`; None wants all. Ids of the blocks are positions.

        Raises DataError where the archive is broken.
        """
        # An index of all rows is never made: a header may promise more rows than there is memory.
        count = self.shape[0] if wanted is None else len(wanted)
        parts = (
            (first, stop, np.arange(first, stop) if wanted is None else wanted[first:stop])
            for first, stop in spans(count, start, size)
        )
        if self.images is not None:
            for first, stop, indices in parts:
                yield RowPiece(first=first, stop=stop, load=partial(_block_at, self.images, indices, first))
            return
        with self._opened("broken data") as file:
            base = file.tell()
            for first, stop, indices in parts:
                rows = self._read(file, base, indices)
                yield RowPiece(
                    first=first, stop=stop, load=partial(RowBlock, ids=np.arange(first, stop), rows=rows)
                )

    def stored(self) -> StoredRows:
        """The rows as they are read for `committee batch`."""

        def blocks(size: int, start: int = 0) -> Iterator[RowBlock]:
            for piece in self.pieces(None, start, size):
                here = slice(piece.first, piece.stop)
                block = piece.load()
                kept = {name: column[here] for name, column in self.kept.items()}
                yield RowBlock(ids=block.ids if self.ids is None else self.ids[here], rows=block.rows, kept=kept)

        kept_types = {name: column.dtype for name, column in self.kept.items()}
        total = self.shape[0]
        files = (source_file(self.path, total),)
        return StoredRows(
            total=total, blocks=blocks, kept_types=kept_types, files=files, numbered=self.ids is None
        )

    def source(self, classes: MemberClasses) -> RowSource:
        """The rows as they are read for `committee record`.

        Raises DataError where the archive is broken, or ids or labels do not fit.
        """
        path, total = f"{self.path}", self.shape[0]
        try:
            ids = np.arange(total) if self.ids is None else self.ids
        except MemoryError as error:
            # A header may promise any number.
            raise DataError(path, got=f"{total} rows", expected="as many as memory has room for ids") from error
        check_ids(f"{path} ids", ids, total)
        labels = labels_from_array(path, self.labels, rows=total, classes=classes)
        sha256 = self.sha256()
        identity = {"rows_sha256": sha256, "ids_sha256": sha256_of_array(ids)}
        if labels.numbers is not None:
            identity["labels_sha256"] = sha256_of_array(labels.numbers)
        return RowSource(
            name=path,
            ids=ids,
            labels=labels,
            pieces=self.pieces,
            identity=identity,
            data_sha256=sha256,
            groups=self.groups,
        )

    def sha256(self) -> str:
        """Hash of dtype, shape and rows."""
        if self.images is not None:
            rows = max(1, BLOCK_BYTES // max(1, self.images[:1].nbytes))
            parts = (self.images[first:stop] for first, stop in spans(len(self.images), 0, rows))
            return sha256_of_parts(self.dtype, self.shape, parts=parts)
        with self._opened("a file numpy cannot read") as file:
            return sha256_of_parts(self.dtype, self.shape, parts=self._bytes(file))

    @contextlib.contextmanager
    def _opened(self, got: str) -> Iterator[IO[bytes]]:
        """The archive's array, open behind its header."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
                array_header(file)
                yield file
        except BROKEN as error:
            raise DataError(f"{self.path} array {self.name}", got=f"{got} ({error})") from error

    def _read(self, file: IO[bytes], base: int, indices: Indices) -> Rows:
        """Rows by ascending index, one read for each run of neighbours."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        parts = []
        for run in np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1):
            file.seek(base + int(run[0]) * row_bytes)
            data = file.read(len(run) * row_bytes)
            parts.append(np.frombuffer(data, self.dtype).reshape(len(run), *self.shape[1:]))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _bytes(self, file: IO[bytes]) -> Iterator[Rows]:
        left = math.prod(self.shape) * self.dtype.itemsize
        while left:
            data = file.read(min(left, BLOCK_BYTES))
            if not data:
                raise EOFError(f"it ends {left} bytes too early")
            left -= len(data)
            yield np.frombuffer(data, np.uint8)
        # Only a read past the end compares the checksum.
        file.read(1)


def _block_at(images: Rows, indices: Indices, first: int) -> RowBlock:
    return RowBlock(ids=np.arange(first, first + len(indices)), rows=np.ascontiguousarray(images[indices]))


def _digits(text: str, info: ModelInfo, name: str) -> ArrayRows:
    split = digits_split(name)
    return replace(_whole(Path(text), info, split.images), ids=split.ids, labels=split.labels)


def _docstrings(text: str, info: ModelInfo, name: str) -> ArrayRows:
    split = docstrings_split(name)
    texts = np.array([one.encode() for one in split.texts])[:, None]
    return replace(_whole(Path(text), info, texts), ids=split.ids, labels=split.labels, groups=split.groups)


_INSTALLED: dict[str, Callable[[str, ModelInfo, str], ArrayRows]] = {"digits": _digits, "docstrings": _docstrings}
# How a person names rows that installed packages hold.
INSTALLED_WORDS = " or ".join(f"{name}:SPLIT" for name in _INSTALLED)


def is_installed(data: str) -> bool:
    """Whether words such as digits:plan name rows that an installed package holds."""
    name, colon, _ = data.partition(":")
    return bool(colon) and name in _INSTALLED


def installed_array(data: str, info: ModelInfo) -> ArrayRows:
    """The rows of words for which `is_installed`.

    Raises DataError for another split or a package that is missing, InputError where they do not fit the model.
    """
    name, _, split = data.partition(":")
    return _INSTALLED[name](data, info, split)


def array_from_path(path: Path, info: ModelInfo, columns: ColumnNames) -> ArrayRows:
    """The rows of a .npy array, or of a .npz with `images` and maybe `labels` and `ids`.

    Raises DataError where they are broken, empty, or without such arrays, InputError where they do not fit the
    model.
    """
    if path.suffix == ".npz":
        return _npz(path, info, columns)
    if columns.named:
        expected = f"an array {columns.named[0]}, as in .npz"
        raise DataError(f"{path}", got="a single array without a name", expected=expected)
    return _whole(path, info, mapped_npy(path))


def _whole(path: Path, info: ModelInfo, images: Rows) -> ArrayRows:
    _check_fit(path, info, images.shape, images.dtype)
    return ArrayRows(path=path, shape=images.shape, dtype=images.dtype, images=images)


def mapped_npy(path: Path) -> Rows:
    """An array file, mapped, so that only what is looked at is read; DataError where it is none."""
    try:
        # A header may say sizes whose product no number holds.
        with np.errstate(over="ignore"):
            array: Rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN as error:
        raise DataError(f"{path}", got=f"a file numpy cannot read ({error})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}", got="an archive", expected="one array", fix="name it .npz")
    return array


def _npz(path: Path, info: ModelInfo, columns: ColumnNames) -> ArrayRows:
    with opened_npz(path, what=f"{path}") as stored:
        columns = columns.found_in(f"{path}", "arrays", stored.files)
        # The one array holds all numbers of a row, or its text.
        name = columns.column or next(iter(columns.texts(stored.files).values()), None)
        if name is None:
            others = columns.others(stored.files)
            if not others:
                got = f"arrays {', '.join(stored.files) or 'none'}"
                raise DataError(f"{path}", got=got, expected="an array images")
            name = "images" if "images" in others else others[0]
        whole = stored_array(path, stored, name)
        _check_fit(path, info, whole.shape, whole.dtype)
        return replace(whole, **companions_from_npz(path, stored, columns, whole.shape[0]))


def stored_array(path: Path, stored: Any, name: str) -> ArrayRows:
    """One array of an open archive as rows; DataError where it has no first axis."""
    with stored.zip.open(f"{name}.npy") as file:
        shape, in_fortran_order, dtype = array_header(file)
    if not shape or min(shape) < 0:
        raise DataError(f"{path} {name}", got=f"shape {list(shape)}", expected="at least one row")
    if not dtype.itemsize:
        # Any number of such rows takes no bytes, so that a header may promise more than there is memory for ids.
        raise DataError(f"{path} {name}", got=f"dtype {dtype}", expected="values of at least one byte")
    # No row of such an array lies in one piece, so only this kind is held whole.
    images = array_of(stored, name) if in_fortran_order else None
    return ArrayRows(path=path, shape=shape, dtype=dtype, images=images, name=name)


def companions_from_npz(path: Path, stored: Any, columns: ColumnNames, total: int) -> dict[str, Any]:
    """Ids, labels, groups and carried arrays, fields of `ArrayRows`; DataError if one does not fit."""
    ids, labels, groups = (
        None if key is None else array_of(stored, key)
        for key in (columns.id_column, columns.label_column, columns.group_column)
    )
    kept = {key: array_of(stored, key) for key in columns.keep_columns}
    for key, column in kept.items():
        if column.shape != (total,):
            got = f"shape {list(column.shape)}"
            raise DataError(f"{path} {key}", got=got, expected=f"[{total}], one per row")
        if column.dtype.kind not in "biufUSM":
            raise DataError(f"{path} {key}", got=f"dtype {column.dtype}", expected="numbers, text or dates")
    known = None if ids is None else plain_ids(f"{path}", ids, total)
    together = None if groups is None else plain_ids(f"{path}", groups, total, kind="groups")
    return {"ids": known, "labels": labels, "groups": together, "kept": kept}


def _check_fit(path: Path, info: ModelInfo, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuses an array that is empty, cannot be, or is not what the model takes."""
    if not shape or min(shape) < 0 or shape[0] == 0:
        raise (NoRowsError if shape[:1] == (0,) else DataError)(
            f"{path}", got=f"shape {list(shape)}", expected="at least one row"
        )
    try:
        # One row without its memory, since a header may say anything.
        row = np.broadcast_to(np.zeros((), dtype), (1, *shape[1:]))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}", got=f"shape {list(shape)}", expected="one that can be") from error
    check_rows_of(f"{path} for", info, row)
