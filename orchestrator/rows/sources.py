"""Where rows come from: a source knows their ids and labels, and gives the rows themselves piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.rows.digits import digits_split
from orchestrator.rows.labels import Classes
from orchestrator.rows.pictures import ReadPicture
from orchestrator.rows.stored import ColumnNames, Refused, is_parquet
from orchestrator.spec.served_model import ModelInfo

Rows = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Rows that are all in memory.

    Args:
        ids: (n,).
        images: (n, *dims) in the members' input dtype.
        labels: int64 (n,), None where the source has none.
    """

    ids: npt.NDArray[Any]
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Rows of one piece, ready to be asked about.

    Args:
        positions: int64 (n,), which rows they are.
        rows: (n, *dims).
        refused: rows between them that cannot be read; their `id` is the position.
        digests: hash of each readable row as it was stored, where the source is hashed as it is read.
    """

    positions: Indices
    rows: Rows
    refused: tuple[Refused, ...] = ()
    digests: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Neighbouring positions, and how to get their rows; `load` may run in any thread.

    Args:
        first, stop: positions, stop excluded.
        load: reads and decodes.
    """

    first: int
    stop: int
    load: Callable[[], Loaded]


@dataclass(frozen=True, kw_only=True)
class Source:
    """All rows of a data source.

    Args:
        name: as the user wrote it.
        ids: (n,), unique; whole numbers or text.
        labels: int64 (n,) in 0..k-1, -1 in rows without one; None where the source has none.
        labels_by: "map", "name" or "order" where class names were turned into numbers, else None.
        class_names: what the classes are called, where the names that were turned into numbers tell; else None.
        pieces: from the indices wanted, the position to begin at and the rows per piece to the pieces. Position p
            is row wanted[p]; indices ascend.
        identity: what must be equal for two readings to give the same rows.
        state: what changes whenever anybody writes to the data, where `identity` may miss that; else "".
        data_sha256: hash of the data; None where it is hashed as it is read.
        notes: what the user should know of how it was read.
    """

    name: str
    ids: Rows
    labels: npt.NDArray[np.int64] | None
    pieces: Callable[[Indices, int, int], Iterator[Piece]]
    identity: dict[str, str]
    data_sha256: str | None
    labels_by: str | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    state: str = ""


def rows_from_source(source: str) -> LabelledRows:
    """The rows of "digits:<split>", at once.

    Raises:
        DataError: the source is another, or there is no such split.
    """
    kind, _, split = source.partition(":")
    if kind != "digits":
        raise DataError("data source", got=source, expected="digits:<split>")
    digits = digits_split(split)
    return LabelledRows(ids=digits.ids, images=digits.images, labels=digits.labels)


def source_from_text(
    text: str,
    info: ModelInfo,
    *,
    classes: Classes,
    read_picture: ReadPicture,
    columns: ColumnNames | None = None,
) -> Source:
    """The source that a word of the command line names.

    Args:
        text: digits:<split>, a folder of pictures or Parquet files, or a .npz, .npy or .parquet file.
        info: a model whose input the rows are for.
        classes: that its labels are of.
        read_picture: turns an encoded picture into one row.
        columns: which of its columns or arrays are what; None for the usual names.

    Raises:
        DataError: it is unknown, missing, broken, or does not fit together.
        InputError: its rows do not fit the model.
    """
    # Each kind brings its own packages, so only the one needed is imported.
    from orchestrator.rows import arrays

    path = Path(text)
    columns = columns or ColumnNames()
    is_digits = text.startswith("digits:")
    if not is_digits and is_parquet(path):
        from orchestrator.rows.parquet import parquet_source

        return parquet_source(path, info, columns=columns, classes=classes, read_picture=read_picture)
    if columns.named and (is_digits or path.is_dir()):
        expected = f"a .npz or .parquet file with {columns.named[0]} in it"
        raise DataError(f"data source {text}", got="data without columns", expected=expected)
    if is_digits:
        return arrays.digits_source(text, info, classes=classes)
    if path.is_dir():
        from orchestrator.rows.folder import folder_source

        return folder_source(path, classes=classes, read_picture=read_picture)
    _check_file(text)
    return arrays.array_source(path, info, columns=columns, classes=classes)


def _check_file(text: str) -> None:
    path = Path(text)
    if path.suffix not in (".npz", ".npy", ".parquet"):
        expected = "digits:<split>, a folder of pictures or .parquet files, or a .npz, .npy or .parquet file"
        got = f"{text}, which is not there" if not path.exists() else text
        raise DataError("data source", got=got, expected=expected)
    if not path.is_file():
        raise DataError(f"data source {path}", got="no such file")


def spans(total: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """First and stop of each piece from a position on."""
    for first in range(start, total, size):
        yield first, min(first + size, total)
