"""Records files without their scores: ids, labels, costs and what else they say, so that several fit in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few
from orchestrator.planner.costs import COSTS, is_cost
from orchestrator.planner.records import cost_from_array, meta_from_array
from orchestrator.rows.ids import check_ids, check_labels
from orchestrator.rows.npz import arrays_from_path, shapes_from_path

Array = npt.NDArray[Any]
OUTPUTS = "outputs/"
_SMALL, _COST = ("ids", "labels", "meta"), "cost/"


@dataclass(frozen=True, kw_only=True)
class RecordsFile:
    """A records file but for its scores.

    Args:
        path: of the file.
        ids: (n,), int64 or text.
        labels: int64 (n,), None where it has none.
        classes: k.
        cost: member name -> cost per row; its keys are the members.
        meta: what else it says.
    """

    path: Path
    ids: Array
    labels: npt.NDArray[np.int64] | None
    classes: int
    cost: dict[str, float]
    meta: dict[str, Any]


def file_from_path(path: Path) -> RecordsFile:
    """A records file without its scores.

    Raises:
        DataError: it is missing, broken, or its parts do not fit.
    """
    what = f"records {path}"
    if not path.is_file():
        raise DataError(what, got="no such file", fix="make it with `committee record`")
    small = arrays_from_path(path, what=what, wanted=lambda name: name in _SMALL or name.startswith(_COST))
    shapes = shapes_from_path(path, what=what, wanted=lambda name: name.startswith(OUTPUTS))
    shapes = {name.removeprefix(OUTPUTS): shape for name, shape in shapes.items()}
    costs = {name.removeprefix(_COST): array for name, array in small.items() if name.startswith(_COST)}
    if "ids" not in small or not shapes:
        missing = "no ids" if "ids" not in small else "no member outputs"
        raise DataError(what, got=missing, expected="ids, outputs/<member>, cost/<member>")
    rows = len(small["ids"])
    first = next(iter(shapes.values()))
    if len(first) != 2 or first[0] != rows or first[1] < 2 or any(shape != first for shape in shapes.values()):
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise DataError(what, got=f"{rows} ids and outputs of shapes {listed}", expected="(rows, classes) for all")
    if set(costs) != set(shapes):
        raise DataError(
            what, got=f"costs of {first_few(list(costs))}", expected=f"one of each of {first_few(list(shapes))}"
        )
    check_ids(what, small["ids"], rows)
    labels = small.get("labels")
    if labels is not None:
        check_labels(what, labels, rows=rows, classes=first[1])
    return RecordsFile(
        path=path,
        ids=_plain_ids(what, small["ids"]),
        labels=None if labels is None else labels.astype(np.int64),
        classes=first[1],
        cost={name: _checked_cost(what, name, costs[name]) for name in shapes},
        meta=meta_from_array(small.get("meta")),
    )


def _checked_cost(what: str, name: str, array: Array) -> float:
    cost = cost_from_array(name, array)
    if not is_cost(cost):
        raise DataError(what, got=f"costs {name} {cost:g}", expected=COSTS)
    return cost


def _plain_ids(what: str, ids: Array) -> Array:
    """Whole numbers of one dtype and text of one kind, so that equal ids are equal."""
    if ids.dtype.kind == "S":
        return ids.astype(np.str_)
    if ids.dtype == np.uint64 and int(ids.max(initial=0)) > np.iinfo(np.int64).max:
        raise DataError(f"{what} ids", got=f"{ids.max()}", expected="64-bit whole numbers, or text")
    return ids.astype(np.int64) if ids.dtype.kind in "iu" else ids
