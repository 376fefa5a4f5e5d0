"""The readers of stored rows, by what a path or a word such as digits:plan names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError
from orchestrator.rows.arrays import array_from_path, digits_array, mapped_npy
from orchestrator.rows.blocks import (
    ColumnNames,
    Rows,
    RowSource,
    StoredRows,
    check_regular,
    check_rows_of,
    is_hidden,
)
from orchestrator.rows.digits import digit_image
from orchestrator.rows.labels import MemberClasses
from orchestrator.rows.pictures import PICTURE_ENDINGS, ReadPicture, folder_source, picture_bytes
from orchestrator.rows.tables import TABLE_ENDINGS, table_rows, table_source
from orchestrator.spec.served_model import ModelInfo, input_tensor


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
        data: digits:<split>, a folder of pictures or of Parquet files, or a file of rows.
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
    is_digits = data.startswith("digits:")
    if not is_digits and is_parquet(path):
        # pyarrow is optional.
        from orchestrator.rows.parquet import parquet_source

        return parquet_source(path, info, columns=columns, classes=classes, read_picture=read_picture)
    if columns.named and (is_digits or path.is_dir()):
        expected = f"a table or .npz with {columns.named[0]} in it"
        raise DataError(f"data source {data}", got="data without columns", expected=expected)
    if is_digits:
        return digits_array(data, info).source(classes)
    if path.is_dir():
        return folder_source(path, classes=classes, read_picture=read_picture)
    if path.suffix.lower() in TABLE_ENDINGS and path.is_file():
        return table_source(path, info, columns=columns, classes=classes)
    if path.suffix not in (".npz", ".npy", ".parquet", *TABLE_ENDINGS):
        files = "a .npz, .npy, .parquet, .csv, .tsv or .jsonl file"
        expected = f"digits:<split>, a folder of pictures or .parquet files, or {files}"
        got = f"{data}, which is not there" if not path.exists() else data
        raise DataError("data source", got=got, expected=expected)
    if not path.is_file():
        raise DataError(f"data source {path}", got="no such file")
    return array_from_path(path, info, columns).source(classes)


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
    return array_from_path(path, info, columns).stored()


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


@dataclass(frozen=True, kw_only=True)
class NamedRow:
    """One row (1, *dims) to ask about, and its label where that is known; rows of one file are numbered."""

    name: str
    row: Rows
    truth: int | None = None


def named_rows(sources: Sequence[str], info: ModelInfo, *, read_picture: ReadPicture) -> list[NamedRow]:
    """A few rows, in order, from "digit:INDEX" or paths of .npy files and pictures, checked against the model.

    Raises DataError where something is missing or cannot be read, InputError for rows that do not fit the model.
    """
    rows = [named for source in sources for named in _named_rows(source, info, read_picture)]
    for named in rows:
        check_rows_of(f"{named.name}:", info, named.row)
    return rows


def _named_rows(source: str, info: ModelInfo, read_picture: ReadPicture) -> list[NamedRow]:
    if source.startswith("digit:"):
        text = source.removeprefix("digit:")
        if not text.isdecimal():
            raise DataError(source, got=repr(text), expected="a whole number, as in digit:12")
        image, label = digit_image(int(text))
        return [NamedRow(name=source, row=image[None], truth=label)]
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in (*PICTURE_ENDINGS, ".npy"):
        expected = "digit:INDEX, .npy, .png or .jpg, or another kind of picture"
        raise DataError(source, got="an unknown kind of row", expected=expected)
    if not path.exists():
        raise DataError(source, got="no such file")
    if suffix != ".npy":
        return [NamedRow(name=source, row=read_picture(picture_bytes(path, source), source)[None])]
    check_regular(path, f"{path}")
    array = mapped_npy(path)
    if array.ndim == len(input_tensor(info).shape) - 1:  # one row without a batch axis
        return [NamedRow(name=f"{path}", row=array[None])]
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{path}", got=f"shape {list(array.shape)}", expected="at least one row")
    return [NamedRow(name=f"{path}[{index}]", row=array[index : index + 1]) for index in range(len(array))]
