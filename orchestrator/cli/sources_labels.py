"""Class names to class numbers, as the members know them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.cli.class_map import ClassMap
from orchestrator.cli.near_names import names_beside
from orchestrator.errors import DataError
from orchestrator.planner.records import check_labels, named
from orchestrator.spec.class_names import in_order, normal_form


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What members call their classes.

    Args:
        count: k.
        names: in order, None where nobody says.
        by_order: take the sorted names of a data source for the classes in order, whatever the members say.
        mapped: what a data source calls the classes, in the members' order; None where nobody says. It goes first.
        first: number of the first class in labels that are numbers.
    """

    count: int
    names: tuple[str, ...] | None = None
    by_order: bool = False
    mapped: ClassMap | None = None
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """Class numbers of names.

    Args:
        numbers: name -> class.
        by: "map", "name" or "order".
        class_names: what the classes are called, the members' own names first; None where some are not known.
        note: what the user should check, if anything.
    """

    numbers: dict[str, int]
    by: str
    class_names: tuple[str, ...] | None = None
    note: str | None = None


def numbering_of(what: str, names: Sequence[str], classes: Classes) -> Numbering:
    """Class numbers of the different class names in a data source.

    Raises:
        DataError: a name the members do not have, or another number of names than classes.
    """
    if classes.first:
        raise DataError(
            what, got="class names", expected="numbers, which --first-label is for", fix="leave it out"
        )
    if classes.mapped is not None:
        return _by_map(what, names, classes.mapped, classes)
    if classes.names is not None and not classes.by_order:
        return _by_name(what, names, classes.names)
    return _by_order(what, in_order(names), classes)


def _by_order(what: str, names: Sequence[str], classes: Classes) -> Numbering:
    if len(names) > classes.count or (len(names) != classes.count and not classes.by_order):
        fix = "say which is which with --class-map"
        raise DataError(
            what,
            got=f"{len(names)} classes ({named(names)}), and nothing that names the members' classes",
            expected=f"{classes.count}",
            fix=None
            if len(names) > classes.count
            else f"{fix}, or take them for the first ones with --labels-by-order",
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
    return Numbering(
        numbers={name: number for number, name in enumerate(names)},
        by="order",
        class_names=classes.names or (tuple(names) if len(names) == classes.count else None),
        note=f"{note}; if the members have another order, say it with --class-map",
    )


def _by_map(what: str, names: Sequence[str], mapped: ClassMap, classes: Classes) -> Numbering:
    place = {normal_form(name): number for number, name in enumerate(mapped.names)}
    strange = [name for name in names if normal_form(name) not in place]
    if strange:
        raise DataError(
            what,
            got=f"{len(strange)} of {len(names)} classes that the class map does not have: "
            f"{names_beside(strange, mapped.names)}",
            expected=f"names such as {named(mapped.names)}",
        )
    return Numbering(
        numbers={name: place[normal_form(name)] for name in names},
        by="map",
        class_names=classes.names or mapped.class_names,
    )


def _by_name(what: str, names: Sequence[str], known: tuple[str, ...]) -> Numbering:
    place = {normal_form(name): number for number, name in enumerate(known)}
    strange = [name for name in names if normal_form(name) not in place]
    if strange:
        raise DataError(
            what,
            got=f"{len(strange)} of {len(names)} classes that no member has: {names_beside(strange, known)}",
            expected=f"the members' names, such as {named(known)}",
            fix="say which is which with --class-map, or take the sorted names in order with --labels-by-order",
        )
    count = Counter(map(normal_form, known))
    unclear = [name for name in names if count[normal_form(name)] > 1]
    if unclear:
        got = f"names that several classes of the members have: {named(unclear)}"
        raise DataError(what, got=got, expected="one class per name", fix="say which is which with --class-map")
    return Numbering(numbers={name: place[normal_form(name)] for name in names}, by="name", class_names=known)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of a source.

    Args:
        numbers: int64 (n,) in 0..k-1, None where there are none.
        by: "map", "name" or "order" where they were names, else None.
        class_names: see `Numbering`.
        notes: what the user should check.
    """

    numbers: npt.NDArray[np.int64] | None = None
    by: str | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def labels_from_array(what: str, labels: npt.NDArray[Any] | None, *, rows: int, classes: Classes) -> Labels:
    """Labels as class numbers, from numbers or names.

    Raises:
        DataError: they are neither, not one per row, of classes that the members do not have, or none or no names
            although an option speaks of them.
    """
    if classes.mapped is not None and (labels is None or labels.dtype.kind not in "US"):
        got = "no labels" if labels is None else f"labels of type {labels.dtype}"
        raise DataError(what, got=got, expected="class names, which --class-map says", fix="leave out --class-map")
    if labels is None:
        if classes.first:
            raise DataError(what, got="no labels", expected="numbers, which --first-label is for")
        return Labels(notes=("no labels: recorded without them",))
    if labels.dtype.kind not in "US" or labels.shape != (rows,):
        check_labels(
            f"{what} labels",
            labels,
            rows=rows,
            classes=classes.count,
            first=classes.first,
            mending="say so with --first-label 1",
        )
        return Labels(numbers=labels.astype(np.int64) - classes.first)
    names, which = np.unique(labels.astype(np.str_), return_inverse=True)
    numbering = numbering_of(f"{what} labels", names.tolist(), classes)
    numbers = np.array([numbering.numbers[name] for name in names.tolist()], np.int64)
    notes = (numbering.note,) if numbering.note else ()
    return Labels(numbers=numbers[which], by=numbering.by, class_names=numbering.class_names, notes=notes)
