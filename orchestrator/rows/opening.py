"""The readers of stored rows, by what a path or a word such as digits:plan names."""

import os
from pathlib import Path

from orchestrator.errors import DataError
from orchestrator.rows.arrays import INSTALLED_WORDS, ArrayRows, array_from_path, installed_array, is_installed
from orchestrator.rows.blocks import (
    ColumnNames,
    RowSource,
    StoredRows,
    check_regular,
    is_hidden,
)
from orchestrator.rows.labels import MemberClasses
from orchestrator.rows.pictures import PICTURE_ENDINGS, ReadPicture, folder_source
from orchestrator.rows.several import needs_several, several_from_path
from orchestrator.rows.tables import TABLE_ENDINGS, table_rows, table_source
from orchestrator.spec.served_model import ModelInfo


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


def stored_rows(path: Path, info: ModelInfo, *, columns: ColumnNames, read_picture: ReadPicture) -> StoredRows:
    """The rows of a file of arrays or a table, or of a folder of Parquet, for `committee batch`.

    They are checked against the model as far as a header tells, by an InputError. Raises DataError where they are
    missing, unreadable, empty, or without such a column.
    """
    if is_parquet(path):
        # pyarrow is optional.
        from orchestrator.rows.parquet import parquet_rows

        return parquet_rows(path, info, columns=columns, read_picture=read_picture)
    if not path.exists():
        raise DataError(f"{path}", got="no such file")
    if path.is_dir():
        raise DataError(f"{path}", got="a folder without .parquet files", expected="a regular file")
    check_regular(path, f"{path}")
    if path.suffix.lower() in TABLE_ENDINGS:
        return table_rows(path, info, columns=columns)
    if path.suffix not in (".npy", ".npz"):
        got = f"a name ending in {path.suffix or 'nothing'}"
        raise DataError(f"{path}", got=got, expected=".npy, .npz, .parquet, .csv, .tsv or .jsonl")
    return _arrays(path, info, columns).stored()


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
