"""Labels of rows as the class numbers of the members, from numbers or from class names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few
from orchestrator.rows.class_map import ClassMap
from orchestrator.rows.ids import check_labels
from orchestrator.rows.near_names import names_beside
from orchestrator.spec.class_names import in_order, normal_form

# The fix for labels that number the classes from another first one.
_MENDING = "say so with `first_label={first}`"
# The label of a row without one, where labels are numbers; Hugging Face's data sets use it too.
UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class MemberClasses:
    """The classes of the members, and how the labels of a data source stand for them.

    Args:
        count: k.
        names: what the members call them, in order; None where nothing says.
        by_order: take the sorted names of the data source for the classes in order, whatever the members say.
        class_map: what the data source calls the classes, in the members' order; it goes before `names`.
        first_label: number of the first class in labels that are numbers.
    """

    count: int
    names: tuple[str, ...] | None = None
    by_order: bool = False
    class_map: ClassMap | None = None
    first_label: int = 0


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


class _Matched(NamedTuple):
    """Classes of the names in a data source; `class_names` are of all classes, `note` is for the user to check."""

    numbers: Mapping[str, int]
    by: str | None
    class_names: tuple[str, ...] | None = None
    note: str | None = None


def _matched(what: str, names: Sequence[str], classes: MemberClasses) -> _Matched:
    if classes.first_label:
        return _by_number(what, names, classes)
    if classes.class_map is not None:
        return _by_map(what, names, classes.class_map, classes)
    if classes.names is not None and not classes.by_order:
        return _by_name(what, names, classes.names)
    return _by_order(what, names, classes)


def _by_number(what: str, names: Sequence[str], classes: MemberClasses) -> _Matched:
    if not all(name.isdecimal() for name in names):
        raise DataError(
            what, got="class names", expected="numbers, which `first_label` is for", fix="leave it out"
        )
    values = np.array([int(name) for name in names])
    check_labels(what, values, rows=len(names), classes=classes.count, first=classes.first_label, mending=_MENDING)
    return _Matched(numbers=dict(zip(names, (values - classes.first_label).tolist(), strict=True)), by=None)


def _by_order(what: str, names: Sequence[str], classes: MemberClasses) -> _Matched:
    if len(names) > classes.count or (len(names) != classes.count and not classes.by_order):
        fix = "say which is which with `class_map`"
        raise DataError(
            what,
            got=f"{len(names)} classes ({first_few(names)}), and nothing that names the members' classes",
            expected=f"{classes.count}",
            fix=None if len(names) > classes.count else f"{fix}, or take them for the first ones with `by_order`",
        )
    once: dict[str, str] = {}
    for name in names:
        other = once.setdefault(normal_form(name), name)
        if other is not name:
            got = f"{other!a} and {name!a}, which is the same name written in two ways"
            raise DataError(what, got=got, expected="every class once", fix="rename one of them")
    note = f"classes are taken in order: {names[0]} is 0, ..., {names[-1]} is {len(names) - 1}"
    if all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names):
        note += "; text order, so 10 comes before 2"
    return _Matched(
        numbers={name: number for number, name in enumerate(names)},
        by="order",
        class_names=classes.names or (tuple(names) if len(names) == classes.count else None),
        note=f"{note}; if the members have another order, say it with `class_map`",
    )


def _by_map(what: str, names: Sequence[str], mapped: ClassMap, classes: MemberClasses) -> _Matched:
    mapped, place = mapped.places(what, names)
    strange = [name for name in names if normal_form(name) not in place]
    if strange:
        raise DataError(
            what,
            got=f"{len(strange)} of {len(names)} classes that the class map does not have: "
            f"{names_beside(strange, mapped.names)}",
            expected=f"names such as {first_few(mapped.names)}",
            fix=mapped.advice,
        )
    return _Matched(
        numbers={name: place[normal_form(name)] for name in names},
        by="map",
        class_names=classes.names or mapped.class_names,
    )


def _by_name(what: str, names: Sequence[str], known: tuple[str, ...]) -> _Matched:
    place = {normal_form(name): number for number, name in enumerate(known)}
    strange = [name for name in names if normal_form(name) not in place]
    if strange:
        raise DataError(
            what,
            got=f"{len(strange)} of {len(names)} classes that no member has: {names_beside(strange, known)}",
            expected=f"the members' names, such as {first_few(known)}",
            fix="say which is which with `class_map`, or take the sorted names in order with `by_order`",
        )
    count = Counter(map(normal_form, known))
    unclear = [name for name in names if count[normal_form(name)] > 1]
    if unclear:
        got = f"names that several classes of the members have: {first_few(unclear)}"
        raise DataError(what, got=got, expected="one class per name", fix="say which is which with `class_map`")
    return _Matched(numbers={name: place[normal_form(name)] for name in names}, by="name", class_names=known)


def labels_from_array(
    what: str,
    labels: npt.NDArray[Any] | None,
    *,
    rows: int,
    classes: MemberClasses,
    missing: npt.NDArray[np.bool_] | None = None,
) -> RowLabels:
    """Labels as class numbers, from numbers or names.

    Args:
        what: names the source in errors.
        labels: (n,) or, without the missing ones, fewer; whole numbers, also as floats, booleans or text.
        rows: n.
        classes: of the members.
        missing: (n,), which rows have no label.

    Raises:
        DataError: they are neither numbers nor names, not one per row, or of classes that the members do not have;
            or there are none, or no names, although `classes` says how to read them.
    """
    if missing is not None:
        _check_any(f"{what} labels", ~missing)
    if classes.class_map is not None and (labels is None or labels.dtype.kind not in "US"):
        got = "no labels" if labels is None else f"labels of type {labels.dtype}"
        raise DataError(what, got=got, expected="class names, which `class_map` says", fix="leave out `class_map`")
    if labels is None:
        if classes.first_label:
            raise DataError(what, got="no labels", expected="numbers, which `first_label` is for")
        return RowLabels(notes=("no labels: recorded without them",))
    if missing is None:
        missing = np.zeros(rows, np.bool_)
    if labels.dtype.kind in "US" and labels.shape == (rows - missing.sum(),):
        return labels_from_names(f"{what} labels", labels.astype(np.str_), classes=classes, missing=missing)
    return _of_numbers(what, labels, missing, classes)


def _of_numbers(
    what: str, labels: npt.NDArray[Any], missing: npt.NDArray[np.bool_], classes: MemberClasses
) -> RowLabels:
    values = _whole(f"{what} labels", labels)
    absent = np.isnan(labels) if labels.dtype.kind == "f" else np.zeros(labels.shape, np.bool_)
    if classes.first_label >= 0 and values.dtype.kind == "i":
        absent |= values == UNLABELLED
    known = values[~absent] if values.ndim == 1 else values
    check_labels(
        f"{what} labels",
        known,
        rows=len(missing) - int(missing.sum()) - int(absent.sum()),
        classes=classes.count,
        first=classes.first_label,
        mending=_MENDING,
    )
    values = values.astype(np.int64) - classes.first_label
    values[absent] = UNLABELLED
    return RowLabels(numbers=_placed(f"{what} labels", values, missing))


def _whole(what: str, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floats and booleans as whole numbers, NaN as `UNLABELLED`: pandas stores numbers with gaps as floats."""
    if labels.dtype.kind == "b":
        return labels.astype(np.int64)
    if labels.dtype.kind != "f":
        return labels
    known = labels[~np.isnan(labels)]
    broken = known[(known != np.rint(known)) | (np.abs(known) > 1 << 53)]
    if len(broken):
        got = f"{labels.dtype} such as {first_few(broken.ravel())}"
        raise DataError(what, got=got, expected="whole numbers or class names")
    return np.where(np.isnan(labels), UNLABELLED, labels).astype(np.int64)


