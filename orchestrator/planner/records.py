"""Records: what every member said of every row, kept once so that planning never asks a model again.

One `.npz`, readable and writable with numpy alone (docs/records.md):
    ids              (n,) whole numbers or text, unique
    labels           int64 (n,), optional
    groups           (n,) whole numbers or text, optional: rows of one group are not independent of each other
    outputs/<member> float32 (n, k)
    cost/<member>    float64 (), cost per row
    meta             () JSON text: data_sha256, the members' sha256 and output_kind, ...; may be {} or absent
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few, shown
from orchestrator.rows.blocks import check_ids, check_labels, check_names
from orchestrator.rows.npz import NpzWriter, arrays_from_path, npz_writer, shapes_from_path
from orchestrator.spec import Member
from orchestrator.spec.documents import value_from_json
from orchestrator.spec.validation import COSTS, is_cost

Array = npt.NDArray[Any]
# Arrays of a file by their names.
SMALL, OUTPUTS, COST = ("ids", "labels", "groups", "meta"), "outputs/", "cost/"
# Keys of `meta` that are worked with, and what they hold; null is as good as missing.
_KINDS = {
    **dict.fromkeys(("members", "recorded_with", "skipped", "part"), dict),
    "skipped_rows": int, "non_finite_rows": int, "joined_rows": list, "class_names": list, "labels_by": str,
}  # fmt: skip
# In the meta: how many of the rows that members were asked about hold NaN or infinity.
NON_FINITE = "non_finite_rows"
# Key of a member's entry in `meta`, beside a cost that is a mean over rows of varying length: their mean length.
MEAN_LENGTH = "mean_length"
# Rows that were left out and are named one by one in `meta`; there may be a million.
SKIPPED_LISTED = 1000


@dataclass(frozen=True, kw_only=True)
class Records:
    """Outputs of m members on n rows; nothing in them can be changed, `dataclasses.replace` makes others.

    Args:
        ids: (n,), unique.
        labels: int64 (n,) in 0..k-1, None where nobody knows them.
        outputs: member name -> float32 (n, k), as the member gave them; -inf only beside finite scores.
        cost: member name -> cost per row.
        meta: what else is known, as JSON values.
        groups: (n,), whole numbers or text: which rows belong together; None where each stands by itself.

    Raises:
        DataError: parts that do not fit together.
    """

    ids: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    outputs: Mapping[str, npt.NDArray[np.float32]]
    cost: Mapping[str, float]
    meta: Mapping[str, Any] = field(default_factory=dict)
    groups: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        outputs = {name: np.asarray(scores, np.float32) for name, scores in self.outputs.items()}
        labels = None if self.labels is None else np.asarray(self.labels)
        groups = None if self.groups is None else np.asarray(self.groups)
        vars(self).update(ids=np.asarray(self.ids), labels=labels, outputs=outputs, groups=groups)
        shapes = {name: array.shape for name, array in outputs.items()}
        rows, _ = _checked_shape(self.ids, self.labels, groups, shapes=shapes, cost=self.cost)
        for name, scores in self.outputs.items():
            bad = unusable_rows(scores)
            if len(bad):
                where = f"in {len(bad)} of {rows} rows, id {first_few(self.ids[bad])}"
                got, fix = f"NaN, infinity or no finite score {where}", "leave these rows out, or the member"
                raise DataError(f"records, outputs of {name}", got=got, expected="finite scores", fix=fix)
        for part in dataclasses.fields(self):
            object.__setattr__(self, part.name, _read_only(getattr(self, part.name)))

    def check_members(self, members: Iterable[Member]) -> None:
        """Refuses members that were not recorded.

        Raises:
            DataError: naming them.
        """
        missing = [member.name for member in members if member.name not in self.outputs]
        if missing:
            raise DataError("records", got=f"no outputs of {', '.join(missing)}", fix="record those members too")

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.ids)

    @property
    def classes(self) -> int:
        """Number of classes k."""
        return int(next(iter(self.outputs.values())).shape[1])

    @property
    def cost_unit(self) -> str:
        """What costs are counted in."""
        return str(self.meta.get("cost_unit", "MACs"))

    @property
    def data_sha256(self) -> str:
        """Hash of the rows the records were made from; empty where nobody knows it."""
        return str(self.meta.get("data_sha256", ""))


@dataclass(frozen=True, kw_only=True)
class RecordsFile:
    """A records file without its scores, so that several fit in memory; the keys of `cost` are its members."""

    path: Path
    ids: Array
    labels: npt.NDArray[np.int64] | None
    classes: int
    cost: Mapping[str, float]
    meta: Mapping[str, Any]
    groups: Array | None = None

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.ids)


class _ReadOnlyDict(dict[str, Any]):
    """A dict, so that it can be written as JSON, that refuses to be changed."""

    def _refuse(self, *_args: object, **_changes: object) -> Any:
        raise TypeError("records cannot be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> Any:
        # Unpickling would otherwise put items in one by one.
        return _ReadOnlyDict, (dict(self),)


def _read_only(value: Any) -> Any:
    """The same values as views and copies that cannot be changed; the value handed in stays as it is."""
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    if isinstance(value, Mapping):
        return _ReadOnlyDict({key: _read_only(item) for key, item in value.items()})
    return [_read_only(item) for item in value] if isinstance(value, list) else value


def unusable_rows(scores: Array) -> npt.NDArray[np.int64]:
    """Which rows of float (n, k) hold NaN or +inf, or nothing but -inf; a single -inf is a score of 0."""
    if not scores.size:
        return np.zeros(0, np.int64)
    # The largest score of a row is NaN, +inf or -inf in just these three cases, and needs no (n, k) of its own.
    return np.flatnonzero(~np.isfinite(scores.max(axis=1)))


def _checked_shape(
    ids: Array,
    labels: Array | None,
    groups: Array | None,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    cost: Mapping[str, float],
) -> tuple[int, int]:
    """Rows and classes of records whose parts fit together; `shapes` are those of the members' outputs."""
    if not shapes:
        raise DataError("records", got="no member outputs", expected="at least one outputs/<member>")
    first = next(iter(shapes.values()))
    if len(first) != 2 or any(shape != first for shape in shapes.values()):
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise DataError("records", got=f"outputs of shapes {listed}", expected="one (rows, classes) for all")
    rows, classes = first
    if rows < 1 or classes < 2:
        got = f"outputs of shape {list(first)}"
        raise DataError("records", got=got, expected="rows, and at least two classes")
    check_ids("records", ids, rows)
    if labels is not None:
        check_labels("records", labels, rows=rows, classes=classes)
    if groups is not None:
        check_names("records", groups, rows, kind="groups")
    _check_costs(shapes, cost)
    return rows, classes


