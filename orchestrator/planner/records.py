"""Records: what every member said of every row, kept once so that planning never asks a model again.

One `.npz`, readable and writable with numpy alone (docs/records.md):
    ids              (n,) whole numbers or text, unique
    labels           int64 (n,), optional
    outputs/<member> float32 (n, k)
    cost/<member>    float64 (), cost per row
    meta             () JSON text: data_sha256, the members' sha256 and output_kind, ...; may be {} or absent
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few
from orchestrator.planner.costs import COSTS, is_cost
from orchestrator.planner.texts import value_from_json
from orchestrator.rows.ids import check_ids, check_labels
from orchestrator.rows.npz import NpzWriter, arrays_from_path, npz_writer

Array = npt.NDArray[Any]
# Rows that were left out and are named one by one in `meta`; there may be a million.
SKIPPED_LISTED = 1000


@dataclass(frozen=True, kw_only=True)
class Records:
    """Outputs of m members on n rows.

    Args:
        ids: (n,), unique.
        labels: int64 (n,) in 0..k-1, None where nobody knows them.
        outputs: member name -> float32 (n, k), as the member gave them; -inf only beside finite scores.
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
        rows, classes = _common_shape(self.outputs)
        check_ids("records", self.ids, rows)
        if self.labels is not None:
            check_labels("records", self.labels, rows=rows, classes=classes)
        _check_costs(self.outputs, self.cost)
        for name, scores in self.outputs.items():
            bad = unusable_rows(scores)
            if len(bad):
                found = f"NaN, infinity or no finite score in {len(bad)} of {rows} rows"
                raise DataError(
                    f"records, outputs of {name}",
                    got=f"{found}, id {first_few(self.ids[bad])}",
                    expected="finite scores",
                    fix="leave these rows out, or the member",
                )

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.ids)

    @property
    def classes(self) -> int:
        """Number of classes k."""
        return int(next(iter(self.outputs.values())).shape[1])


def unusable_rows(scores: Array) -> npt.NDArray[np.int64]:
    """Which rows of float (n, k) hold NaN or +inf, or nothing but -inf; a single -inf is a score of 0."""
    if not scores.size:
        return np.zeros(0, np.int64)
    # The largest score of a row is NaN, +inf or -inf in just these three cases, and needs no (n, k) of its own.
    return np.flatnonzero(~np.isfinite(scores.max(axis=1)))


def _common_shape(outputs: Mapping[str, Array]) -> tuple[int, int]:
    if not outputs:
        raise DataError("records", got="no member outputs", expected="at least one outputs/<member>")
    shapes = {name: array.shape for name, array in outputs.items()}
    first = next(iter(shapes.values()))
    if len(first) != 2 or any(shape != first for shape in shapes.values()):
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise DataError("records", got=f"outputs of shapes {listed}", expected="one (rows, classes) for all")
    if first[0] < 1 or first[1] < 2:
        raise DataError(
            "records", got=f"outputs of shape {list(first)}", expected="rows, and at least two classes"
        )
    return first[0], first[1]


def _check_costs(outputs: Mapping[str, Array], cost: Mapping[str, float]) -> None:
    missing = sorted(set(outputs) - set(cost))
    if missing:
        raise DataError("records", got=f"no cost of {', '.join(missing)}", expected="cost/<member> for each")
    strange = sorted(set(cost) - set(outputs))
    if strange:
        raise DataError(
            "records", got=f"costs of {', '.join(strange)} without outputs", expected="outputs/<member>"
        )
    wrong = {name: value for name, value in cost.items() if not is_cost(value)}
    if wrong:
        listed = ", ".join(f"{name} {value:g}" for name, value in wrong.items())
        raise DataError("records", got=f"costs {listed}", expected=COSTS)


def random_members(records: Records) -> list[str]:
    """Recorded members whose weights were never trained, by the records' meta."""
    known = records.meta.get("members", {})
    return [name for name in records.outputs if known.get(name, {}).get("random_weights")]


