"""Labels of rows as the class numbers of the members, from numbers or from class names, maybe by a class map."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.errors import LISTED, DataError, first_few
from orchestrator.rows.blocks import UNLABELLED, RowLabels, check_labels
from orchestrator.spec.answer import first_misplaced, in_order, normal_form


@dataclass(frozen=True)
class ClassMap:
    """What a data set calls the members' classes, such as ImageNet's n01440764 for a tench.

    Its file has one line per class, in the order of the members' scores: the name in the data set and, after a
    blank, what the class is, as in Kaggle's LOC_synset_mapping.txt. A name with blanks in it has a tab behind it,
    except where no line has a tab and all names of the data set are whole lines. The words are compared with the
    members' class names: where a line has the words of another class than the one whose place it has, the order is
    wrong. Where members have no names, the words, or else the names, become those of the cascade.

    Args:
        names: what the data set calls each.
        words: what each is, "" where the file does not say.
        lines: each line as it stands, where none has a tab; else none.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    lines: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Each class in words, by its name in the data set where there are none."""
        return tuple(words or name for name, words in zip(self.names, self.words, strict=True))

    def places(self, what: str, names: Sequence[str]) -> "tuple[ClassMap, dict[str, int]]":
        """The map for a data set with these names, and the class number of each normal form.

        Raises:
            DataError: two lines are of one name.
        """
        keys = [normal_form(line) for line in self.lines]
        mapped = self if set(map(normal_form, names)) - set(keys) else ClassMap(self.lines, ("",) * len(keys))
        twice = [name for name, times in Counter(map(normal_form, mapped.names)).items() if times > 1]
        if twice:
            got = f"a class map with more than one line for {first_few(twice)}"
            raise DataError(what, got=got, expected="every name once", fix=self.advice)
        return mapped, {normal_form(name): number for number, name in enumerate(mapped.names)}

    @property
    def advice(self) -> str | None:
        """The fix for lines whose names end at another place than the user meant; None where that cannot be."""
        if not any(set(line) & set(" ,;") for line in self.lines):
            return None
        return "put a tab behind every name in the map: without one a name ends at the first blank"


def class_map_from_path(path: Path, *, count: int, known: Sequence[str] | None) -> ClassMap:
    """The class map that a file holds.

    Args:
        path: the file.
        count: classes of the members.
        known: what the members call them, None where nobody says.

    Raises:
        DataError: it cannot be read, has another number of classes, a line without a name, or another order.
    """
    what = f"class map {path}"
    lines = [line for line in _text(path, what).split("\n") if line.strip()]
    parts = [_parts(line) for line in lines]
    if len(parts) != count:
        raise DataError(
            what, got=f"{len(parts)} lines", expected=f"{count}, one per class of the members, in order"
        )
    names = [name for name, _ in parts]
    nameless = [words for name, words in parts if not name]
    if nameless:
        raise DataError(what, got=f"no name before {nameless[0]!r}", expected="a name, then a tab and the words")
    words = tuple(words for _, words in parts)
    whole = () if any("\t" in line for line in lines) else tuple(line.strip() for line in lines)
    are_known = {normal_form(line) for line in whole} <= {normal_form(name) for name in known or ()}
    _check_order(what, whole if are_known else words, known or ())
    return ClassMap(tuple(names), words, whole)


def _parts(line: str) -> tuple[str, str]:
    name, tab, words = line.partition("\t")
    if not tab:
        name, _, words = line.strip().partition(" ")
    return name.strip(), words.strip()


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(what, got=f"a file that cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(what, got="a file that is no text", expected="a name per line, in UTF-8") from error


def _check_order(what: str, words: Sequence[str], known: Sequence[str]) -> None:
    """Refuses a line whose words the members use for another class."""
    number = first_misplaced(words, known)
    if number is not None:
        raise DataError(
            what,
            got=f"{words[number]!r} on line {number + 1}",
            expected=f"{known[number]!r}, which is what the members call class {number}",
            fix="bring the lines into the members' order",
        )


# The fix for labels that number the classes from another first one.
_MENDING = "say so with `first_label={first}`"


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


# Names less alike than this are no misspellings of each other.
_CUTOFF = 0.8


def names_beside(strange: Sequence[str], known: Sequence[str]) -> str:
    """The first few strange names, each with the nearest known one if there is any.

    Two names that differ by characters that cannot be seen, or not told apart, are shown in quotes with these
    escaped.
    """
    # A key of several names stands for the first of them.
    keys = {_key(name): name for name in reversed(known)}
    shown = ", ".join(_beside(name, keys) for name in strange[:LISTED])
    return f"{shown}, ..." if len(strange) > LISTED else shown


def _beside(name: str, keys: dict[str, str]) -> str:
    near = _nearest(name, keys)
    if near is None:
        return name if name.isprintable() else _escaped(name)
    if all(char.isascii() and char.isprintable() and char != " " for char in _differing(name, near)):
        return f"{name} (nearest: {near})"
    return f"{_escaped(name)} (nearest: {_escaped(near)})"


def _nearest(name: str, keys: dict[str, str]) -> str | None:
    key = _key(name)
    if key in keys:
        return keys[key]
    # Numbers tell names apart that are no misspellings of each other, such as n01440764 and n01443537.
    number = _digits(key)
    close = get_close_matches(key, [other for other in keys if _digits(other) == number], n=1, cutoff=_CUTOFF)
    return keys[close[0]] if close else None


def _key(name: str) -> str:
    """Letters and digits alone, without accents, case and width; the name itself where it has none."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(char for char in plain if char.isalnum()) or name


def _digits(key: str) -> str:
    return "".join(char for char in key if char.isdecimal())


def _differing(one: str, other: str) -> str:
    """The characters of both in which they differ."""
    parts = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return "".join(one[a:b] + other[c:d] for tag, a, b, c, d in parts if tag != "equal")


def _escaped(name: str) -> str:
    # An error is one line in which blanks beside each other become one.
    return ascii(name).replace("  ", r"\x20\x20")
