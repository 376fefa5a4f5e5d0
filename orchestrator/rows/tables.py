"""Rows out of tables that are text: CSV, TSV and JSON lines, read a row at a time however large the file is."""

import csv
import itertools
import json
import math
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import DataError, NoRowsError, first_few, shown
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
    check_regular,
    id_at,
    plain_ids,
    readable,
    source_file,
)
from orchestrator.rows.cells import CsvText, TensorColumns, block_of_cells, order_notes, tensor_columns
from orchestrator.rows.labels import MemberClasses, labels_from_array
from orchestrator.spec.served_model import ModelInfo

CSV_ENDINGS, JSON_ENDINGS = (".csv", ".tsv"), (".jsonl", ".ndjson")
TABLE_ENDINGS = (*CSV_ENDINGS, *JSON_ENDINGS)
# The module's own limit of 128 KiB ends the reading; ours, in `rows.cells`, refuses the row.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
# The line on which a row ends, and its cells by column, or why it has none.
Record = tuple[int, "dict[str, Any] | DataError"]


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table in a text file.

    Args:
        names: its columns; of JSON lines every key of any line.
        total: number of rows.
    """

    path: Path
    names: tuple[str, ...]
    total: int

    def cells(self, columns: Sequence[str]) -> Iterator[Any]:
        """The cells of some columns in order, a list for each row, or the DataError of a bad one; None is null."""
        for number, (line, record) in enumerate(_records(self.path, columns)):
            what = _place(self.path, number, line)
            if isinstance(record, DataError):
                yield _named(what, record)
            else:
                yield _Cells([record.get(name) for name in columns], what)

    def column(self, name: str) -> list[Any]:
        """One small column of all rows; in the place of a row that cannot be read the DataError why."""
        return [cells if isinstance(cells, DataError) else cells[0] for cells in self.cells([name])]


class _Cells(list[Any]):
    """The cells of one row, and its place for errors."""

    def __init__(self, cells: list[Any], what: str) -> None:
        super().__init__(cells)
        self.what = what


def _place(path: Path, number: int, line: int) -> str:
    return f"{path} row {number} (line {line})"


def _named(what: str, error: DataError) -> DataError:
    return DataError(f"{what} {error.what}".rstrip(), got=error.got, expected=error.expected, fix=error.fix)


def text_table(path: Path) -> TextTable:
    """A table, which is read once; DataError where it cannot be, or has no rows."""
    check_regular(path, f"{path}")
    names: dict[str, None] = {}
    total = 0
    if path.suffix.lower() in CSV_ENDINGS:
        names = dict.fromkeys(_header(path))
    first: DataError | None = None
    for line, record in _records(path, ()):
        if isinstance(record, dict):
            names |= dict.fromkeys(record)
        elif first is None:
            first = _named(_place(path, total, line), record)
        total += 1
    if not total:
        raise NoRowsError(f"{path}", got="no rows", expected="at least one")
    if not names and first is not None:
        # Not a row says what the columns are.
        raise first
    return TextTable(path=path, names=tuple(names), total=total)


def _records(path: Path, columns: Collection[str]) -> Iterator[Record]:
    """Every row with the cells of some columns at least; of JSON lines with all."""
    return _csv_records(path, columns) if path.suffix.lower() in CSV_ENDINGS else _json_records(path)


@contextmanager
def _csv_reader(path: Path) -> Iterator[Any]:
    # Bytes that are no UTF-8 become halves of characters, so that only their row is refused.
    with readable(f"{path}"), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(file.readline())
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            yield reader
        except csv.Error as error:
            expected = "quotes around a cell, doubled inside it, as in RFC 4180"
            raise DataError(f"{path} line {reader.line_num}", got=f"{error}", expected=expected) from error


def _delimiter(header: str) -> str:
    """What stands between the names of the columns: some programs write a semicolon."""
    return next((one for one in ",;\t" if one in header), ",")


def _header(path: Path) -> list[str]:
    with _csv_reader(path) as reader:
        names: list[str] = next(filter(None, reader), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}", got=f"several columns {first_few(twice)}", expected="names that differ")
    return names


def _csv_records(path: Path, columns: Collection[str]) -> Iterator[Record]:
    with _csv_reader(path) as reader:
        rows = filter(None, reader)
        names: list[str] = next(rows, [])
        places = [(place, name) for place, name in enumerate(names) if name in columns]
        for cells in rows:
            if len(cells) == len(names):
                yield reader.line_num, {name: CsvText(cells[place]) for place, name in places}
            else:
                got = f"{len(cells)} cells"
                yield reader.line_num, DataError("", got=got, expected=f"{len(names)}, one for each column")


def _json_records(path: Path) -> Iterator[Record]:
    with readable(f"{path}"), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, json_record(line)


def _json_float(text: str) -> float | CsvText:
    """A number of JSON; its text, which no dtype holds, where it would become infinity."""
    number = float(text)
    return number if math.isfinite(number) else CsvText(text)


def json_record(line: bytes) -> "dict[str, Any] | DataError":
    """The cells of a line of JSON by column, or why it has none."""
    try:
        value = json.loads(line.decode("utf-8-sig"), parse_float=_json_float)
    except UnicodeDecodeError as error:
        return DataError("", got=f"byte 0x{line[error.start]:02x} at {error.start}", expected="UTF-8")
    # A number of more digits than Python reads is a ValueError of another kind.
    except (ValueError, RecursionError) as error:
        return DataError("", got=f"no JSON ({error})", expected="an object in each line")
    return value if isinstance(value, dict) else DataError("", got=shown(value), expected="an object of columns")


def table_rows(path: Path, info: ModelInfo, *, columns: ColumnNames) -> StoredRows:
    """The rows of a CSV, TSV or JSON lines file, for `committee batch`.

    Raises DataError where it is unreadable, empty, or without usable columns.
    """
    table = text_table(path)
    columns = columns.found_in(f"{path}", "columns", table.names)
    tensors = tensor_columns(f"{path}", info, columns, table.names)
    key = columns.id_column
    ids = np.arange(table.total) if key is None else _ids(table, key)
    names = _columns_of(tensors)

    def blocks(size: int, start: int = 0) -> Iterator[RowBlock]:
        wanted = itertools.islice(table.cells([*names, *columns.keep_columns]), start, None)
        for at, cells in _pieces(wanted, size):
            first = start + at
            block = block_of_cells(np.arange(first, first + len(cells)), cells, tensors)
            refused = tuple(_with_id(one, ids) for one in block.refused)
            kept = {
                # As objects: an array of text is as wide in every row as in the longest.
                name: np.array([_kept(cells[row - first][place]) for row in block.ids], object)
                for place, name in enumerate(columns.keep_columns, len(names))
            }
            yield RowBlock(ids=ids[block.ids], rows=block.rows, refused=refused, kept=kept)

    return StoredRows(
        total=table.total,
        blocks=blocks,
        kept_types=dict.fromkeys(columns.keep_columns, np.dtype(np.str_)),
        notes=order_notes(tensors, columns),
        files=(source_file(path, table.total),),
        numbered=key is None,
    )


def table_source(path: Path, info: ModelInfo, *, columns: ColumnNames, classes: MemberClasses) -> RowSource:
    """The rows of a CSV, TSV or JSON lines file, for `committee record`.

    Raises DataError where it is unreadable, empty, or without usable columns.
    """
    table = text_table(path)
    columns = columns.found_in(f"{path}", "columns", table.names)
    tensors = tensor_columns(f"{path}", info, columns, table.names)
    key, label = columns.id_column, columns.label_column
    ids = np.arange(table.total) if key is None else _as_array(_ids(table, key))
    check_ids(f"{path} ids", ids, table.total)
    group = columns.group_column
    groups = None if group is None else _as_array(_ids(table, group, each="a group"))
    labels, missing = (None, None) if label is None else _labels(f"{path} {label}", table.column(label))
    row_labels = labels_from_array(f"{path}", labels, rows=table.total, classes=classes, missing=missing)
    names = _columns_of(tensors)
    with readable(f"{path}"):
        sha256 = sha256_of_path(path)

    def pieces(wanted: Indices, start: int, size: int) -> Iterator[RowPiece]:
        for first, cells in _pieces(_wanted(table.cells(names), wanted[start:]), size):
            at = start + first
            positions = np.arange(at, at + len(cells))
            yield RowPiece(first=at, stop=at + len(cells), load=partial(block_of_cells, positions, cells, tensors))

    return RowSource(
        name=f"{path}",
        ids=ids,
        labels=row_labels,
        pieces=pieces,
        identity={"file_sha256": sha256, "columns": columns.identity(names)},
        data_sha256=sha256,
        notes=order_notes(tensors, columns),
        groups=groups,
    )


def _columns_of(tensors: Sequence[TensorColumns]) -> list[str]:
    return [name for one in tensors for name in one.columns]


def _wanted(cells: Iterator[Any], wanted: Indices) -> Iterator[Any]:
    """The rows at some places, which ascend."""
    places = iter(wanted.tolist())
    place = next(places, None)
    for number, row in enumerate(cells):
        if place is None:
            return
        if number == place:
            yield row
            place = next(places, None)


def _pieces(rows: Iterator[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """Neighbouring rows and the place of the first: at most `size` of them, and of text some MiB."""
    held: list[Any] = []
    first = held_bytes = 0
    for row in rows:
        held.append(row)
        # By the data alone, so that a resumed run reads the same pieces.
        held_bytes += 0 if isinstance(row, DataError) else sum(len(c) for c in row if isinstance(c, (str, list)))
        if len(held) >= size or held_bytes >= PIECE_BYTES:
            yield first, held
            first, held, held_bytes = first + len(held), [], 0
    if held:
        yield first, held


def _with_id(row: RefusedRow, ids: Rows) -> RefusedRow:
    return replace(row, id=id_at(ids, int(row.id)))


def _kept(cell: Any) -> str:
    """A cell as text: what is no text as JSON has it, nothing for null."""
    if cell is None:
        return ""
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    # Halves of characters, which nothing could write down.
    return text.encode(errors="replace").decode()


def _ids(table: TextTable, name: str, *, each: str = "an id") -> Rows:
    what = f"{table.path} {name}"
    ids = table.column(name)
    if None in ids or "" in ids:
        row = next(row for row, one in enumerate(ids) if one in (None, ""))
        raise DataError(what, got=f"none in row {row}", expected=f"{each} in every row")
    return _with_unread(what, ids)


def _as_array(ids: Rows) -> Rows:
    """Ids as an array of text where they are text, not of objects."""
    return ids.astype(np.str_) if ids.dtype == object else ids


def _with_unread(what: str, ids: list[Any]) -> Rows:
    """Ids (n,), in which rows that cannot be read get such as no other row has: nobody can tell theirs.

    Text is one object for each row, since one long id would make an array of text as wide for all.
    """
    unread = [row for row, one in enumerate(ids) if isinstance(one, DataError)]
    known = [one for one in ids if not isinstance(one, DataError)]
    array = _alike(what, known, text=object)
    is_text = array.dtype == object
    array = array if is_text else plain_ids(what, array, len(known))
    if not unread:
        return array
    below = min(0, *array.tolist(), 0) - 1 if not is_text else 0
    made = [f"row {row}" for row in unread] if is_text else [below - row for row in unread]
    places = np.array(unread) - np.arange(len(unread))
    return np.insert(array, places, np.array(made, array.dtype))


def _labels(what: str, cells: list[Any]) -> tuple[Rows, Any]:
    """The labels there are, and which rows (n,) have none; one that cannot be read is refused as it is read."""
    some = next((cell for cell in cells if cell not in (None, "") and not isinstance(cell, DataError)), None)
    cells = [some if isinstance(cell, DataError) else cell for cell in cells]
    missing = np.array([cell in (None, "") for cell in cells], np.bool_)
    return _alike(what, [cell for cell in cells if cell not in (None, "")]), missing


def _alike(what: str, cells: list[Any], *, text: Any = np.str_) -> Rows:
    """Ids or labels as an array: numbers where all are, else text; DataError where they are of several kinds."""
    if all(isinstance(cell, CsvText) for cell in cells):
        # Only what is written as the number is, so that 007 stays what it is.
        numbers = [int(cell) if _INTEGER.fullmatch(cell) else None for cell in cells]
        cells = [str(cell) for cell in cells] if None in numbers else numbers
    for row, cell in enumerate(cells):
        if not isinstance(cell, (str, int, float)) or isinstance(cell, str) != isinstance(cells[0], str):
            got = f"{shown(cell)} after {shown(cells[0])}" if row else shown(cell)
            raise DataError(what, got=got, expected="whole numbers, or text in every row")
    try:
        return np.array(cells, text if isinstance(cells[0], str) else None) if cells else np.zeros(0, np.int64)
    except OverflowError as error:
        raise DataError(what, got="a number of more than 64 bits", expected="whole numbers or text") from error
