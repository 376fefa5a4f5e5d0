"""Stored rows in blocks, and which columns are what: what every reader of files gives and takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.rows.pictures import PICTURE_ENDINGS

Rows = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
# What columns and arrays are called where nobody says, the first one found.
ID_NAMES, LABEL_NAMES = ("id", "ids"), ("label", "labels")
NOT_ROWS = (*ID_NAMES, *LABEL_NAMES)


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Which columns of a Parquet file, or arrays of an archive, are what; None for those of the usual names.

    Args:
        rows: what the model takes.
        ids: of the rows.
        labels: of the rows.
        kept: carried into the answers as they are.
    """

    rows: str | None = None
    ids: str | None = None
    labels: str | None = None
    kept: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """All that are named."""
        return tuple(name for name in (self.rows, self.ids, self.labels, *self.kept) if name is not None)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row without an answer.

    Args:
        id: of the row, a whole number or a text.
        reason: why, in one line.
    """

    id: int | str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of a file, in its order.

    Args:
        ids: (n,), int64 or text.
        rows: (n, *dims).
        refused: rows that lay between them and could not even be read.
        kept: name -> column (n,), a numpy or an Arrow array.
    """

    ids: Rows
    rows: Rows
    refused: tuple[Refused, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Rows of the file it stands for."""
        return len(self.ids) + len(self.refused)

    def picked(self, where: Indices) -> Block:
        """Some of its rows, without the refused ones.

        Args:
            where: int64, ascending.
        """
        kept = {name: column.take(where) for name, column in self.kept.items()}
        return Block(ids=self.ids[where], rows=self.rows[where], kept=kept)


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """A file of rows.

    Args:
        total: how many there are.
        text_ids: whether ids are text; else they are whole numbers.
        kept_types: name -> numpy dtype or Arrow type of each column that is carried into the answers.
        blocks: gives them in order, in blocks of at most so many rows.
    """

    total: int
    text_ids: bool
    blocks: Callable[[int], Iterator[Block]]
    kept_types: Mapping[str, Any] = field(default_factory=dict)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data, by its name: .git, _SUCCESS, _temporary."""
    return name.startswith((".", "_"))


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


def checked_ids(path: Path, ids: Rows, total: int) -> Rows:
    """Ids as int64 or text.

    Raises:
        DataError: another kind, or another number of them than there are rows.
    """
    if ids.shape != (total,):
        raise DataError(f"{path} ids", got=f"shape {list(ids.shape)}", expected=f"[{total}], one per row")
    if ids.dtype.kind in "iu" and ids.dtype != np.uint64:
        return ids.astype(np.int64)
    if ids.dtype.kind in "US":
        try:
            return ids.astype(np.str_)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} ids", got=f"bytes that are not ASCII ({error})", expected="text") from error
    raise DataError(f"{path} ids", got=f"dtype {ids.dtype}", expected="whole numbers or text")
