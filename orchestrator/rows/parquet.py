"""Rows out of Parquet: lists of numbers, raw tensors, encoded pictures, text, or a column for each number.

Imported only for Parquet.
"""

import bisect
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import DataError
from orchestrator.files import sha256_of_path
from orchestrator.rows.blocks import (
    PIECE_BYTES,
    ColumnNames,
    Indices,
    RefusedRow,
    RowBlock,
    RowPiece,
    Rows,
    RowSource,
    StoredRows,
    check_ids,
    left_out_note,
    plain_ids,
    readable,
    source_file,
)
from orchestrator.rows.cells import RowForm, TensorColumns, block_of_cells, order_notes, tensor_columns
from orchestrator.rows.labels import MemberClasses, labels_from_array
from orchestrator.rows.parquet_table import ParquetTable, numpy_from, parquet_table, plain, words_or_numbers
from orchestrator.rows.pictures import ReadPicture, is_picture
from orchestrator.spec.served_model import ModelInfo

ReadColumn = Callable[[Rows, Any], RowBlock]


def parquet_rows(
    path: Path,
    info: ModelInfo,
    *,
    columns: ColumnNames,
    read_picture: ReadPicture,
    files: Sequence[Path] | None = None,
) -> StoredRows:
    """The rows of a Parquet file, or of a folder of them, or of some files of a folder.

    Raises DataError where they are unreadable, empty, or without usable columns.
    """
    table = parquet_table(path, files)
    columns = columns.found_in(f"{path}", "columns", table.schema.names)
    names, read, notes = _rows_reader(table, columns, info, read_picture)
    key = columns.id_column
    # What folders say of rows, as `day=2024-01-31`, is known nowhere else.
    used = {*names, key, *columns.keep_columns}
    kept_names = [*columns.keep_columns, *(name for name in table.keys if name not in used)]
    ends = list(itertools.accumulate(part.rows for part in table.parts))

    def blocks(size: int, start: int = 0) -> Iterator[RowBlock]:
        others = [*([] if key is None else [key]), *kept_names]
        wanted = np.arange(start, table.rows) if start else None
        for batch in table.batches([*names, *others], size=size, wanted=wanted):
            stop = start + batch.num_rows
            # No batch has rows of two files.
            file = table.parts[bisect.bisect(ends, start)].path
            ids = np.arange(start, stop) if key is None else _column_ids(file, batch.column(key))
            block = read(np.arange(batch.num_rows), _joined(batch, names))
            block = _placed(path, block, np.arange(start, stop))
            kept = {one: batch.column(one).take(pa.array(block.ids)) for one in kept_names}
            refused = tuple(RefusedRow(id=ids[one.id].item(), reason=one.reason) for one in block.refused)
            yield RowBlock(ids=ids[block.ids], rows=block.rows, refused=refused, kept=kept)
            start = stop

    return StoredRows(
        total=table.rows,
        blocks=blocks,
        kept_types={one: table.type_of(one) for one in kept_names},
        notes=notes,
        numbered=key is None,
        files=tuple(source_file(part.path, part.rows, root=path) for part in table.parts),
    )


def block_of_arrow(table: Any, info: ModelInfo, *, columns: ColumnNames, read_picture: ReadPicture) -> RowBlock:
    """The rows of a pyarrow table or record batch in memory, with their positions as ids.

    Raises DataError where it has no usable columns.
    """
    arrays = {
        name: plain(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
        for name, column in zip(table.schema.names, table.columns, strict=True)
    }
    schema = pa.schema([pa.field(name, array.type) for name, array in arrays.items()])
    stored = ParquetTable(path=Path("table"), parts=(), schema=schema)
    columns = columns.found_in(f"{stored.path}", "columns", schema.names)
    names, read, _ = _rows_reader(stored, columns, info, read_picture)
    batch = pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)
    numbers = np.arange(batch.num_rows)
    return _placed(stored.path, read(numbers, _joined(batch, names)), numbers)


