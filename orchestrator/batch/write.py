"""Files of answers, .parquet or .npz, that appear whole or not at all."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.client.answers import ServedAnswers
from orchestrator.errors import DataError
from orchestrator.files import replaced_file
from orchestrator.rows.blocks import RowBlock, StoredRows
from orchestrator.spec.answer import ANSWER_COLUMNS

Rows = npt.NDArray[Any]
# Rows gathered before a row group is written: large enough to compress, small enough to hold.
ROW_GROUP = 65_536
COLUMNS = {name: column for name, column in ANSWER_COLUMNS.items() if not column.is_vector}
# Arrow types that numpy has without Python objects.
_IN_ARRAYS = re.compile(r"(u?int\d+|halffloat|float|double|bool|(large_)?string|timestamp\[.*|date\d+.*)$")


def kept_as(name: str) -> str:
    """The name of a carried column among the answers; names that answers have themselves get a prefix."""
    return f"input_{name}" if name in ("id", *COLUMNS) else name


def check_kept(rows: StoredRows, output: Path) -> None:
    """Refuses carried columns that the output cannot hold, before any work.

    Raises:
        DataError: two of one name, or a type that an archive of arrays has no room for.
    """
    names = [kept_as(name) for name in rows.kept_types]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{output}", got=f"two carried columns that would be {twice[0]}", expected="one of them")
    for name, kind in rows.kept_types.items():
        if output.suffix == ".npz" and not (isinstance(kind, np.dtype) or _IN_ARRAYS.match(str(kind))):
            got = f"a carried column {name} of type {kind}"
            raise DataError(f"{output}", got=got, expected="numbers, text or dates", fix="write .parquet")


def answer_columns(block: RowBlock, answers: ServedAnswers, good: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The columns (n,) of a file of answers for the good rows of a block: ids, answers and what is carried."""
    if not good.all():
        block = block.picked(np.flatnonzero(good))
    said = {name: getattr(answers, name)[good] for name in COLUMNS}
    return {"id": block.ids, **said, **{kept_as(name): column for name, column in block.kept.items()}}


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes it when the block ends well, and vanishes when it does not.

    A block that unlinks it leaves no file.

    Raises:
        DataError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            temporary = stack.enter_context(replaced_file(path))
        except OSError as error:
            raise DataError(f"{path}", got=f"a place that cannot be written to ({error.strerror})") from error
        yield temporary


class NpzAnswers:
    """Keeps all answers until the end: an archive of arrays has no room for more rows later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: dict[str, list[Rows]] = {}

    def add(self, columns: Mapping[str, Any]) -> None:
        """Appends rows, by the columns of `answer_columns`."""
        for name, column in columns.items():
            values = column if isinstance(column, np.ndarray) else _numpy_kept(column)
            self._parts.setdefault(name, []).append(values)

    def close(self) -> None:
        """Writes the file."""
        with self._path.open("wb") as file:
            np.savez_compressed(file, **{name: np.concatenate(parts) for name, parts in self._parts.items()})


def _numpy_kept(column: Any) -> Rows:
    """An Arrow column as a numpy array, in which a missing value is NaN, NaT or empty text."""
    if str(column.type) in ("string", "large_string"):
        return np.array(column.fill_null("").to_pylist(), np.str_)
    values: Rows = column.to_numpy(zero_copy_only=False)
    # Booleans with nulls between them.
    return values.astype(np.float64) if values.dtype == np.object_ else values


class ParquetAnswers:
    """Writes a row group whenever enough answers have come."""

    def __init__(self, path: Path) -> None:
        # pyarrow is optional.
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa, self._pq, self._path = pa, pq, path
        self._types = {name: pa.from_numpy_dtype(column.numpy_dtype) for name, column in COLUMNS.items()}
        self._writer: Any = None
        self._parts: list[Any] = []
        self._rows = 0

    def add(self, columns: Mapping[str, Any]) -> None:
        """Appends rows, by the columns of `answer_columns`."""
        arrays = {name: self._pa.array(column, self._types.get(name)) for name, column in columns.items()}
        self._parts.append(self._pa.RecordBatch.from_pydict(arrays))
        self._rows += len(columns["id"])
        if self._rows >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Writes what is left."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._parts:
            table = self._pa.Table.from_batches(self._parts)
            # Only now are the types of carried columns known.
            self._writer = self._writer or self._pq.ParquetWriter(self._path, table.schema)
            self._writer.write_table(table)
        self._parts, self._rows = [], 0


def refused_path(output: Path) -> Path:
    """Where the refused rows of a job go, as JSON lines: out.parquet -> out.refused.jsonl."""
    return output.with_suffix(".refused.jsonl")
