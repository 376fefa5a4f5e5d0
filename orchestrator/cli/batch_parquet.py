"""Rows out of a Parquet column: lists of numbers, raw tensors, or encoded pictures. Imported only for Parquet.

Batches are read one at a time; pyarrow holds one row group, we hold one block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.cli.batch_rows import Block, Refused, StoredRows, checked_ids
from orchestrator.cli.pictures import ReadPicture
from orchestrator.client.models import ModelInfo, input_tensor
from orchestrator.errors import DataError
from orchestrator.spec.inputs import INPUT_DTYPES

Rows = npt.NDArray[Any]
NOT_ROWS = ("id", "ids", "label", "labels")
USUAL = ("image", "images", "rows", "row")
# How PNG, JPEG, GIF and RIFF (WebP) files begin: a raw tensor would have to hold very odd numbers to look so.
PICTURE_STARTS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"RIFF")


@dataclass(frozen=True, kw_only=True)
class RowForm:
    """What a row must become.

    Args:
        dtype: of the model's input.
        dims: of one row, -1 where the size is free.
    """

    dtype: np.dtype[Any]
    dims: tuple[int, ...]

    @property
    def values(self) -> int:
        """Numbers in one row.

        Raises:
            DataError: a size is free, so flat numbers do not say which shape they have.
        """
        if -1 in self.dims:
            raise DataError(
                "rows as flat numbers",
                got=f"a model that takes {list(self.dims)}",
                expected="fixed sizes",
                fix="use .npy",
            )
        return math.prod(self.dims)


def parquet_rows(path: Path, info: ModelInfo, *, column: str | None, read_picture: ReadPicture) -> StoredRows:
    """The rows of a Parquet file.

    Raises:
        DataError: unreadable, empty, or without usable columns.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}", got=f"a file pyarrow cannot read ({error})", expected="Parquet") from error
    schema = file.schema_arrow
    if file.metadata.num_rows == 0:
        raise DataError(f"{path}", got="no rows", expected="at least one")
    name = rows_column(path, schema, column)
    key = next((k for k in ("id", "ids") if k in schema.names), None)
    text_ids = key is not None and _is_text(schema.field(key).type)
    tensor = input_tensor(info)
    form = RowForm(dtype=np.dtype(INPUT_DTYPES.get(tensor.dtype, "float32")), dims=tensor.shape[1:])
    read = column_reader(path, schema.field(name), form, read_picture)

    def blocks(size: int) -> Iterator[Block]:
        columns = [name] if key is None else [key, name]
        start = 0
        try:
            for batch in file.iter_batches(batch_size=size, columns=columns):
                count = batch.num_rows
                ids = np.arange(start, start + count) if key is None else column_ids(path, batch.column(key))
                yield read(ids, batch.column(name))
                start += count
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}", got=f"row {start} cannot be read ({error})") from error

    return StoredRows(total=file.metadata.num_rows, text_ids=text_ids, blocks=blocks)


def rows_column(path: Path, schema: Any, column: str | None) -> str:
    """Which column holds the rows: the one asked for, one of the usual names, or the only one that may.

    Raises:
        DataError: there is none, or several.
    """
    names = list(schema.names)
    if column is not None and column in names:
        return column
    usual = [name for name in USUAL if name in names]
    others = [name for name in names if name not in NOT_ROWS]
    if column is None and usual:
        return usual[0]
    if column is None and len(others) == 1:
        return str(others[0])
    expected = column or "a column image"
    raise DataError(f"{path}", got=f"columns {', '.join(names) or 'none'}", expected=expected, fix="see --column")


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def column_ids(path: Path, column: Any) -> Rows:
    """Ids as int64 or text.

    Raises:
        DataError: nulls, or another kind.
    """
    if column.null_count:
        raise DataError(f"{path} id", got=f"{column.null_count} nulls", expected="an id in every row")
    if _is_text(column.type):
        return np.array(column.to_pylist(), np.str_)
    return checked_ids(path, np.asarray(column.to_numpy(zero_copy_only=False)), len(column))