def parquet_source(
    path: Path, info: ModelInfo, *, columns: ColumnNames, classes: MemberClasses, read_picture: ReadPicture
) -> RowSource:
    """The rows of a Parquet file or a folder of them: encoded pictures, raw tensors or lists of numbers.

    Raises DataError where they are broken, empty, or without usable columns.
    """
    table = parquet_table(path)
    columns = columns.found_in(f"{path}", "columns", table.schema.names)
    key, label = columns.id_column, columns.label_column
    known = np.arange(table.rows) if key is None else _column_ids(path, table.whole(key))
    check_ids(f"{path} ids", known, table.rows)
    group = columns.group_column
    groups = None if group is None else _column_ids(path, table.whole(group), kind="group")
    labels, missing = (None, None) if label is None else _labels(f"{path} label", table.whole(label))
    row_labels = labels_from_array(f"{path}", labels, rows=table.rows, classes=classes, missing=missing)
    names, read, notes = _rows_reader(table, columns, info, read_picture)
    sha256 = _sha256(table)
    # By the data alone, so that a resumed run reads the same pieces.
    most_rows = max(1, PIECE_BYTES // max(1, sum(map(table.row_bytes, names))))

    def pieces(wanted: Indices, start: int, size: int) -> Iterator[RowPiece]:
        first = start
        for column in _columns(table, names, wanted[start:], min(size, most_rows)):
            stop = first + len(column)
            yield RowPiece(first=first, stop=stop, load=partial(_read_at, read, first, column, wanted, path))
            first = stop

    return RowSource(
        name=f"{path}",
        ids=known,
        labels=row_labels,
        pieces=pieces,
        identity={"file_sha256": sha256, "columns": columns.identity(names)},
        data_sha256=sha256,
        notes=(*left_out_note("Parquet", list(table.left_out)), *notes),
        groups=groups,
    )


def _read_at(read: ReadColumn, first: int, column: Any, wanted: Indices, path: Path) -> RowBlock:
    """The block that begins at a position of the wanted rows."""
    return _placed(path, read(np.arange(first, first + len(column)), column), wanted)


def _placed(path: Path, block: RowBlock, numbers: Indices) -> RowBlock:
    """A block whose reasons name file and row; row p of it is number `numbers[p]` of the file."""
    refused = tuple(
        replace(one, reason=f"{path} row {numbers[int(one.id)]}" + one.reason.removeprefix("row"))
        for one in block.refused
    )
    return replace(block, refused=refused)


def _labels(what: str, column: Any) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """The labels that there are, and which rows (n,) have none."""
    kind = column.type
    if pa.types.is_nested(kind):
        fix = "put the number of the class into a column of its own (of a one-hot list, the place of its 1)"
        raise DataError(what, got=f"{kind}", expected="a whole number or a name in each row", fix=fix)
    missing = numpy_from(column.is_null())
    if missing.all():
        # A column of nulls alone may have any type.
        return np.zeros(0, np.int64), missing
    return words_or_numbers(what, column.drop_null(), each="a label"), missing


def _sha256(table: ParquetTable) -> str:
    """Hash of the one file, or of the names and hashes of several."""
    lines = ""
    for part in table.parts:
        with readable(f"{part.path}"):
            sha256 = sha256_of_path(part.path)
        if not table.path.is_dir():
            return sha256
        lines += f"{part.path.relative_to(table.path).as_posix()}\n{sha256}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def _joined(batch: Any, names: Sequence[str]) -> Any:
    """The columns of a batch as one array: a column itself, several as a struct."""
    columns = [batch.column(name) for name in names]
    return columns[0] if len(columns) == 1 else pa.StructArray.from_arrays(columns, names=list(names))


def _columns(table: ParquetTable, names: Sequence[str], wanted: Indices, size: int) -> Iterator[Any]:
    """The wanted rows of the columns in order, `size` at a time."""
    held: list[Any] = []
    for batch in table.batches(names, size=size, wanted=wanted):
        held.append(_joined(batch, names))
        while sum(map(len, held)) >= size:
            joined = pa.concat_arrays(held)
            yield joined.slice(0, size)
            held = [joined.slice(size)]
    if rest := [part for part in held if len(part)]:
        yield pa.concat_arrays(rest)


def _column_ids(path: Path, column: Any, *, kind: str = "id") -> Rows:
    """Ids, or groups, int64 or text (n,)."""
    each = "an id" if kind == "id" else f"a {kind}"
    found = words_or_numbers(f"{path} {kind}", column, each=each)
    return plain_ids(f"{path}", found, len(column), kind=f"{kind}s")


def _rows_reader(
    table: ParquetTable, columns: ColumnNames, info: ModelInfo, read_picture: ReadPicture
) -> tuple[list[str], ReadColumn, tuple[str, ...]]:
    """The columns with the rows, a function from ids (n,) and n of their values to a block, and notes."""
    tensors = tensor_columns(f"{table.path}", info, columns, table.schema.names)
    names = list(dict.fromkeys(name for one in tensors for name in one.columns))
    first = tensors[0]
    # One number is a row only where a row is one number.
    is_row = _is_number(table.type_of(names[0])) and set(first.form.dims) == {1}
    if len(names) == 1 and not first.form.is_text and not is_row:
        what = f"{table.path} column {names[0]}"
        return names, _column_reader(what, table.type_of(names[0]), first.form, read_picture), ()
    for one in tensors:
        for name in one.columns:
            _check_cells(f"{table.path} column {name}", table.type_of(name), one)
    places = [names.index(name) for one in tensors for name in one.columns]

    def read(ids: Rows, column: Any) -> RowBlock:
        fields = [column] if len(names) == 1 else [column.field(name) for name in names]
        values = list(map(_cells, fields))
        return block_of_cells(ids, zip(*(values[place] for place in places), strict=True), tensors)

    return names, read, order_notes(tensors, columns)


def _is_number(kind: Any) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_cells(what: str, kind: Any, tensor: TensorColumns) -> None:
    """Refuses a column whose values can be no cells of a tensor; one of nulls alone has refused rows."""
    leaf = kind
    while len(tensor.columns) == 1 and _is_list(leaf):
        leaf = leaf.value_type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    fits = (_is_text(kind) or is_bytes) if tensor.form.is_text else _is_number(leaf)
    if not fits and not pa.types.is_null(kind):
        expected = "text" if tensor.form.is_text else f"numbers for {tensor.form.dtype}"
        raise DataError(what, got=str(kind), expected=expected, fix="see `text` and `columns`")


def _cells(column: Any) -> list[Any]:
    """The values of a column; bytes that are no UTF-8 as halves of characters, which `rows.cells` refuses."""
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode(errors="surrogateescape") for value in values]


