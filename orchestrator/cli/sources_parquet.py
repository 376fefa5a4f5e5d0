"""Rows of a Parquet file with columns image, label and id. Imported only for Parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.cli.batch_parquet import RowForm, column_ids, column_reader, rows_column
from orchestrator.cli.pictures import ReadPicture
from orchestrator.cli.sources import Indices, Loaded, Piece, Rows, Source
from orchestrator.cli.sources_labels import Classes, labels_from_array
from orchestrator.client.models import ModelInfo, input_tensor
from orchestrator.errors import DataError
from orchestrator.planner.records import check_ids
from orchestrator.spec.inputs import INPUT_DTYPES

FOREIGN = (OSError, pa.ArrowException)


def parquet_source(path: Path, info: ModelInfo, *, classes: Classes, read_picture: ReadPicture) -> Source:
    """The rows of a Parquet file: encoded pictures, raw tensors or lists of numbers.

    Raises:
        DataError: broken, empty, or without usable columns.
    """
    try:
        file = pq.ParquetFile(path)
        rows = file.metadata.num_rows
        ids, labels = (_whole(file, keys) for keys in (("id", "ids"), ("label", "labels")))
        sha256 = _sha256(path)
    except FOREIGN as error:
        raise DataError(f"{path}", got=f"a file pyarrow cannot read ({error})", expected="Parquet") from error
    if rows == 0:
        raise DataError(f"{path}", got="no rows", expected="at least one")
    known = np.arange(rows) if ids is None else column_ids(path, ids)
    check_ids(f"{path} ids", known, rows)
    known_labels = labels_from_array(f"{path}", _numpy_labels(path, labels), rows=rows, classes=classes)
    schema = file.schema_arrow
    name = rows_column(path, schema, None)
    tensor = input_tensor(info)
    form = RowForm(dtype=np.dtype(INPUT_DTYPES.get(tensor.dtype, "float32")), dims=tensor.shape[1:])
    read = column_reader(path, schema.field(name), form, read_picture)

    def pieces(wanted: Indices, start: int, size: int) -> Iterator[Piece]:
        first = start
        for column in _columns(file, path, name, wanted[start:], size):
            stop = first + len(column)
            yield Piece(first=first, stop=stop, load=partial(_load, read, column, first))
            first = stop

    return Source(
        name=f"{path}",
        ids=known,
        labels=known_labels.numbers,
        labels_by=known_labels.by,
        class_names=known_labels.class_names,
        pieces=pieces,
        identity={"file_sha256": sha256},
        data_sha256=sha256,
        notes=known_labels.notes,
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _whole(file: Any, keys: tuple[str, ...]) -> Any:
    """One small column, or None where the file has none of these names."""
    name = next((key for key in keys if key in file.schema_arrow.names), None)
    if name is None:
        return None
    column = file.read(columns=[name]).column(name).combine_chunks()
    # An older pyarrow leaves a chunked array of one chunk, or of none.
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column


def _numpy_labels(path: Path, column: Any) -> Rows | None:
    if column is None:
        return None
    if column.null_count:
        raise DataError(f"{path} label", got=f"{column.null_count} nulls", expected="a label in every row")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array(column.to_pylist(), np.str_)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _columns(file: Any, path: Path, name: str, wanted: Indices, size: int) -> Iterator[Any]:
    """The wanted rows of the column in order, `size` at a time; row groups without any are not read."""
    held: list[Any] = []
    for part in _chosen(file, path, name, wanted, size):
        held.append(part)
        while sum(map(len, held)) >= size:
            joined = pa.concat_arrays(held)
            yield joined.slice(0, size)
            held = [joined.slice(size)]
    if rest := [part for part in held if len(part)]:
        yield pa.concat_arrays(rest)


def _chosen(file: Any, path: Path, name: str, wanted: Indices, size: int) -> Iterator[Any]:
    start = 0
    for group in range(file.metadata.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        if np.searchsorted(wanted, start) < np.searchsorted(wanted, stop):
            try:
                for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=[name]):
                    low, high = np.searchsorted(wanted, (start, start + batch.num_rows))
                    if low < high:
                        yield batch.column(0).take(pa.array(wanted[low:high] - start))
                    start += batch.num_rows
            except FOREIGN as error:
                raise DataError(f"{path}", got=f"row {start} or one after it is broken ({error})") from error
        start = stop


def _load(read: Any, column: Any, first: int) -> Loaded:
    # The reader's ids are only handed through, so positions can stand in for them.
    block = read(np.arange(first, first + len(column)), column)
    return Loaded(positions=block.ids, rows=block.rows, refused=block.refused)
