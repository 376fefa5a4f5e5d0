"""Stored rows as every reader gives them, whatever they are stored in."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InputError
from orchestrator.rows.labels import RowLabels
from orchestrator.spec.served_model import ModelInfo, check_rows

Rows = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
# Names of columns and arrays that are looked for where the caller names none; the first one found is taken.
ID_NAMES, LABEL_NAMES = ("id", "ids"), ("label", "labels")
NOT_ROWS = (*ID_NAMES, *LABEL_NAMES)


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Which columns of a Parquet file, or arrays of an archive, hold what; None for those of the usual names.

    Args:
        column: holds what the model takes.
        id_column: holds the ids of the rows.
        label_column: holds their labels.
        keep_columns: carried into the answers as they are.
    """

    column: str | None = None
    id_column: str | None = None
    label_column: str | None = None
    keep_columns: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """All names that the caller gave."""
        names = (self.column, self.id_column, self.label_column, *self.keep_columns)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True, kw_only=True)
class RefusedRow:
    """A row that cannot be read, or that gets no answer.

    Args:
        id: of the row, a whole number or a text.
        reason: why, in one line.
    """

    id: int | str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """Neighbouring rows of one source, in its order.

    Args:
        ids: (n,), int64 or text; in a block of a `RowSource` the positions of the rows.
        rows: (n, *dims).
        refused: rows between them that cannot be read.
        kept: name -> column (n,) that goes with the rows, a numpy or an Arrow array.
        digests: hash of each readable row as it was stored, where the source is hashed while it is read.
    """

    ids: Rows
    rows: Rows
    refused: tuple[RefusedRow, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)
    digests: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        """Number of stored rows that the block stands for."""
        return len(self.ids) + len(self.refused)

    def picked(self, where: Indices) -> "RowBlock":
        """Some of the block's rows, without the refused ones.

        Args:
            where: int64, ascending.
        """
        return RowBlock(
            ids=self.ids[where],
            rows=self.rows[where],
            kept={name: column.take(where) for name, column in self.kept.items()},
            digests=tuple(self.digests[place] for place in where) if self.digests else (),
        )


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """A file of rows that is read once from its begin to its end.

    Args:
        total: number of rows.
        text_ids: whether ids are text; else they are whole numbers.
        kept_types: name -> numpy dtype or Arrow type of each column that is carried into the answers.
        blocks: gives the rows in order, in blocks of at most so many rows.
    """

    total: int
    text_ids: bool
    blocks: Callable[[int], Iterator[RowBlock]]
    kept_types: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RowPiece:
    """Neighbouring positions, and how to get their rows.

    Args:
        first, stop: positions, stop excluded.
        load: reads and decodes the rows; may be called in any thread.
    """

    first: int
    stop: int
    load: Callable[[], RowBlock]


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Rows with ids and labels, of which some are read in pieces.

    Args:
        name: as the user wrote it.
        ids: (n,), unique; whole numbers or text.
        labels: of the rows, in the members' classes.
        pieces: from the indices wanted, the position to begin at and the rows per piece to the pieces. Position p
            is row wanted[p]; indices ascend.
        identity: what must be equal for two readings to give the same rows.
        state: changes whenever somebody writes to the data, where `identity` may miss that; else "".
        data_sha256: hash of the data; None where it is hashed while it is read.
        notes: what the user should know about how the data was read.
    """

    name: str
    ids: Rows
    labels: RowLabels
    pieces: Callable[[Indices, int, int], Iterator[RowPiece]]
    identity: dict[str, str]
    data_sha256: str | None
    notes: tuple[str, ...] = ()
    state: str = ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data, by its name: .git, _SUCCESS, _temporary."""
    return name.startswith((".", "_"))


def spans(total: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """First and stop of each piece from position `start` on."""
    for first in range(start, total, size):
        yield first, min(first + size, total)


def check_rows_of(path: Path, info: ModelInfo, rows: Rows) -> None:
    """Refuses rows of a file that a model cannot take.

    Raises:
        InputError: naming the file.
    """
    try:
        check_rows(info, rows)
    except InputError as error:
        raise InputError(
            f"{path} for {error.what}", got=error.got, expected=error.expected, fix=error.fix
        ) from error