def _check_costs(outputs: Mapping[str, object], cost: Mapping[str, float]) -> None:
    if missing := sorted(set(outputs) - set(cost)):
        raise DataError("records", got=f"no cost of {', '.join(missing)}", expected="cost/<member> for each")
    if strange := sorted(set(cost) - set(outputs)):
        got = f"costs of {', '.join(strange)} without outputs"
        raise DataError("records", got=got, expected="outputs/<member>")
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
    """Writes one `.npz`, the same bytes for the same records; see `write_all_records`."""
    write_all_records({path: records})


def write_all_records(files: Mapping[Path, Records]) -> None:
    """Writes several `.npz`; where a place cannot be written to, or the disk is full, none of them appears.

    Raises:
        DataError: as said.
    """
    with contextlib.ExitStack() as stack:  # all are open before any is filled, and appear when the last one is
        writers = [stack.enter_context(npz_writer(path)) for path in files]
        for writer, records in zip(writers, files.values(), strict=True):
            _fill(writer, records, {name: [output] for name, output in records.outputs.items()})


def write_records_in_parts(file: RecordsFile, outputs: Mapping[str, Iterable[Array]]) -> None:
    """Writes records whose scores, by member in parts of float32 (n, k), do not fit in memory.

    Raises:
        DataError: the place cannot be written to, or the disk is full.
    """
    with npz_writer(file.path) as writer:
        _fill(writer, file, outputs)


def _fill(writer: NpzWriter, small: Records | RecordsFile, outputs: Mapping[str, Iterable[Array]]) -> None:
    writer.add("ids", small.ids)
    if small.labels is not None:
        writer.add("labels", small.labels)
    if small.groups is not None:
        writer.add("groups", small.groups)
    for name, parts in outputs.items():
        writer.stream(f"{OUTPUTS}{name}", np.float32, shape=(small.rows, small.classes), parts=parts)
        writer.add(f"{COST}{name}", np.float64(small.cost[name]))
    writer.add("meta", np.array(text_from_meta(small.meta)))