def _column_reader(what: str, kind: Any, form: RowForm, read_picture: ReadPicture) -> ReadColumn:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = _column_reader(what, kind.field("bytes").type, form, read_picture)
        return lambda ids, column: inner(ids, column.field("bytes"))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return lambda ids, column: _block_of_bytes(ids, column.to_pylist(), form=form, read_picture=read_picture)
    leaf = kind
    while _is_list(leaf):
        leaf = leaf.value_type
    numeric = pa.types.is_integer(leaf) or pa.types.is_floating(leaf)
    # pyarrow's own to_pandas_dtype() wants pandas, which nothing else here needs.
    if (
        not _is_list(kind)
        or not numeric
        or not np.can_cast(numpy_from(pa.array([], leaf)), form.dtype, "same_kind")
    ):
        expected = f"lists of numbers for {form.dtype}, raw bytes, or pictures"
        raise DataError(what, got=str(kind), expected=expected, fix="see `column`")
    return lambda ids, column: _block_of_lists(ids, column, form=form)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _block_of_bytes(
    ids: Rows, values: list[bytes | None], *, form: RowForm, read_picture: ReadPicture
) -> RowBlock:
    """Rows from encoded pictures, or from tensors as little-endian bytes in C order."""
    good, rows, refused = [], [], []
    for index, value in enumerate(values):
        try:
            rows.append(_row_of_bytes(value, form, read_picture))
            good.append(index)
        except DataError as error:
            reason = str(error)
            reason = reason if reason.startswith("row") else f"row {reason}"
            refused.append(RefusedRow(id=ids[index].item(), reason=reason))
    return RowBlock(ids=ids[good], rows=np.stack(rows) if rows else np.zeros((0,)), refused=tuple(refused))


