"""The readers of stored rows, by what a path or a word such as digits:plan names."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import has_magic
from pathlib import Path

from orchestrator.errors import DataError, NoRowsError
from orchestrator.rows.arrays import INSTALLED_WORDS, ArrayRows, array_from_path, installed_array, is_installed
from orchestrator.rows.blocks import (
    ColumnNames,
    RowBlock,
    RowSource,
    StoredRows,
    check_regular,
    is_hidden,
    source_file,
)
from orchestrator.rows.labels import MemberClasses
from orchestrator.rows.pictures import PICTURE_ENDINGS, ReadPicture, folder_rows, folder_source
from orchestrator.rows.several import needs_several, several_from_path
from orchestrator.rows.tables import TABLE_ENDINGS, table_rows, table_source
from orchestrator.spec.served_model import ModelInfo

ARRAY_ENDINGS = (".npy", ".npz")


def row_source(
    data: str,
    info: ModelInfo,
    *,
    classes: MemberClasses,
    read_picture: ReadPicture,
    columns: ColumnNames | None = None,
) -> RowSource:
    """Rows with ids and labels, for `committee record`.

    Args:
        data: digits:<split> or docstrings:<split>, a folder of pictures or of Parquet files, or a file of rows.
        info: a model whose input the rows are for.
        classes: that the labels are of.
        read_picture: turns an encoded picture into one row.
        columns: which columns or arrays hold what; None for the usual names.

    Raises:
        DataError: it is unknown, missing, broken, or does not fit together.
        InputError: its rows do not fit the model.
    """
    path = Path(data)
    columns = columns or ColumnNames()
    installed = is_installed(data)
    if not installed and is_parquet(path):
        # pyarrow is optional.
        from orchestrator.rows.parquet import parquet_source

        return parquet_source(path, info, columns=columns, classes=classes, read_picture=read_picture)
    if columns.named and (installed or path.is_dir()):
        expected = f"a table or .npz with {columns.named[0]} in it"
        raise DataError(f"data source {data}", got="data without columns", expected=expected)
    if installed:
        return installed_array(data, info).source(classes)
    if path.is_dir():
        return folder_source(path, classes=classes, read_picture=read_picture)
    if path.suffix.lower() in TABLE_ENDINGS and path.is_file():
        return table_source(path, info, columns=columns, classes=classes)
    if path.suffix not in (".npz", ".npy", ".parquet", *TABLE_ENDINGS):
        files = "a .npz, .npy, .parquet, .csv, .tsv or .jsonl file"
        expected = f"{INSTALLED_WORDS}, a folder of pictures or .parquet files, or {files}"
        got = f"{data}, which is not there" if not path.exists() else data
        raise DataError("data source", got=got, expected=expected)
    if not path.is_file():
        raise DataError(f"data source {path}", got="no such file")
    return _arrays(path, info, columns).source(classes)


def stored_rows(data: str, info: ModelInfo, *, columns: ColumnNames, read_picture: ReadPicture) -> StoredRows:
    """The rows of a file, of a folder of files of one kind or of pictures, or of the files of a glob.

    They are checked against the model as far as a header tells, by an InputError. Raises DataError where they are
    missing, unreadable, empty, or without such a column.
    """
    path, files = Path(data), None
    if not path.exists() and has_magic(data):
        path = _without_magic(data)
        files = sorted(one for one in path.glob(f"{Path(data).relative_to(path)}") if one.is_file())
        if not files:
            raise DataError(data, got="no file of that name", expected="at least one")
    if files is None and not path.exists():
        raise DataError(f"{path}", got="no such file")
    are_parquet = is_parquet(path) if files is None else all(one.suffix == ".parquet" for one in files)
    if are_parquet:
        # pyarrow is optional.
        from orchestrator.rows.parquet import parquet_rows

        return parquet_rows(path, info, columns=columns, read_picture=read_picture, files=files)
    if files is None and not path.is_dir():
        return _rows_of_file(path, info, columns)
    files = files or _tables_below(path)
    if files:
        return _rows_of_files(path, files, info, columns)
    if columns.named:
        got = "a folder of pictures, which has no columns"
        raise DataError(f"{path}", got=got, expected=f"one of tables, with {columns.named[0]}")
    return folder_rows(path, read_picture=read_picture)


def _without_magic(data: str) -> Path:
    """The folder that all names of a glob are in."""
    parts = Path(data).parts
    return Path(*itertools.takewhile(lambda part: not has_magic(part), parts))


def _tables_below(folder: Path) -> list[Path]:
    """The files of tables and arrays of a folder and those below it, in order."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in names:
            if Path(name).suffix.lower() in (*TABLE_ENDINGS, *ARRAY_ENDINGS) and not is_hidden(name):
                found.append(Path(place, name))
    return sorted(found)


def _rows_of_file(path: Path, info: ModelInfo, columns: ColumnNames) -> StoredRows:
    check_regular(path, f"{path}")
    if path.suffix.lower() in TABLE_ENDINGS:
        return table_rows(path, info, columns=columns)
    if path.suffix not in ARRAY_ENDINGS:
        got = f"a name ending in {path.suffix or 'nothing'}"
        raise DataError(f"{path}", got=got, expected=".npy, .npz, .parquet, .csv, .tsv or .jsonl")
    return _arrays(path, info, columns).stored()


def _rows_of_files(root: Path, files: Sequence[Path], info: ModelInfo, columns: ColumnNames) -> StoredRows:
    """The rows of several files, one after another; files without rows are passed over."""
    parts: list[StoredRows] = []
    for path in files:
        with contextlib.suppress(NoRowsError):
            part = _rows_of_file(path, info, columns)
            parts.append(replace(part, files=(source_file(path, part.total, root=root),)))
            if part.numbered != parts[0].numbered:
                raise DataError(f"{path}", got="other columns of ids than the files before", expected="the same")
    if not parts:
        raise NoRowsError(f"{root}", got="no rows", expected="at least one")

    def blocks(size: int, start: int = 0) -> Iterator[RowBlock]:
        first = 0
        for part in parts:
            if start < first + part.total:
                for block in part.blocks(size, max(0, start - first)):
                    yield _numbered_from(block, first) if part.numbered else block
            first += part.total

    return StoredRows(
        total=sum(part.total for part in parts),
        blocks=blocks,
        kept_types=parts[0].kept_types,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        files=tuple(file for part in parts for file in part.files),
        numbered=parts[0].numbered,
    )


def _numbered_from(block: RowBlock, first: int) -> RowBlock:
    refused = tuple(replace(one, id=first + int(one.id)) for one in block.refused)
    return replace(block, ids=first + block.ids, refused=refused)


def _arrays(path: Path, info: ModelInfo, columns: ColumnNames) -> ArrayRows:
    if columns.columns:
        raise DataError(f"{path}", got="`columns`", expected="a table", fix="stack the columns to one array")
    read = several_from_path if needs_several(path, info) else array_from_path
    return read(path, info, columns)


def is_parquet(path: Path) -> bool:
    """Whether it is a Parquet file, or a folder of them rather than of pictures, by the names of its files."""
    if not path.is_dir():
        return path.suffix == ".parquet" and path.is_file()
    for _, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        endings = {Path(name).suffix.lower() for name in names if not is_hidden(name)}
        if ".parquet" in endings or endings & PICTURE_ENDINGS:
            return not endings & PICTURE_ENDINGS
    return False
