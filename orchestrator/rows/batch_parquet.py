"""Rows out of a Parquet column: lists of numbers, raw tensors, or encoded pictures. Imported only for Parquet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import DataError
from orchestrator.rows.parquet_table import ParquetTable, parquet_table
from orchestrator.rows.parquet_types import is_text, words_or_numbers
from orchestrator.rows.pictures import ReadPicture, is_picture
from orchestrator.rows.stored import ID_NAMES, NOT_ROWS, Block, ColumnNames, Refused, StoredRows, checked_ids
from orchestrator.spec.inputs import INPUT_DTYPES
from orchestrator.spec.served_model import ModelInfo, input_tensor

Rows = npt.NDArray[Any]
USUAL = ("image", "images", "rows", "row")


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


def parquet_rows(path: Path, info: ModelInfo, *, columns: ColumnNames, read_picture: ReadPicture) -> StoredRows:
    """The rows of a Parquet file, or of a folder of them.

    Raises:
        DataError: unreadable, empty, or without usable columns.
    """
    table = parquet_table(path)
    name = rows_column(table, columns)
    key = named_column(table, columns.ids, usual=ID_NAMES, option="--id-column")
    for one in columns.kept:
        named_column(table, one, option="--keep-columns")
    text_ids = key is not None and is_text(table.type_of(key))
    read = rows_reader(table, name, info, read_picture)

    def blocks(size: int) -> Iterator[Block]:
        names = [name, *([] if key is None else [key]), *columns.kept]
        start = 0
        for batch in table.batches(names, size=size):
            stop = start + batch.num_rows
            ids = np.arange(start, stop) if key is None else column_ids(path, batch.column(key))
            block = read(batch.column(name))
            kept = {one: batch.column(one).take(pa.array(block.ids)) for one in columns.kept}
            refused = tuple(Refused(id=ids[one.id].item(), reason=one.reason) for one in block.refused)
            yield Block(ids=ids[block.ids], rows=block.rows, refused=refused, kept=kept)
            start = stop

    kept_types = {one: table.type_of(one) for one in columns.kept}
    return StoredRows(total=table.rows, text_ids=text_ids, blocks=blocks, kept_types=kept_types)


def named_column(table: ParquetTable, name: str | None, *, usual: Sequence[str] = (), option: str) -> str | None:
    """A column: the one asked for, else the first there is of the usual names.

    Args:
        table: that has it.
        name: asked for.
        usual: names to look for where none is asked for.
        option: of the command line, that asks for one.

    Raises:
        DataError: the one asked for is not there.
    """
    names = table.schema.names
    if name is not None and name not in names:
        got = f"columns {', '.join(names) or 'none'}"
        raise DataError(f"{table.path}", got=got, expected=name, fix=f"see {option}")
    return name if name is not None else next((key for key in usual if key in names), None)


def rows_column(table: ParquetTable, columns: ColumnNames) -> str:
    """Which column holds the rows: the one asked for, one of the usual names, or the only one that may.

    Raises:
        DataError: there is none, or several.
    """
    if (name := named_column(table, columns.rows, usual=USUAL, option="--column")) is not None:
        return name
    others = [name for name in table.schema.names if name not in (*NOT_ROWS, *columns.named)]
    if len(others) != 1:
        got = f"columns {', '.join(table.schema.names) or 'none'}"
        raise DataError(f"{table.path}", got=got, expected="a column image", fix="see --column")
    return str(others[0])


def column_ids(path: Path, column: Any) -> Rows:
    """Ids as int64 or text.

    Raises:
        DataError: nulls, or another kind.
    """
    return checked_ids(path, words_or_numbers(f"{path} id", column, each="an id"), len(column))


def rows_reader(
    table: ParquetTable, name: str, info: ModelInfo, read_picture: ReadPicture
) -> Callable[[Any], Block]:
    """A function from one batch of a column to a block of rows for a model, whose ids are positions in the batch.

    Raises:
        DataError: the column holds nothing that could be rows.
    """
    tensor = input_tensor(info)
    form = RowForm(dtype=np.dtype(INPUT_DTYPES.get(tensor.dtype, "float32")), dims=tensor.shape[1:])
    read = _column_reader(f"{table.path} column {name}", table.type_of(name), form, read_picture)

    def block_of(column: Any) -> Block:
        block: Block = read(np.arange(len(column)), column)
        return block

    return block_of


def _column_reader(what: str, kind: Any, form: RowForm, read_picture: ReadPicture) -> Any:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = _column_reader(what, kind.field("bytes").type, form, read_picture)
        return lambda ids, column: inner(ids, column.field("bytes"))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return lambda ids, column: block_of_bytes(ids, column.to_pylist(), form=form, read_picture=read_picture)
    leaf = kind
    while _is_list(leaf):
        leaf = leaf.value_type
    numeric = pa.types.is_integer(leaf) or pa.types.is_floating(leaf)
    if not _is_list(kind) or not numeric or not np.can_cast(_numpy_dtype(leaf), form.dtype, "same_kind"):
        expected = f"lists of numbers for {form.dtype}, raw bytes, or pictures"
        raise DataError(what, got=str(kind), expected=expected, fix="see --column")
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
    tensor_bytes = None if -1 in form.dims else form.values * form.dtype.itemsize
    if is_picture(value, tensor_bytes=tensor_bytes):
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
