"""Rows that are arrays in .npy and .npz files, read block by block in little memory."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, InputError
from orchestrator.rows.npz import BROKEN
from orchestrator.rows.stored import ID_NAMES, NOT_ROWS, Block, ColumnNames, StoredRows, checked_ids
from orchestrator.spec.served_model import ModelInfo, check_rows

Rows = npt.NDArray[Any]


def array_rows(path: Path, info: ModelInfo, *, columns: ColumnNames) -> StoredRows:
    """The rows of a .npy or .npz file.

    Raises:
        DataError: unreadable, empty, or without such arrays.
        InputError: its rows do not fit the model.
    """
    if path.suffix == ".npz":
        return _npz(path, info, columns)
    check_single_array(path, columns)
    rows = mapped_npy(path)
    return _arrays(path, info, shape=rows.shape, dtype=rows.dtype, parts=lambda size: _cut(rows, size))


def check_single_array(path: Path, columns: ColumnNames) -> None:
    """Refuses names of arrays for a file that has one array without a name.

    Raises:
        DataError: something is named.
    """
    if columns.named:
        expected = f"an array {columns.named[0]}, as in .npz"
        raise DataError(f"{path}", got="a single array without a name", expected=expected)


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


def _npz(path: Path, info: ModelInfo, columns: ColumnNames) -> StoredRows:
    try:
        archive = np.load(path, allow_pickle=False)
        # numpy goes by what is in a file, not by its name; an array cannot be entered as an archive can.
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}", got="a single array", expected="an archive", fix="name it .npy")
        with archive as stored:
            name = rows_array_name(path, stored.files, columns)
            ids = named_array(path, stored, columns.ids, usual=ID_NAMES)
            kept = {key: named_array(path, stored, key) for key in columns.kept}
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

    return _arrays(path, info, shape=shape, dtype=dtype, parts=parts, ids=ids, kept=kept)


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


def named_array(path: Path, stored: Any, name: str | None, *, usual: tuple[str, ...] = ()) -> Rows | None:
    """An array of an archive: the one asked for, else the first there is of the usual names.

    Raises:
        DataError: the one asked for is not there.
    """
    if name is not None and name not in stored.files:
        raise DataError(f"{path}", got=f"arrays {', '.join(stored.files) or 'none'}", expected=name)
    found = next((key for key in ((name,) if name else usual) if key in stored.files), None)
    return None if found is None else stored[found]


def rows_array_name(path: Path, names: list[str], columns: ColumnNames) -> str:
    """Which array of an archive holds the rows: the one asked for, `images`, or the first that may.

    Raises:
        DataError: there is none.
    """
    column = columns.rows
    if column is not None and column not in names:
        raise DataError(f"{path}", got=f"arrays {', '.join(names) or 'none'}", expected=column)
    if column is not None:
        return column
    candidates = [name for name in names if name not in (*NOT_ROWS, *columns.named)]
    if not candidates:
        raise DataError(f"{path}", got=f"arrays {', '.join(names) or 'none'}", expected="an array images")
    return "images" if "images" in candidates else candidates[0]


def _arrays(
    path: Path,
    info: ModelInfo,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    parts: Callable[[int], Iterator[Rows]],
    ids: Rows | None = None,
    kept: Mapping[str, Any] | None = None,
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
    carried = {name: _checked_kept(path, name, column, total) for name, column in (kept or {}).items()}

    def blocks(size: int) -> Iterator[Block]:
        for number, rows in enumerate(parts(size)):
            start, end = number * size, number * size + len(rows)
            part = {name: column[start:end] for name, column in carried.items()}
            yield Block(ids=np.arange(start, end) if known is None else known[start:end], rows=rows, kept=part)

    text_ids = known is not None and known.dtype.kind == "U"
    kept_types = {name: column.dtype for name, column in carried.items()}
    return StoredRows(total=total, text_ids=text_ids, blocks=blocks, kept_types=kept_types)


def _checked_kept(path: Path, name: str, column: Rows, total: int) -> Rows:
    if column.shape != (total,):
        raise DataError(f"{path} {name}", got=f"shape {list(column.shape)}", expected=f"[{total}], one per row")
    if column.dtype.kind not in "biufUSM":
        raise DataError(f"{path} {name}", got=f"dtype {column.dtype}", expected="numbers, text or dates")
    return column


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