def column_reader(path: Path, field: Any, form: RowForm, read_picture: ReadPicture) -> Any:
    """A function from ids and one batch of the column to a block."""
    kind = field.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = column_reader(path, kind.field("bytes"), form, read_picture)
        return lambda ids, column: inner(ids, column.field("bytes"))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return lambda ids, column: block_of_bytes(ids, column.to_pylist(), form=form, read_picture=read_picture)
    leaf = kind
    while _is_list(leaf):
        leaf = leaf.value_type
    numeric = pa.types.is_integer(leaf) or pa.types.is_floating(leaf)
    if not _is_list(kind) or not numeric or not np.can_cast(_numpy_dtype(leaf), form.dtype, "same_kind"):
        expected = f"lists of numbers for {form.dtype}, raw bytes, or pictures"
        raise DataError(f"{path} column {field.name}", got=str(kind), expected=expected, fix="see --column")
    return lambda ids, column: block_of_lists(ids, column, form=form)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _numpy_dtype(kind: Any) -> np.dtype[Any]:
    # pyarrow's own to_pandas_dtype() wants pandas, which nothing else here needs.
    dtype: np.dtype[Any] = pa.array([], kind).to_numpy(zero_copy_only=False).dtype
    return dtype


def block_of_bytes(ids: Rows, values: list[bytes | None], *, form: RowForm, read_picture: ReadPicture) -> Block:
    """Rows from encoded pictures, or from tensors as little-endian bytes in C order."""
    good: list[int] = []
    rows: list[Rows] = []
    refused: list[Refused] = []
    for index, value in enumerate(values):
        try:
            rows.append(_row_of_bytes(value, form, read_picture))
            good.append(index)
        except DataError as error:
            refused.append(Refused(id=ids[index].item(), reason=str(error)))
    return _block(ids, good, rows=np.stack(rows) if rows else None, refused=refused)


def _row_of_bytes(value: bytes | None, form: RowForm, read_picture: ReadPicture) -> Rows:
    if value is None:
        raise DataError("row", got="null")
    if value.startswith(PICTURE_STARTS):
        return read_picture(value, "picture")
    if len(value) != form.values * form.dtype.itemsize:
        expected = f"{form.values} x {form.dtype} as raw bytes, or a picture"
        raise DataError("row", got=f"{len(value)} bytes", expected=expected)
    row = np.frombuffer(value, form.dtype.newbyteorder("<")).astype(form.dtype)
    return row.reshape(form.dims)


def block_of_lists(ids: Rows, column: Any, *, form: RowForm) -> Block:
    """Rows from lists of numbers, flat or nested, in C order."""
    sizes, leaves, holes = _leaves(column)
    wanted = form.values
    bad = (sizes != wanted) | holes
    refused = [
        Refused(
            id=ids[index].item(),
            reason="row: got null in it" if holes[index] else f"row: got {sizes[index]} values, expected {wanted}",
        )
        for index in np.flatnonzero(bad)
    ]
    kept = leaves[np.repeat(~bad, sizes)] if bad.any() else leaves
    good = np.flatnonzero(~bad)
    rows = _cast(kept, form.dtype).reshape(len(good), *form.dims) if len(good) else None
    return _block(ids, good.tolist(), rows=rows, refused=refused)


def _cast(values: Rows, dtype: np.dtype[Any]) -> Rows:
    cast = values.astype(dtype, copy=False)
    # A float that is too large becomes infinity, which the server refuses by row; a whole number would wrap.
    if dtype.kind in "iu" and not np.array_equal(cast, values):
        raise DataError("row values", got=f"{values.min()} to {values.max()}", expected=f"what {dtype} can hold")
    return cast


def _leaves(column: Any) -> tuple[npt.NDArray[np.int64], Rows, npt.NDArray[np.bool_]]:
    """How many numbers each row holds, all the numbers, and which rows hold a null at any depth."""
    rows = len(column)
    owner = np.arange(rows)
    holes = np.zeros(rows, np.bool_)
    while _is_list(column.type):
        missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
        holes[owner[missing]] = True
        lengths = np.asarray(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
        owner = np.repeat(owner, lengths)
        # flatten() leaves out what lies behind a null list, in fixed-size lists too.
        column = column.flatten()
    missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    holes[owner[missing]] = True
    leaves = column.fill_null(0).to_numpy(zero_copy_only=False)
    return np.bincount(owner, minlength=rows).astype(np.int64), leaves, holes


def _block(ids: Rows, good: list[int], *, rows: Rows | None, refused: list[Refused]) -> Block:
    return Block(ids=ids[good], rows=np.zeros((0,)) if rows is None else rows, refused=tuple(refused))
