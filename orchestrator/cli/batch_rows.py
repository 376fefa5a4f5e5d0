"""Stored rows, read block by block, so that a file of any size passes through in little memory."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from orchestrator.cli.pictures import ReadPicture
from orchestrator.client.models import ModelInfo, check_rows
from orchestrator.errors import DataError, InputError
from orchestrator.planner.npz import BROKEN

Rows = npt.NDArray[Any]
NOT_ROWS = ("ids", "id", "labels", "label")


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row without an answer.

    Args:
        id: of the row, a whole number or a text.
        reason: why, in one line.
    """

    id: int | str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of a file, in its order.

    Args:
        ids: (n,), int64 or text.
        rows: (n, *dims).
        refused: rows that lay between them and could not even be read.
    """

    ids: Rows
    rows: Rows
    refused: tuple[Refused, ...] = ()

    @property
    def size(self) -> int:
        """Rows of the file it stands for."""
        return len(self.ids) + len(self.refused)


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """A file of rows.

    Args:
        total: how many there are.
        text_ids: whether ids are text; else they are whole numbers.
        blocks: gives them in order, in blocks of at most so many rows.
    """

    total: int
    text_ids: bool
    blocks: Callable[[int], Iterator[Block]]


def stored_rows(path: Path, info: ModelInfo, *, column: str | None, read_picture: ReadPicture) -> StoredRows:
    """The rows of a .npy, .npz or .parquet file, checked against the model as far as its header tells.

    Args:
        path: the file.
        info: the model they are for.
        column: array or column that holds the rows; None means the obvious one.
        read_picture: turns an encoded picture into one row.

    Raises:
        DataError: missing, unreadable, empty, or without such a column.
        InputError: its rows do not fit the model.
    """
    if not path.is_file():
        raise DataError(f"{path}", got="no such file")
    if path.suffix == ".npy":
        rows = mapped_npy(path)
        return _arrays(
            path, info, shape=rows.shape, dtype=rows.dtype, ids=None, parts=lambda size: _cut(rows, size)
        )
    if path.suffix == ".npz":
        return _npz(path, info, column)
    if path.suffix == ".parquet":
        from orchestrator.cli.batch_parquet import parquet_rows

        return parquet_rows(path, info, column=column, read_picture=read_picture)
    raise DataError(
        f"{path}", got=f"a name ending in {path.suffix or 'nothing'}", expected=".npy, .npz or .parquet"
    )


def mapped_npy(path: Path) -> Rows:
    """An array file, mapped: only what is looked at is read.

    Raises:
        DataError: it is not one.
    """
    try:
        # Mapped, not read: only the block being sent is in memory.
        array: Rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}", got=f"a file numpy cannot read ({error})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}", got="an archive", expected="one array", fix="name it .npz")
    return array


def _npz(path: Path, info: ModelInfo, column: str | None) -> StoredRows:
    try:
        archive = np.load(path, allow_pickle=False)
        # numpy goes by what is in a file, not by its name; an array cannot be entered as an archive can.
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}", got="a single array", expected="an archive", fix="name it .npy")
        with archive as stored:
            name = rows_array_name(path, stored.files, column)
            ids = next((stored[key] for key in ("ids", "id") if key in stored.files), None)
        with npz_member(path, name) as (_, shape, fortran, dtype):
            pass
    except BROKEN as error:
        raise DataError(f"{path}", got=f"a file numpy cannot read ({error})") from error

    def parts(size: int) -> Iterator[Rows]:
        try:
            # A Fortran-ordered array has no row in one piece, so only that kind is read whole.
            yield from _cut(np.load(path)[name], size) if fortran else _streamed(path, name, size)
        except BROKEN as error:
            raise DataError(f"{path} array {name}", got=f"broken data ({error})") from error

    return _arrays(path, info, shape=shape, dtype=dtype, ids=ids, parts=parts)


@contextlib.contextmanager
def npz_member(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]]:
    """One array of an archive, open behind its header; and its shape, whether it is Fortran-ordered, its dtype."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        header: Any = np.lib.format
        old = header.read_magic(file) == (1, 0)
        shape, fortran, dtype = (header.read_array_header_1_0 if old else header.read_array_header_2_0)(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        yield file, shape, fortran, dtype


def _streamed(path: Path, name: str, size: int) -> Iterator[Rows]:
    with npz_member(path, name) as (file, shape, _, dtype):
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        for start in range(0, shape[0], size):
            count = min(size, shape[0] - start)
            data = file.read(count * row_bytes)
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def _cut(rows: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(rows), size):
        yield np.ascontiguousarray(rows[start : start + size])


def rows_array_name(path: Path, names: list[str], column: str | None) -> str:
    """Which array of an archive holds the rows: the one asked for, `images`, or the first that may.

    Raises:
        DataError: there is none.
    """
    if column is not None and column not in names:
        raise DataError(f"{path}", got=f"arrays {', '.join(names) or 'none'}", expected=column)
    if column is not None:
        return column
    candidates = [name for name in names if name not in NOT_ROWS]
    if not candidates:
        raise DataError(f"{path}", got=f"arrays {', '.join(names) or 'none'}", expected="an array images")
    return "images" if "images" in candidates else candidates[0]


def _arrays(
    path: Path,
    info: ModelInfo,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    ids: Rows | None,
    parts: Callable[[int], Iterator[Rows]],
) -> StoredRows:
    if not shape or shape[0] == 0 or min(shape) < 0:
        raise DataError(f"{path}", got=f"shape {list(shape)}", expected="at least one row")
    total = shape[0]
    try:
        # One row of it, without the memory: a header may say anything.
        row = np.broadcast_to(np.zeros((), dtype), (1, *shape[1:]))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}", got=f"shape {list(shape)}", expected="one that can be") from error
    check_in_file(path, info, row)
    known = None if ids is None else checked_ids(path, ids, total)

    def blocks(size: int) -> Iterator[Block]:
        for number, rows in enumerate(parts(size)):
            start, end = number * size, number * size + len(rows)
            yield Block(ids=np.arange(start, end) if known is None else known[start:end], rows=rows)

    return StoredRows(total=total, text_ids=known is not None and known.dtype.kind == "U", blocks=blocks)


def check_in_file(path: Path, info: ModelInfo, rows: Rows) -> None:
    """Refuses rows of a file that a model cannot take.

    Raises:
        InputError: naming the file.
    """
    try:
        check_rows(info, rows)
    except InputError as error:
        raise InputError(
            f"{path} for {error.what}", got=error.got, expected=error.expected, fix=error.fix
        ) from error


def checked_ids(path: Path, ids: Rows, total: int) -> Rows:
    """Ids as int64 or text.

    Raises:
        DataError: another kind, or another number of them than there are rows.
    """
    if ids.shape != (total,):
        raise DataError(f"{path} ids", got=f"shape {list(ids.shape)}", expected=f"[{total}], one per row")
    if ids.dtype.kind in "iu" and ids.dtype != np.uint64:
        return ids.astype(np.int64)
    if ids.dtype.kind in "US":
        try:
            return ids.astype(np.str_)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} ids", got=f"bytes that are not ASCII ({error})", expected="text") from error
    raise DataError(f"{path} ids", got=f"dtype {ids.dtype}", expected="whole numbers or text")
