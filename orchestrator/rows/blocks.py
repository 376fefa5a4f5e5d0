"""Stored rows as every reader gives them, whatever they are stored in, and checks of ids and labels."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, InputError, first_few
from orchestrator.spec.served_model import ModelInfo, check_rows

Rows = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
# Names of columns and arrays that are looked for where the caller names none; the first one found is taken.
ID_NAMES, LABEL_NAMES = ("id", "ids"), ("label", "labels")
NOT_ROWS = (*ID_NAMES, *LABEL_NAMES)
# The label of a row without one, where labels are numbers; Hugging Face's data sets use it too.
UNLABELLED = -1


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
class RowLabels:
    """The labels of a data source.

    Args:
        numbers: int64 (n,) in 0..k-1, `UNLABELLED` in rows that have none; None where no row has any.
        by: "map", "name" or "order" where they were names, else None.
        class_names: of all classes, those of the members first; None where some are not known.
        notes: what the user should check.
    """

    numbers: npt.NDArray[np.int64] | None = None
    by: str | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


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


def check_ids(what: str, ids: Rows, rows: int) -> None:
    """Refuses ids that are not one per row, neither whole numbers nor text, or not unique.

    Raises:
        DataError: naming the ids at fault.
    """
    if ids.shape != (rows,):
        raise DataError(what, got=f"{ids.size} ids of shape {list(ids.shape)}", expected=f"{rows}, one per row")
    if ids.dtype.kind not in "iuUS":
        raise DataError(what, got=f"ids of dtype {ids.dtype}", expected="whole numbers or text")
    broken = [text for text in (ids.tolist() if ids.dtype.kind == "U" else ()) if not _is_text(text)]
    if broken:
        got = f"ids that are no text: {first_few([ascii(text) for text in broken])}"
        raise DataError(what, got=got, expected="Unicode", fix="rename them")
    order = np.sort(ids)
    twice = np.unique(order[1:][order[1:] == order[:-1]])
    if len(twice):
        raise DataError(what, got=f"an id more than once: {first_few(twice)}", expected="unique ids")


def _is_text(text: str) -> bool:
    """Whether the text has no half characters, which file names have that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_labels(
    what: str,
    labels: Rows,
    *,
    rows: int,
    classes: int,
    first: int = 0,
    mending: str = "subtract {first} from each",
) -> None:
    """Refuses labels that are not one class number per row.

    Args:
        what: names the labels in an error.
        labels: to be (n,) whole numbers.
        rows: n.
        classes: k.
        first: number of the first class; that of the last one is k - 1 more.
        mending: the fix for labels that number the classes from another first one.

    Raises:
        DataError: naming the fault.
    """
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        got = f"labels of dtype {labels.dtype}, shape {list(labels.shape)}"
        raise DataError(what, got=got, expected=f"whole numbers [{rows}], one per row")
    if not rows:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < first or high >= first + classes:
        begin = 1 if low >= 1 and high == classes else low
        is_shifted = low >= 0 and high - begin == classes - 1
        raise DataError(
            what,
            got=f"labels from {low} to {high}",
            expected=f"{first} to {first + classes - 1}",
            fix=f"they look {begin}-based: {mending.format(first=begin)}" if is_shifted else None,
        )


def sha256_of_array(rows: Rows) -> str:
    """Hash of an array's dtype, shape and bytes."""
    return sha256_of_parts(rows.dtype, rows.shape, parts=[rows])


def sha256_of_parts(dtype: np.dtype[Any], shape: tuple[int, ...], *, parts: Iterable[Rows]) -> str:
    """Hash of an array that comes in parts along its first axis; equal to that of the whole array."""
    digest = hashlib.sha256(f"{dtype.str}{tuple(shape)}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def plain_ids(what: str, ids: Rows, rows: int) -> Rows:
    """Ids as int64 or text.

    Raises:
        DataError: another kind, or another number of them than there are rows.
    """
    if ids.shape != (rows,):
        raise DataError(f"{what} ids", got=f"shape {list(ids.shape)}", expected=f"[{rows}], one per row")
    if ids.dtype.kind in "iu" and ids.dtype != np.uint64:
        return ids.astype(np.int64)
    if ids.dtype.kind in "US":
        try:
            return ids.astype(np.str_)
        except UnicodeDecodeError as error:
            raise DataError(f"{what} ids", got=f"bytes that are not ASCII ({error})", expected="text") from error
    raise DataError(f"{what} ids", got=f"dtype {ids.dtype}", expected="whole numbers or text")
