"""Class names to class numbers, as the members know them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.records import check_labels, named


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What members call their classes.

    Args:
        count: k.
        names: in order, None where no manifest has them.
        by_order: take the sorted names of a data source for the classes in order, whatever the members say.
        mapped: what a data source calls the classes, in the members' order; None where nobody says. It goes first.
    """

    count: int
    names: tuple[str, ...] | None = None
    by_order: bool = False
    mapped: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """Class numbers of names.

    Args:
        numbers: name -> class.
        by: "map", "name" or "order".
        note: what the user should check, if anything.
    """

    numbers: dict[str, int]
    by: str
    note: str | None = None


def numbering_of(what: str, names: Sequence[str], classes: Classes) -> Numbering:
    """Class numbers of the different class names in a data source, given sorted.

    Raises:
        DataError: a name the members do not have, or another number of names than classes.
    """
    if classes.mapped is not None:
        return _by_map(what, names, classes.mapped)
    if classes.names is not None and not classes.by_order:
        return _by_name(what, names, classes.names)
    if len(names) > classes.count or (len(names) != classes.count and not classes.by_order):
        raise DataError(
            what,
            got=f"{len(names)} classes ({named(names)}), and no manifest that names the members' classes",
            expected=f"{classes.count}",
            fix=None if len(names) > classes.count else "take them for the first ones with --labels-by-order",
        )
    note = f"classes are taken in order: {names[0]} is 0, ..., {names[-1]} is {len(names) - 1}"
    if all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names):
        note += "; text order, so 10 comes before 2"
    return Numbering(numbers={name: number for number, name in enumerate(names)}, by="order", note=note)


def _by_map(what: str, names: Sequence[str], mapped: Sequence[str]) -> Numbering:
    place = {name: number for number, name in enumerate(mapped)}
    strange = [name for name in names if name not in place]
    if strange:
        raise DataError(
            what,
            got=f"{len(strange)} of {len(names)} classes that the class map does not have: {named(strange)}",
            expected=f"names such as {named(mapped)}",
        )
    return Numbering(numbers={name: place[name] for name in names}, by="map")


def _by_name(what: str, names: Sequence[str], known: Sequence[str]) -> Numbering:
    strange = [name for name in names if name not in set(known)]
    if strange:
        raise DataError(
            what,
            got=f"{len(strange)} of {len(names)} classes that no member has: {named(strange)}",
            expected=f"the members' names, such as {named(known)}",
            fix="say which is which with --class-map, or take the sorted names in order with --labels-by-order",
        )
    count = Counter(known)
    unclear = [name for name in names if count[name] > 1]
    if unclear:
        got = f"names that several classes of the members have: {named(unclear)}"
        raise DataError(what, got=got, expected="one class per name", fix="say which is which with --class-map")
    place = {name: number for number, name in enumerate(known)}
    return Numbering(numbers={name: place[name] for name in names}, by="name")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of a source.

    Args:
        numbers: int64 (n,) in 0..k-1, None where there are none.
        by: "map", "name" or "order" where they were names, else None.
        notes: what the user should check.
    """

    numbers: npt.NDArray[np.int64] | None = None
    by: str | None = None
    notes: tuple[str, ...] = ()


def labels_from_array(what: str, labels: npt.NDArray[Any] | None, *, rows: int, classes: Classes) -> Labels:
    """Labels as class numbers, from numbers or names.

    Raises:
        DataError: they are neither, not one per row, of classes that the members do not have, or no names although
            a class map is given.
    """
    if classes.mapped is not None and (labels is None or labels.dtype.kind not in "US"):
        got = "no labels" if labels is None else f"labels of type {labels.dtype}"
        raise DataError(what, got=got, expected="class names, which --class-map says", fix="leave out --class-map")
    if labels is None:
        return Labels(notes=("no labels: recorded without them",))
    if labels.dtype.kind not in "US" or labels.shape != (rows,):
        check_labels(f"{what} labels", labels, rows=rows, classes=classes.count)
        return Labels(numbers=labels.astype(np.int64))
    names, which = np.unique(labels.astype(np.str_), return_inverse=True)
    numbering = numbering_of(f"{what} labels", names.tolist(), classes)
    numbers = np.array([numbering.numbers[name] for name in names.tolist()], np.int64)
    notes = (numbering.note,) if numbering.note else ()
    return Labels(numbers=numbers[which], by=numbering.by, notes=notes)
