"""Stored rows as every reader gives them, whatever they are stored in, and checks of ids and labels."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, InputError, first_few
from orchestrator.files import irregular_kind
from orchestrator.spec.rows import AnyRows, c_string_fault, ready_rows, rows_at, stacked, text_rows
from orchestrator.spec.served_model import ModelInfo, TensorInfo

Rows = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
# Names of columns and arrays that are looked for where the caller names none; the first one found is taken.
_USUAL = {"id_column": ("id", "ids"), "label_column": ("label", "labels")}
# The label of a row without one, where labels are numbers; Hugging Face's data sets use it too.
UNLABELLED = -1
# What a piece may hold as it is stored: several wait for the members, texts may be of any length, and pictures far
# larger than the rows they become.
PIECE_BYTES = 8 << 20
# File names have them that are no UTF-8.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Which columns of a table, or arrays of an archive, hold what; None for those of the usual names.

    Args:
        column: what the model takes.
        text: what its only input of text takes; INPUT=COLUMN with commas for one that has several.
        columns: of numbers, one for each number of its only input of numbers.
        trained: names of the columns that the model was fitted on, in order; none where nobody knows.
        group_column: which rows belong together; no name is usual for that.
        keep_columns: carried into the answers as they are.
        missing_as_nan: empty cells and nulls of inputs of floating-point numbers are NaN.
    """

    column: str | None = None
    text: str | None = None
    columns: tuple[str, ...] = ()
    id_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    trained: tuple[str, ...] = ()
    keep_columns: tuple[str, ...] = ()
    missing_as_nan: bool = False

    @property
    def named(self) -> tuple[str, ...]:
        """All names that the caller gave."""
        single = (self.column, self.id_column, self.label_column, self.group_column)
        names = (name for name in (*single, *self.columns, *self.keep_columns) if name is not None)
        return (*names, *self.texts(()).values())

    def texts(self, names: Sequence[str]) -> dict[str, str]:
        """Input of text -> column, with "" for the only such input; a column that is called so comes first."""
        if self.text is None:
            return {}
        if self.text in names or "=" not in self.text:
            return {"": self.text}
        pairs = (part.partition("=") for part in self.text.split(","))
        return {tensor.strip(): column.strip() for tensor, _, column in pairs}

    def found_in(self, what: str, kind: str, names: Sequence[str]) -> "ColumnNames":
        """The same with the names under which a file usually has ids and labels, where it has them.

        Raises DataError where the file does not have what the caller named.
        """
        wanted = {**vars(self), "text": tuple(self.texts(names).values()), "trained": ()}
        for argument, asked in wanted.items():
            for name in asked if isinstance(asked, tuple) else (asked,):
                if isinstance(name, str) and name not in names:
                    got = f"{kind} {', '.join(names) or 'none'}"
                    raise DataError(what, got=got, expected=name, fix=f"see `{argument}`")
        usual = {argument: next((n for n in known if n in names), None) for argument, known in _USUAL.items()}
        return ColumnNames(**usual | {argument: one for argument, one in vars(self).items() if one is not None})

    def identity(self, names: Sequence[str]) -> str:
        """What must be equal for two readings of columns of a file to give the same rows and ids."""
        return f"{', '.join(names)}, {self.id_column}" + ", missing as NaN" * self.missing_as_nan

    def others(self, names: Sequence[str]) -> list[str]:
        """Names of a file that may stand for the rows, where the caller names none."""
        taken = {*itertools.chain(*_USUAL.values()), *self.named}
        return [name for name in names if name not in taken]


@dataclass(frozen=True, kw_only=True)
class RefusedRow:
    """A row that cannot be read, or that gets no answer, and why, in one line."""

    id: int | str
    reason: str


def id_at(ids: Rows, place: int) -> int | str:
    """One of the ids (n,) of a block, as Python has it."""
    found: int | str = ids[place : place + 1].tolist()[0]
    return found