def text_from_meta(meta: Mapping[str, Any]) -> str:
    """The JSON text of `meta`; equal values give equal bytes."""
    return json.dumps(meta, ensure_ascii=False, sort_keys=True)


def write_records(records: Records, path: Path) -> None:
    """Writes one `.npz`, whole or not at all, the same bytes for the same records.

    Raises:
        DataError: the place cannot be written to.
    """
    write_all_records({path: records})


def write_all_records(files: Mapping[Path, Records]) -> None:
    """Writes several `.npz`; a place or a disk that will not do shows before the first one appears.

    Raises:
        DataError: a place cannot be written to, or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        # All are open before any is filled, and appear when the last one is.
        writers = [stack.enter_context(npz_writer(path)) for path in files]
        for writer, records in zip(writers, files.values(), strict=True):
            _fill(writer, records)


def _fill(writer: NpzWriter, records: Records) -> None:
    writer.add("ids", records.ids)
    if records.labels is not None:
        writer.add("labels", records.labels)
    for name, output in records.outputs.items():
        writer.add(f"outputs/{name}", output, packed=False)
        writer.add(f"cost/{name}", np.float64(records.cost[name]))
    writer.add("meta", np.array(text_from_meta(records.meta)))


def records_from_path(path: Path) -> Records:
    """The records of a file.

    Raises:
        DataError: the file is missing, truncated, not records, or its parts do not fit.
    """
    if not path.is_file():
        raise DataError(f"records {path}", got="no such file", fix="make it with `committee record`")
    arrays = arrays_from_path(path, what=f"records {path}", wanted=_is_ours)
    try:
        return _records_from_arrays(arrays)
    except DataError as error:
        what = error.what.replace("records", f"records {path}", 1)
        raise DataError(what, got=error.got, expected=error.expected, fix=error.fix) from error


def _is_ours(name: str) -> bool:
    return name in ("ids", "labels", "meta") or name.startswith(("outputs/", "cost/"))


def _records_from_arrays(arrays: Mapping[str, Array]) -> Records:
    if "ids" not in arrays:
        raise DataError("records", got="no ids", expected="ids, outputs/<member>, cost/<member>")
    labels = arrays.get("labels")
    if labels is not None and labels.dtype.kind not in "iu":
        raise DataError("records", got=f"labels of dtype {labels.dtype}", expected="whole numbers")
    return Records(
        ids=arrays["ids"],
        labels=None if labels is None else labels.astype(np.int64),
        outputs={name: _scores(name, array) for name, array in _under("outputs/", arrays).items()},
        cost={name: cost_from_array(name, array) for name, array in _under("cost/", arrays).items()},
        meta=meta_from_array(arrays.get("meta")),
    )


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _scores(name: str, array: Array) -> npt.NDArray[np.float32]:
    if array.dtype.kind not in "fiu":
        raise DataError(f"records, outputs of {name}", got=f"dtype {array.dtype}", expected="float32")
    # What is too large becomes infinity, which is refused by name.
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def cost_from_array(name: str, array: Array) -> float:
    """A member's cost per row as a file holds it.

    Raises:
        DataError: no single number.
    """
    if array.dtype.kind not in "fiu" or array.size != 1:
        got = f"dtype {array.dtype}, shape {list(array.shape)}"
        raise DataError(f"records, cost of {name}", got=got, expected="one number")
    return float(array.reshape(()))


def meta_from_array(array: Array | None) -> dict[str, Any]:
    """What a file says of its records; nothing where it has no such array.

    Raises:
        DataError: no JSON object.
    """
    try:
        meta = {} if array is None else value_from_json(str(array))
    except ValueError as error:
        raise DataError("records, meta", got=f"no JSON ({error})", expected="a JSON object") from error
    if not isinstance(meta, dict):
        raise DataError("records, meta", got=f"JSON {type(meta).__name__}", expected="a JSON object")
    return meta