def labels_from_names(
    what: str, names: npt.NDArray[np.str_], *, classes: MemberClasses, missing: npt.NDArray[np.bool_] | None = None
) -> RowLabels:
    """Labels as class numbers, from the class name of each row.

    Args:
        what: names the labels in errors.
        names: of the rows that have a label.
        classes: of the members.
        missing: (n,), which rows have none; None where all have one.

    Raises:
        DataError: a name the members do not have, or another number of names than classes.
    """
    different, which = np.unique(names, return_inverse=True)
    matched = _matched(what, in_order(different.tolist()), classes)
    numbers = np.array([matched.numbers[name] for name in different.tolist()], np.int64)[which]
    return RowLabels(
        numbers=numbers if missing is None else _placed(what, numbers, missing),
        by=matched.by,
        class_names=matched.class_names,
        notes=(matched.note,) if matched.note else (),
    )


def _placed(what: str, known: npt.NDArray[np.int64], missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Labels of all rows, `UNLABELLED` where they are missing."""
    placed = np.full(len(missing), UNLABELLED, np.int64)
    placed[~missing] = known
    _check_any(what, placed != UNLABELLED)
    return placed


def _check_any(what: str, labelled: npt.NDArray[np.bool_]) -> None:
    if not labelled.any():
        raise DataError(
            what,
            got=f"{UNLABELLED}, NaN or null in every row",
            expected="labels",
            fix="name another column with `label_column`, or take the labels out to record without them",
        )
