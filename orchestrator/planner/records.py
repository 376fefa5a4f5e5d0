"""Records: what every member said of every row, kept once so that planning never asks a model again.

One `.npz`, readable and writable with numpy alone:
    ids              (n,) any dtype, unique
    labels           int64 (n,), optional
    outputs/<member> float32 (n, k)
    cost/<member>    float64 (), cost per row
    meta             () JSON text: split, data_sha256, members' sha256 and output_kind; may be {}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Records:
    """Outputs of m members on n rows.

    Args:
        ids: (n,), unique.
        labels: int64 (n,) in 0..k-1, None where nobody knows them.
        outputs: member name -> float32 (n, k), as the member gave them.
        cost: member name -> cost per row.
        meta: what else is known, as JSON values.

    Raises:
        DataError: parts that do not fit together.
    """

    ids: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    outputs: dict[str, npt.NDArray[np.float32]]
    cost: dict[str, float]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.outputs:
            raise DataError("records", got="no member outputs", expected="at least one outputs/<member>")
        shapes = {name: array.shape for name, array in self.outputs.items()}
        first = next(iter(shapes.values()))
        if len(first) != 2 or any(shape != first for shape in shapes.values()):
            raise DataError("records", got=f"outputs of shapes {shapes}", expected="one (rows, classes) for all")
        if len(self.ids) != first[0] or (self.labels is not None and len(self.labels) != first[0]):
            raise DataError(
                "records", got=f"{len(self.ids)} ids", expected=f"{first[0]} ids and labels, one per row"
            )
        if len(np.unique(self.ids)) != len(self.ids):
            raise DataError("records", got="an id more than once", expected="unique ids")
        if self.labels is not None and len(self.labels):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= first[1]:
                raise DataError("records", got=f"labels from {low} to {high}", expected=f"0 to {first[1] - 1}")
        missing = sorted(set(self.outputs) - set(self.cost))
        if missing:
            raise DataError("records", got=f"no cost of {', '.join(missing)}", expected="cost/<member> for each")

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.ids)

    @property
    def classes(self) -> int:
        """Number of classes k."""
        return int(next(iter(self.outputs.values())).shape[1])


def random_members(records: Records) -> list[str]:
    """Recorded members whose weights were never trained, by the records' meta."""
    known = records.meta.get("members", {})
    return [name for name in records.outputs if known.get(name, {}).get("random_weights")]


def sha256_of_rows(rows: npt.NDArray[Any]) -> str:
    """Hash of an array's dtype, shape and bytes."""
    head = f"{rows.dtype.str}{rows.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(rows).tobytes()).hexdigest()


def write_records(records: Records, path: Path) -> None:
    """Writes one `.npz`, whole or not at all."""
    arrays: dict[str, Any] = {"ids": records.ids, "meta": np.array(json.dumps(records.meta))}
    if records.labels is not None:
        arrays["labels"] = records.labels
    for name, output in records.outputs.items():
        arrays[f"outputs/{name}"] = output
        arrays[f"cost/{name}"] = np.float64(records.cost[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, **arrays)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def records_from_path(path: Path) -> Records:
    """The records of a file.

    Raises:
        DataError: the file is missing, truncated, not records, or its parts do not fit.
    """
    if not path.is_file():
        raise DataError(f"records {path}", got="no such file", fix="make it with `committee record`")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"records {path}", got=f"a file numpy cannot read ({error})", expected="a complete .npz",
            fix="record again",
        ) from error  # fmt: skip
    return _records_from_arrays(arrays, path)


def _records_from_arrays(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> Records:
    if "ids" not in arrays:
        raise DataError(f"records {path}", got="no ids", expected="ids, outputs/<member>, cost/<member>")
    meta = json.loads(str(arrays["meta"])) if "meta" in arrays else {}
    named = {name.partition("/")[2]: name for name in arrays if name.startswith("outputs/")}
    labels = arrays.get("labels")
    return Records(
        ids=arrays["ids"],
        labels=None if labels is None else labels.astype(np.int64),
        outputs={member: np.asarray(arrays[name], np.float32) for member, name in named.items()},
        cost={name[5:]: float(value) for name, value in arrays.items() if name.startswith("cost/")},
        meta=meta,
    )
