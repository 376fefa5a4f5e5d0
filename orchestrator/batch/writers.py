"""Files of answers: one Parquet or .npz file, written as answers come, and the names of its columns."""

import contextlib
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, repeated
from orchestrator.files import replaced_file
from orchestrator.predictor.asking import COLUMNS, PROBABILITIES, AnsweredPart
from orchestrator.rows.blocks import RefusedRow, StoredRows
from orchestrator.rows.npz import archive_writer

Rows = npt.NDArray[Any]
# What is gathered before a row group is written: large enough to compress, small enough to hold.
GROUP_ROWS, GROUP_BYTES = 65_536, 16 << 20
# Arrow types that numpy has without Python objects.
_IN_ARRAYS = re.compile(r"(u?int\d+|halffloat|float|double|bool|(large_)?string|timestamp\[.*|date\d+.*)$")


def kept_as(name: str) -> str:
    """The name of a carried column among the answers; names that answers have themselves get a prefix."""
    return f"input_{name}" if name in ("id", PROBABILITIES, *COLUMNS) else name


def check_kept(rows: StoredRows, output: Path) -> None:
    """Refuses carried columns that the output cannot hold, before any work.

    Raises DataError for two of one name, or a type that an archive of arrays has no room for.
    """
    names = [kept_as(name) for name in rows.kept_types]
    twice = repeated(names)
    if twice:
        raise DataError(f"{output}", got=f"two carried columns that would be {twice[0]}", expected="one of them")
    for name, kind in rows.kept_types.items():
        if output.suffix == ".npz" and not (isinstance(kind, np.dtype) or _IN_ARRAYS.match(str(kind))):
            got = f"a carried column {name} of type {kind}"
            raise DataError(f"{output}", got=got, expected="numbers, text or dates", fix="write .parquet")


def columns_of(part: AnsweredPart) -> dict[str, Any]:
    """The columns (n,) of a file of answers: ids, answers and what is carried."""
    return {"id": part.ids, **part.answers, **{kept_as(name): column for name, column in part.kept.items()}}


def refused_lines(refused: Iterable[RefusedRow]) -> str:
    """Refused rows as JSON lines."""
    return "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in refused)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes it when the block ends well, and vanishes when it does not.

    A block that unlinks it leaves no file. Raises DataError where the folder cannot be written to,
    DiskError where the disk is full.
    """
    with contextlib.ExitStack() as stack:
        try:
            temporary = stack.enter_context(replaced_file(path))
        except OSError as error:
            raise DataError(f"{path}", got=f"a place that cannot be written to ({error.strerror})") from error
        yield temporary


def require_parquet() -> None:
    """Raises ModuleNotFoundError where pyarrow, which is optional, is not installed: better before any work."""
    importlib.import_module("pyarrow")


class NpzAnswers:
    """Keeps all answers until the end: an archive of arrays has no room for more rows later."""

    def __init__(self, path: Path, *, name: Path) -> None:
        self._path, self._name = path, name
        self._parts: dict[str, list[Rows]] = {}

    def add(self, columns: Mapping[str, Any]) -> None:
        """Adds rows."""
        for name, column in columns.items():
            values = column if isinstance(column, np.ndarray) else _numpy_kept(column)
            self._parts.setdefault(name, []).append(values)

    def close(self) -> None:
        """Writes the file."""
        with archive_writer(self._path, name=self._name) as writer:
            for name, parts in self._parts.items():
                whole = np.concatenate(parts)
                # Text comes as objects, too.
                writer.add(name, whole.astype(np.str_) if whole.dtype == object else whole)


def _numpy_kept(column: Any) -> Rows:
    """An Arrow column as a numpy array, in which a missing value is NaN, NaT or empty text."""
    if str(column.type) in ("string", "large_string"):
        return np.array(column.fill_null("").to_pylist(), object)
    values: Rows = column.to_numpy(zero_copy_only=False)
    # Booleans with nulls between them.
    return values.astype(np.float64) if values.dtype == np.object_ else values


class ParquetAnswers:
    """Writes a row group whenever enough answers have come.

    Attributes:
        schema: Arrow's, of all rows; None before the first ones say it.
    """

    def __init__(self, path: Path, *, name: Path, schema: Any = None) -> None:
        # pyarrow is optional.
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa, self._pq, self._path, self._name = pa, pq, path, name
        self.schema = schema
        self._types = {name: pa.from_numpy_dtype(column.numpy_dtype) for name, column in COLUMNS.items()}
        self._writer: Any = None
        self._parts: list[Any] = []
        self._rows = self._bytes = 0

    def add(self, columns: Mapping[str, Any]) -> None:
        """Adds rows; none of them still says which columns there are."""
        self.add_batch(self.batch_of(columns))

    def batch_of(self, columns: Mapping[str, Any]) -> Any:
        """Rows as Arrow has them.

        Raises DataError where their columns are not those of the rows before.
        """
        try:
            arrays = {name: self._array(name, column) for name, column in columns.items()}
        except self._pa.ArrowException as error:
            raise DataError(f"{self._name}", got=f"columns that Parquet cannot hold ({error})") from error
        batch = self._pa.RecordBatch.from_pydict(arrays)
        if self.schema is None:
            self.schema = batch.schema
        if not batch.schema.equals(self.schema):
            here, before = (dict(zip(one.names, one.types, strict=True)) for one in (batch.schema, self.schema))
            name = next((one for one in {**before, **here} if here.get(one) != before.get(one)), "id")
            got, expected = (f"{one.get(name, 'no column')}" for one in (here, before))
            fix = "name another output, or rows of one kind"
            raise DataError(f"{self._name} column {name}", got=got, expected=f"{expected} as before", fix=fix)
        return batch

    def add_batch(self, batch: Any) -> None:
        """Adds rows that `batch_of` has made."""
        self._parts.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Writes what is left, and the end of the file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _array(self, name: str, column: Any) -> Any:
        if isinstance(column, np.ndarray) and not column.dtype.isnative:
            # Arrow has only the order of bytes of the machine; files of other fields have either.
            column = column.astype(column.dtype.newbyteorder("="))
        if isinstance(column, np.ndarray) and column.ndim == 2:
            return self._pa.FixedSizeListArray.from_arrays(self._pa.array(column.ravel()), column.shape[1])
        return self._pa.array(column, self._types.get(name))

    def _flush(self) -> None:
        if self._parts:
            table = self._pa.Table.from_batches(self._parts)
            self._writer = self._writer or self._pq.ParquetWriter(self._path, self.schema)
            self._writer.write_table(table)
        self._parts, self._rows, self._bytes = [], 0, 0
