"""Files that appear whole or not at all: answers as .parquet or .npz, refused rows as JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.cli.batch_rows import Refused
from orchestrator.client.base import Answers
from orchestrator.errors import DataError
from orchestrator.spec.answer import ANSWER_COLUMNS

Rows = npt.NDArray[Any]
# Rows gathered before a row group is written: large enough to compress, small enough to hold.
ROW_GROUP = 65_536
COLUMNS = {name: column for name, column in ANSWER_COLUMNS.items() if not column.is_vector}


class AnswerFile(Protocol):
    """Takes answers in order."""

    def add(self, ids: Rows, answers: Answers) -> None:
        """Appends answers."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes it when the block ends well, and vanishes when it does not.

    A block that unlinks it leaves no file.

    Raises:
        DataError: the folder cannot be written to.
    """
    # Beside it, since a rename is only atomic within one file system; the process id keeps two jobs apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
    except OSError as error:
        raise DataError(f"{path}", got=f"a place that cannot be written to ({error.strerror})") from error
    try:
        yield temporary
        if temporary.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def answer_file(path: Path, temporary: Path, *, text_ids: bool) -> AnswerFile:
    """The writer for a path's ending.

    Args:
        path: where the file will be, .parquet or .npz.
        temporary: where it is written meanwhile.
        text_ids: whether ids are text; else whole numbers.

    Raises:
        DataError: another ending.
    """
    if path.suffix == ".npz":
        return _NpzAnswers(temporary, text_ids=text_ids)
    if path.suffix == ".parquet":
        return _ParquetAnswers(temporary, text_ids=text_ids)
    raise DataError(f"{path}", got=f"a name ending in {path.suffix or 'nothing'}", expected=".parquet or .npz")


class _NpzAnswers:
    """Keeps all answers until the end: an archive of arrays has no room for more rows later."""

    def __init__(self, path: Path, *, text_ids: bool) -> None:
        self._path = path
        self._parts: dict[str, list[Rows]] = {"id": [], **{name: [] for name in COLUMNS}}
        self._empty = np.zeros(0, np.str_ if text_ids else np.int64)

    def add(self, ids: Rows, answers: Answers) -> None:
        self._parts["id"].append(ids)
        for name in COLUMNS:
            self._parts[name].append(getattr(answers, name))

    def close(self) -> None:
        arrays = {name: np.concatenate(parts) if parts else self._empty for name, parts in self._parts.items()}
        with self._path.open("wb") as file:
            np.savez_compressed(file, **arrays)


class _ParquetAnswers:
    def __init__(self, path: Path, *, text_ids: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa = pa
        types = {
            "id": pa.string() if text_ids else pa.int64(),
            **{name: pa.from_numpy_dtype(column.numpy_dtype) for name, column in COLUMNS.items()},
        }
        self._schema = pa.schema(list(types.items()))
        self._writer = pq.ParquetWriter(path, self._schema)
        self._parts: list[Any] = []
        self._rows = 0

    def add(self, ids: Rows, answers: Answers) -> None:
        columns = [ids, *(getattr(answers, name) for name in COLUMNS)]
        arrays = [self._pa.array(c, field.type) for c, field in zip(columns, self._schema, strict=True)]
        self._parts.append(self._pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows += len(ids)
        if self._rows >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._parts:
            self._writer.write_table(self._pa.Table.from_batches(self._parts))
        self._parts, self._rows = [], 0


def refused_path(output: Path) -> Path:
    """Where the refused rows of a job go: out.parquet -> out.refused.jsonl."""
    return output.with_suffix(".refused.jsonl")


def refused_line(refused: Refused) -> str:
    """One line of that file."""
    return json.dumps({"id": refused.id, "reason": refused.reason}, ensure_ascii=False) + "\n"