@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """Neighbouring rows of one source, in its order.

    Args:
        ids: (n,), int64, text or objects that are text; in a block of a `RowSource` the positions of the rows.
        rows: (n, *dims), of a model with several inputs by their names.
        refused: rows between them that cannot be read.
        kept: name -> column (n,) that goes with the rows, a numpy or an Arrow array.
        digests: hash of each readable row as it was stored, where the source is hashed while it is read.
    """

    ids: Rows
    rows: AnyRows
    refused: tuple[RefusedRow, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)
    digests: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        """Number of stored rows that the block stands for."""
        return len(self.ids) + len(self.refused)

    def picked(self, where: Indices) -> "RowBlock":
        """The rows at some places, which ascend, without the refused ones."""
        return RowBlock(
            ids=self.ids[where],
            rows=rows_at(self.rows, where),
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


class ReadBlocks(Protocol):
    """Reads rows in order from row `start` on, in blocks of at most `size` rows."""

    def __call__(self, size: int, start: int = 0) -> Iterator[RowBlock]:
        """Blocks of rows."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that rows come from, and what tells that it is the same file another time.

    Args:
        name: its own, or its path in the folder that is read.
        rows: that it holds.
        state: changes whenever somebody writes to it.
    """

    name: str
    rows: int
    state: str


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """Rows of a file or folder, read once from the first that is wanted to the end.

    Args:
        total: number of rows.
        blocks: gives the rows in order.
        kept_types: name -> numpy dtype or Arrow type of each column that is carried into the answers.
        notes: what the user should know about how the file is read.
        files: where the rows come from, in their order.
        numbered: whether ids are the numbers of the rows.
    """

    total: int
    blocks: ReadBlocks
    kept_types: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[SourceFile, ...] = ()
    numbered: bool = False


@dataclass(frozen=True, kw_only=True)
class RowPiece:
    """Positions `first` to `stop` - 1; `load` reads and decodes their rows, in any thread."""

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
        groups: (n,), which rows belong together; None where each stands by itself.
    """

    name: str
    ids: Rows
    labels: RowLabels
    pieces: Callable[[Indices, int, int], Iterator[RowPiece]]
    identity: dict[str, str]
    data_sha256: str | None
    notes: tuple[str, ...] = ()
    state: str = ""
    groups: Rows | None = None


def gathered(blocks: Iterable[RowBlock], rows: int) -> Iterator[RowBlock]:
    """The same rows in larger blocks: small files and row groups must not make small requests.

    Blocks are put together while they have fewer rows than `rows`.
    """
    held: list[RowBlock] = []
    try:
        for block in blocks:
            if held and sum(one.size for one in held) + block.size > rows:
                yield _together(held)
                held = []
            held.append(block)
    except DataError:
        # What was read before is no worse for it.
        if held:
            yield _together(held)
        raise
    if held:
        yield _together(held)


def _together(blocks: Sequence[RowBlock]) -> RowBlock:
    if len(blocks) == 1:
        return blocks[0]
    full = [block for block in blocks if len(block.ids)] or blocks[:1]
    first = full[0]
    rows: Any = (
        {name: _one_after_another([_tensor(block, name) for block in full]) for name in first.rows}
        if isinstance(first.rows, Mapping)
        else _one_after_another([_tensor(block, None) for block in full])
    )
    return RowBlock(
        ids=np.concatenate([block.ids for block in full]),
        rows=rows,
        refused=tuple(row for block in blocks for row in block.refused),
        kept={name: _one_column([block.kept[name] for block in full]) for name in first.kept},
    )


def _tensor(block: RowBlock, name: str | None) -> Rows:
    return np.asarray(block.rows[name] if isinstance(block.rows, Mapping) and name is not None else block.rows)


def _one_after_another(arrays: Sequence[Rows]) -> Rows:
    if len({(array.dtype, array.shape[1:]) for array in arrays}) == 1:
        return np.concatenate(arrays)
    # Rows whose lengths differ are stacked where a block happens to have one length.
    return stacked([row for array in arrays for row in array])


def _one_column(columns: Sequence[Any]) -> Any:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    # pyarrow is optional.
    import pyarrow as pa

    return pa.concat_arrays(columns)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data, by its name: .git, _SUCCESS, _temporary."""
    return name.startswith((".", "_"))


def spans(total: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """First and stop of each piece from position `start` on."""
    return ((first, min(first + size, total)) for first in range(start, total, size))


def left_out_note(kind: str, names: list[str]) -> tuple[str, ...]:
    """What to say of a folder's files that are not of that kind."""
    text = f"{len(names)} files are no {kind} by their ending and left out: {first_few(names)}"
    return (text,) if names else ()


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Raises DataError, naming what the block reads, where the disk refuses it."""
    try:
        yield
    except OSError as error:
        raise DataError(what, got=f"a file that cannot be read ({error.strerror})") from error


def source_file(path: Path, rows: int, *, root: Path | None = None) -> SourceFile:
    """A file with what tells that it is the same another time: its size and when it was written."""
    with readable(f"{path}"):
        about = path.stat()
    # Data may lie elsewhere when the job goes on.
    name = path.name if root in (None, path) else path.relative_to(root).as_posix()
    written = np.datetime64(about.st_mtime_ns, "ns")
    return SourceFile(name=name, rows=rows, state=f"{about.st_size} bytes, written at {written}Z")


def check_regular(path: Path, what: str) -> None:
    """Raises DataError for folders, pipes and devices, the last of which may block for ever when opened."""
    if (kind := irregular_kind(path)) is not None:
        raise DataError(what, got=kind, expected="a regular file")


def check_rows_of(source: str, info: ModelInfo, rows: AnyRows) -> None:
    """Raises InputError, which begins with the source, for rows that a model cannot take."""
    try:
        ready_rows(info, rows)
    except InputError as error:
        what = f"{source} {error.what}"
        raise InputError(what, got=error.got, expected=error.expected, fix=error.fix) from error


def without_odd_texts(block: RowBlock, inputs: Sequence[TensorInfo], *, only: str) -> RowBlock:
    """Refuses rows whose texts ONNX Runtime would not read as they are; `only` names rows that are one tensor."""
    rows = block.rows if isinstance(block.rows, Mapping) else {only: block.rows}
    faults: dict[int, str] = {}
    for name in [one.name for one in inputs if one.is_c_string and len(block.ids)]:
        for place, text in enumerate(text_rows(name, rows[name]).ravel().tolist()):
            if fault := c_string_fault(name, text):
                faults.setdefault(place, str(fault))
    if not faults:
        return block
    bad = np.array(sorted(faults))
    refused = [RefusedRow(id=id_at(block.ids, place), reason=faults[place]) for place in bad.tolist()]
    kept = block.picked(np.setdiff1d(np.arange(len(block.ids)), bad))
    return replace(kept, refused=(*block.refused, *refused))


def check_names(what: str, names: Rows, rows: int, *, kind: str) -> None:
    """Raises DataError for names of a kind, such as ids, not one per row, or neither whole numbers nor text."""
    if names.shape != (rows,):
        got = f"{names.size} {kind} of shape {list(names.shape)}"
        raise DataError(what, got=got, expected=f"{rows}, one per row")
    if names.dtype.kind not in "iuUS":
        raise DataError(what, got=f"{kind} of dtype {names.dtype}", expected="whole numbers or text")
    texts = names.tolist() if names.dtype.kind == "U" else ()
    broken = [text for text in texts if _HALF_CHARACTER.search(text)]
    if broken:
        got = f"{kind} that are no text: {first_few([ascii(text) for text in broken])}"
        raise DataError(what, got=got, expected="Unicode", fix="rename them")


def check_ids(what: str, ids: Rows, rows: int) -> None:
    """Raises DataError for ids that are not one per row, neither whole numbers nor text, or not unique."""
    check_names(what, ids, rows, kind="ids")
    order = np.sort(ids)
    twice = np.unique(order[1:][order[1:] == order[:-1]])
    if len(twice):
        raise DataError(what, got=f"an id more than once: {first_few(twice)}", expected="unique ids")


def plain_ids(what: str, ids: Rows, rows: int, *, kind: str = "ids") -> Rows:
    """Ids, or groups, as int64 or text; DataError for another kind, or another number than there are rows."""
    if ids.shape != (rows,):
        raise DataError(f"{what} {kind}", got=f"shape {list(ids.shape)}", expected=f"[{rows}], one per row")
    if ids.dtype.kind in "iu" and ids.dtype != np.uint64:
        return ids.astype(np.int64)
    if ids.dtype.kind not in "US":
        raise DataError(f"{what} {kind}", got=f"dtype {ids.dtype}", expected="whole numbers or text")
    try:
        return ids.astype(np.str_)
    except UnicodeDecodeError as error:
        raise DataError(f"{what} {kind}", got=f"bytes that are not ASCII ({error})", expected="text") from error


def check_labels(
    what: str, labels: Rows, *, rows: int, classes: int, first: int = 0, fix: str = "subtract {first} from each"
) -> None:
    """Raises DataError for labels that are not (n,) whole numbers from `first` to `first` + k - 1.

    `fix` is what to do with labels that number the classes from another first one.
    """
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        got = f"labels of dtype {labels.dtype}, shape {list(labels.shape)}"
        raise DataError(what, got=got, expected=f"whole numbers [{rows}], one per row")
    low, high = (int(labels.min()), int(labels.max())) if rows else (first, first)
    if low < first or high >= first + classes:
        begin = 1 if low >= 1 and high == classes else low
        is_shifted = low >= 0 and high - begin == classes - 1
        text = f"they look {begin}-based: {fix.format(first=begin)}" if is_shifted else None
        expected = f"{first} to {first + classes - 1}"
        raise DataError(what, got=f"labels from {low} to {high}", expected=expected, fix=text)


def sha256_of_array(rows: Rows) -> str:
    """Hash of an array's dtype, shape and bytes."""
    return sha256_of_parts(rows.dtype, rows.shape, parts=[rows])


def sha256_of_parts(dtype: np.dtype[Any], shape: tuple[int, ...], *, parts: Iterable[Rows]) -> str:
    """Hash of an array that comes in parts along its first axis; equal to that of the whole array."""
    digest = hashlib.sha256(f"{dtype.str}{tuple(shape)}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