def records_from_path(path: Path | str) -> Records:
    """The records of a file.

    Raises:
        DataError: the file is missing, truncated, not records, or its parts do not fit.
    """
    path = Path(path)
    with _faults_of(path):
        small = _small_parts(path)
        arrays = arrays_from_path(path, what="records", wanted=lambda name: name.startswith(OUTPUTS))
        outputs = {name.removeprefix(OUTPUTS): scores_from_array(name, array) for name, array in arrays.items()}
        return Records(outputs=outputs, **small)


def records_file_from_path(path: Path) -> RecordsFile:
    """The records of a file, but for the scores.

    Raises:
        DataError: as `records_from_path`, scores that are not finite apart.
    """
    with _faults_of(path):
        small = _small_parts(path)
        found = shapes_from_path(path, what="records", wanted=lambda name: name.startswith(OUTPUTS))
        shapes = {name.removeprefix(OUTPUTS): shape for name, shape in found.items()}
        known = small["ids"], small["labels"], small["groups"]
        _, classes = _checked_shape(*known, shapes=shapes, cost=small["cost"])
        small["cost"] = {name: small["cost"][name] for name in shapes}
        return RecordsFile(path=path, classes=classes, **small)


@contextlib.contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Names the file in what is said about its records."""
    if not path.is_file():
        raise DataError(f"records {path}", got="no such file", fix="make it with `committee record`")
    try:
        yield
    except DataError as error:
        what = error.what.replace("records", f"records {path}", 1)
        raise DataError(what, got=error.got, expected=error.expected, fix=error.fix) from error


def _small_parts(path: Path) -> dict[str, Any]:
    """Ids, labels, costs and meta of a file, not held against each other yet."""
    small = arrays_from_path(path, what="records", wanted=lambda name: name in SMALL or name.startswith(COST))
    if "ids" not in small:
        raise DataError("records", got="no ids", expected="ids, outputs/<member>, cost/<member>")
    labels = small.get("labels")
    if labels is not None and labels.dtype.kind in "iu":
        labels = labels.astype(np.int64)
    costs = {name.removeprefix(COST): array for name, array in small.items() if name.startswith(COST)}
    return {
        "ids": small["ids"],
        "labels": labels,
        "groups": small.get("groups"),
        "cost": {name: _cost_from_array(name, array) for name, array in costs.items()},
        "meta": _meta_from_array(small.get("meta")),
    }


def scores_from_array(name: str, array: Array) -> npt.NDArray[np.float32]:
    """A member's scores as a file holds them, as float32.

    Raises:
        DataError: they are no numbers.
    """
    if array.dtype.kind not in "fiu":
        member = name.removeprefix(OUTPUTS)
        raise DataError(f"records, outputs of {member}", got=f"dtype {array.dtype}", expected="float32")
    # What is too large becomes infinity, which is refused by name.
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def _cost_from_array(name: str, array: Array) -> float:
    if array.dtype.kind not in "fiu" or array.size != 1:
        got = f"dtype {array.dtype}, shape {list(array.shape)}"
        raise DataError(f"records, cost of {name}", got=got, expected="one number")
    return float(array.reshape(()))


def _meta_from_array(array: Array | None) -> dict[str, Any]:
    try:
        meta = {} if array is None else value_from_json(str(array))
    except ValueError as error:
        raise DataError("records, meta", got=f"no JSON of use ({error})", expected="a JSON object") from error
    if not isinstance(meta, dict):
        raise DataError("records, meta", got=f"JSON {type(meta).__name__}", expected="a JSON object")
    wrong = [key for key, kind in _KINDS.items() if meta.get(key) is not None and not isinstance(meta[key], kind)]
    facts = () if "members" in wrong else (meta.get("members") or {}).items()
    wrong += [f"members.{name}" for name, about in facts if not isinstance(about, dict)]
    if wrong:
        held = shown(meta[wrong[0].partition(".")[0]], most=80)
        got = f"meta with other kinds of {first_few(wrong)}: got {held}"
        raise DataError("records", got=got, fix="record again")
    return {key: value for key, value in meta.items() if key not in _KINDS or value is not None}
