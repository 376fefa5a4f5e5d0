"""Rows of Parquet files with columns image, label and id, or other names. Imported only for Parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.errors import DataError
from orchestrator.files import sha256_of_path
from orchestrator.rows.batch_parquet import (
    column_ids,
    named_column,
    rows_column,
    rows_reader,
)
from orchestrator.rows.ids import check_ids
from orchestrator.rows.labels import Classes, labels_from_array
from orchestrator.rows.parquet_table import ParquetTable, left_out_note, parquet_table
from orchestrator.rows.parquet_types import words_or_numbers
from orchestrator.rows.pictures import ReadPicture
from orchestrator.rows.sources import Indices, Loaded, Piece, Rows, Source
from orchestrator.rows.stored import ID_NAMES, LABEL_NAMES, Block, ColumnNames, Refused
from orchestrator.spec.served_model import ModelInfo

# Several pieces wait for the members as they are stored, and pictures may be far larger than the rows they become.
PIECE_BYTES = 8 << 20


def parquet_source(
    path: Path, info: ModelInfo, *, columns: ColumnNames, classes: Classes, read_picture: ReadPicture
) -> Source:
    """The rows of a Parquet file or a folder of them: encoded pictures, raw tensors or lists of numbers.

    Raises:
        DataError: broken, empty, or without usable columns.
    """
    table = parquet_table(path)
    key = named_column(table, columns.ids, usual=ID_NAMES, option="--id-column")
    known = np.arange(table.rows) if key is None else column_ids(path, table.whole(key))
    check_ids(f"{path} ids", known, table.rows)
    label = named_column(table, columns.labels, usual=LABEL_NAMES, option="--label-column")
    labels, missing = (None, None) if label is None else _labels(f"{path} label", table.whole(label))
    known_labels = labels_from_array(f"{path}", labels, rows=table.rows, classes=classes, missing=missing)
    name = rows_column(table, columns)
    read = rows_reader(table, name, info, read_picture)
    sha256 = _sha256(table)
    # By the data alone, so that a resumed run cuts them alike.
    most_rows = max(1, PIECE_BYTES // max(1, table.row_bytes(name)))

    def pieces(wanted: Indices, start: int, size: int) -> Iterator[Piece]:
        first = start
        for column in _columns(table, name, wanted[start:], min(size, most_rows)):
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
        identity={"file_sha256": sha256, "columns": f"{name}, {key}"},
        data_sha256=sha256,
        notes=(*known_labels.notes, *left_out_note(table)),
    )


def _labels(what: str, column: Any) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """The labels that there are, and which rows (n,) have none."""
    kind = column.type
    if pa.types.is_nested(kind):
        fix = "put the number of the class into a column of its own (of a one-hot list, the place of its 1)"
        raise DataError(what, got=f"{kind}", expected="a whole number or a name in each row", fix=fix)
    missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    if missing.all():
        # Their type says nothing.
        return np.zeros(0, np.int64), missing
    return words_or_numbers(what, column.drop_null(), each="a label"), missing


def _sha256(table: ParquetTable) -> str:
    """Hash of the one file, or of the names and hashes of several."""
    hashes = [(part.path, _sha256_of_file(part.path)) for part in table.parts]
    if not table.path.is_dir():
        return hashes[0][1]
    lines = "".join(f"{path.relative_to(table.path).as_posix()}\n{sha256}\n" for path, sha256 in hashes)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256_of_file(path: Path) -> str:
    try:
        return sha256_of_path(path)
    except OSError as error:
        raise DataError(f"{path}", got=f"a file that cannot be read ({error.strerror})") from error


def _columns(table: ParquetTable, name: str, wanted: Indices, size: int) -> Iterator[Any]:
    """The wanted rows of the column in order, `size` at a time."""
    held: list[Any] = []
    for batch in table.batches([name], size=size, wanted=wanted):
        held.append(batch.column(0))
        while sum(map(len, held)) >= size:
            joined = pa.concat_arrays(held)
            yield joined.slice(0, size)
            held = [joined.slice(size)]
    if rest := [part for part in held if len(part)]:
        yield pa.concat_arrays(rest)


def _load(read: Callable[[Any], Block], column: Any, first: int) -> Loaded:
    block = read(column)
    refused = tuple(Refused(id=first + int(one.id), reason=one.reason) for one in block.refused)
    return Loaded(positions=first + block.ids, rows=block.rows, refused=refused)