def _row_of_bytes(value: bytes | None, form: RowForm, read_picture: ReadPicture) -> Rows:
    if value is None:
        raise DataError("row", got="null")
    tensor_bytes = None if -1 in form.dims else form.values * form.dtype.itemsize
    if is_picture(value, tensor_bytes=tensor_bytes):
        return read_picture(value, "picture")
    if len(value) != form.values * form.dtype.itemsize:
        expected = f"{form.values} x {form.dtype} as raw bytes, or a picture"
        raise DataError("row", got=f"{len(value)} bytes", expected=expected)
    return np.frombuffer(value, form.dtype.newbyteorder("<")).astype(form.dtype).reshape(form.dims)


def _block_of_lists(ids: Rows, column: Any, *, form: RowForm) -> RowBlock:
    """Rows from lists of numbers, flat or nested, in C order."""
    sizes, leaves, holes = _leaves(column, form)
    cast, lost = _cast(leaves, form.dtype)
    unheld = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[lost], minlength=len(sizes)) > 0
    bad = (sizes != form.values) | holes | unheld
    refused = []
    for index in np.flatnonzero(bad):
        got = f"{sizes[index]} values, expected {form.values}"
        if holes[index]:
            got = "null in it"
        elif sizes[index] == form.values:
            got = f"a number that {form.dtype} does not hold"
        refused.append(RefusedRow(id=ids[index].item(), reason=f"row: got {got}"))
    kept = cast[np.repeat(~bad, sizes)] if bad.any() else cast
    rows = np.zeros((0,)) if bad.all() else kept.reshape(len(ids) - len(refused), *form.dims)
    return RowBlock(ids=ids[~bad], rows=rows, refused=tuple(refused))


def _cast(values: Rows, dtype: np.dtype[Any]) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Numbers (n,) of a dtype, and which of them it does not hold."""
    with np.errstate(over="ignore"):
        cast = values.astype(dtype, copy=False)
    return cast, (np.isinf(cast) & np.isfinite(values)) if dtype.kind == "f" else cast != values


def _leaves(column: Any, form: RowForm) -> tuple[npt.NDArray[np.int64], Rows, npt.NDArray[np.bool_]]:
    """How many numbers each row holds, all the numbers, and which rows hold a null that is no missing number."""
    rows = len(column)
    owner = np.arange(rows)
    holes = np.zeros(rows, np.bool_)
    while True:
        missing = numpy_from(column.is_null())
        is_leaf = not _is_list(column.type)
        if not (is_leaf and form.missing_is_nan):
            holes[owner[missing]] = True
        if is_leaf:
            values = numpy_from(column.fill_null(0))
            # Elsewhere nulls are holes, and their rows are refused.
            values = np.where(missing, np.nan, values) if form.missing_is_nan and missing.any() else values
            return np.bincount(owner, minlength=rows).astype(np.int64), values, holes
        owner = np.repeat(owner, numpy_from(pc.list_value_length(column).fill_null(0)))
        # flatten() leaves out what lies behind a null list, in fixed-size lists too.
        column = column.flatten()
