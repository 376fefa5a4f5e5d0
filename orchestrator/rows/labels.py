"""Labels of rows as the class numbers of the members, from numbers or from class names, maybe by a class map."""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.errors import LISTED, DataError, first_few
from orchestrator.rows.blocks import UNLABELLED, RowLabels, Rows, check_labels
from orchestrator.spec.answer import first_misplaced, in_order, normal_form
from orchestrator.spec.documents import text_from_path

Mask = npt.NDArray[np.bool_]
# The fix for labels that number the classes from another first one.
_MENDING = "say so with `first_label={first}`"
# Names less alike than this are no misspellings of each other.
_CUTOFF = 0.8


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

    def for_names(self, what: str, names: Sequence[str]) -> "ClassMap":
        """The map for a data set with these names: whole lines are its names where that fits.

        Raises DataError where two lines are of one name.
        """
        are_lines = set(map(normal_form, names)) <= set(map(normal_form, self.lines))
        mapped = ClassMap(self.lines, ("",) * len(self.lines)) if are_lines else self
        twice = [name for name, times in Counter(map(normal_form, mapped.names)).items() if times > 1]
        if twice:
            got = f"a class map with more than one line for {first_few(twice)}"
            raise DataError(what, got=got, expected="every name once", fix=self.advice)
        return mapped

    @property
    def advice(self) -> str | None:
        """The fix for lines whose names end at another place than the user meant; None where that cannot be."""
        text = "put a tab behind every name in the map: without one a name ends at the first blank"
        return text if any(set(line) & set(" ,;") for line in self.lines) else None


def class_map_from_path(path: Path, *, count: int, known: Sequence[str] | None) -> ClassMap:
    """The class map that a file holds, for `count` classes that the members call `known`, where that is known.

    Raises DataError where it cannot be read, or has another number of classes, a line without a name, or another
    order.
    """
    what = f"class map {path}"
    try:
        text = text_from_path(path)
    except ValueError as error:
        raise DataError(what, got=f"a file that {error}", expected="a name per line, in UTF-8") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) != count:
        raise DataError(
            what, got=f"{len(lines)} lines", expected=f"{count}, one per class of the members, in order"
        )
    # A name ends at the tab, or at the first blank where there is no tab.
    parts = [line.partition("\t") if "\t" in line else line.strip().partition(" ") for line in lines]
    names = tuple(name.strip() for name, _, _ in parts)
    words = tuple(text.strip() for _, _, text in parts)
    if not all(names):
        got = f"no name before {words[names.index('')]!r}"
        raise DataError(what, got=got, expected="a name, then a tab and the words")
    whole = () if "\t" in text else tuple(line.strip() for line in lines)
    are_known = set(map(normal_form, whole)) <= set(map(normal_form, known or ()))
    compared = whole if are_known else words
    number = first_misplaced(compared, known or ())
    if number is not None and known:
        raise DataError(
            what,
            got=f"{compared[number]!r} on line {number + 1}",
            expected=f"{known[number]!r}, which is what the members call class {number}",
            fix="bring the lines into the members' order",
        )
    return ClassMap(names, words, whole)


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


def labels_from_array(
    what: str, labels: Rows | None, *, rows: int, classes: MemberClasses, missing: Mask | None = None
) -> RowLabels:
    """Labels as class numbers, from numbers or names; `what` names the source in errors.

    Labels are (n,) or, without the missing ones, fewer: whole numbers, also as floats, booleans or text. `missing`
    (n,) says which rows have none.

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
    return _from_numbers(f"{what} labels", labels, missing, classes)


def _from_numbers(what: str, labels: Rows, missing: Mask, classes: MemberClasses) -> RowLabels:
    absent = np.zeros(labels.shape, np.bool_)
    values = labels.astype(np.int64) if labels.dtype.kind == "b" else labels
    if labels.dtype.kind == "f":
        # pandas stores whole numbers with gaps as floats.
        absent = np.isnan(labels)
        known = labels[~absent]
        broken = known[(known != np.rint(known)) | (np.abs(known) > 1 << 53)]
        if len(broken):
            got = f"{labels.dtype} such as {first_few(broken.ravel())}"
            raise DataError(what, got=got, expected="whole numbers or class names")
        values = np.where(absent, UNLABELLED, labels).astype(np.int64)
    if classes.first_label >= 0 and values.dtype.kind == "i":
        absent |= values == UNLABELLED
    check_labels(
        what,
        values[~absent] if values.ndim == 1 else values,
        rows=len(missing) - int(missing.sum()) - int(absent.sum()),
        classes=classes.count,
        first=classes.first_label,
        fix=_MENDING,
    )
    values = values.astype(np.int64) - classes.first_label
    values[absent] = UNLABELLED
    return RowLabels(numbers=_placed(what, values, missing))


def labels_from_names(
    what: str, names: npt.NDArray[np.str_], *, classes: MemberClasses, missing: Mask | None = None
) -> RowLabels:
    """Labels as class numbers, from the names of rows that have a label; `missing` (n,) says which have none.

    Raises DataError for a name the members do not have, or another number of names than classes.
    """
    different, which = np.unique(names, return_inverse=True)
    place, about = _matched(what, in_order(different.tolist()), classes)
    numbers = np.array([place[name] for name in different.tolist()], np.int64)[which]
    return dataclasses.replace(about, numbers=numbers if missing is None else _placed(what, numbers, missing))


def _placed(what: str, known: npt.NDArray[np.int64], missing: Mask) -> npt.NDArray[np.int64]:
    """Labels of all rows, `UNLABELLED` where they are missing."""
    placed = np.full(len(missing), UNLABELLED, np.int64)
    placed[~missing] = known
    _check_any(what, placed != UNLABELLED)
    return placed


def _check_any(what: str, labelled: Mask) -> None:
    if not labelled.any():
        fix = "name another column with `label_column`, or take the labels out to record without them"
        raise DataError(what, got=f"{UNLABELLED}, NaN or null in every row", expected="labels", fix=fix)


def _matched(what: str, names: Sequence[str], classes: MemberClasses) -> tuple[dict[str, int], RowLabels]:
    """The class of each name, and everything about the labels but their numbers."""
    if classes.first_label:
        return _by_number(what, names, classes), RowLabels()
    if classes.class_map is not None:
        mapped = classes.class_map.for_names(what, names)
        expected = f"names such as {first_few(mapped.names)}"
        lacking = "that the class map does not have"
        place = _by_name(what, names, mapped.names, lacking=lacking, expected=expected, fix=mapped.advice)
        return place, RowLabels(by="map", class_names=classes.names or mapped.class_names)
    if classes.names is None or classes.by_order:
        return _by_order(what, names, classes)
    expected = f"the members' names, such as {first_few(classes.names)}"
    fix = "say which is which with `class_map`, or take the sorted names in order with `by_order`"
    place = _by_name(what, names, classes.names, lacking="that no member has", expected=expected, fix=fix)
    count = Counter(map(normal_form, classes.names))
    unclear = [name for name in names if count[normal_form(name)] > 1]
    if unclear:
        got = f"names that several classes of the members have: {first_few(unclear)}"
        raise DataError(what, got=got, expected="one class per name", fix="say which is which with `class_map`")
    return place, RowLabels(by="name", class_names=classes.names)


def _by_number(what: str, names: Sequence[str], classes: MemberClasses) -> dict[str, int]:
    if not all(name.isdecimal() for name in names):
        expected = "numbers, which `first_label` is for"
        raise DataError(what, got="class names", expected=expected, fix="leave it out")
    values = np.array([int(name) for name in names])
    check_labels(what, values, rows=len(names), classes=classes.count, first=classes.first_label, fix=_MENDING)
    return dict(zip(names, (values - classes.first_label).tolist(), strict=True))


def _by_name(
    what: str, names: Sequence[str], known: Sequence[str], *, lacking: str, expected: str, fix: str | None
) -> dict[str, int]:
    place = {normal_form(name): number for number, name in enumerate(known)}
    strange = [name for name in names if normal_form(name) not in place]
    if strange:
        got = f"{len(strange)} of {len(names)} classes {lacking}: {names_beside(strange, known)}"
        raise DataError(what, got=got, expected=expected, fix=fix)
    return {name: place[normal_form(name)] for name in names}


def _by_order(what: str, names: Sequence[str], classes: MemberClasses) -> tuple[dict[str, int], RowLabels]:
    if len(names) > classes.count or (len(names) != classes.count and not classes.by_order):
        got = f"{len(names)} classes ({first_few(names)}), and nothing that names the members' classes"
        fix = "say which is which with `class_map`, or take them for the first ones with `by_order`"
        raise DataError(what, got=got, expected=classes.count, fix=fix if len(names) <= classes.count else None)
    once: dict[str, str] = {}
    for name in names:
        other = once.setdefault(normal_form(name), name)
        if other is not name:
            got = f"{other!a} and {name!a}, which is the same name written in two ways"
            raise DataError(what, got=got, expected="every class once", fix="rename one of them")
    note = f"classes are taken in order: {names[0]} is 0, ..., {names[-1]} is {len(names) - 1}"
    if all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names):
        note += "; text order, so 10 comes before 2"
    class_names = classes.names or (tuple(names) if len(names) == classes.count else None)
    notes = (f"{note}; if the members have another order, say it with `class_map`",)
    return {name: number for number, name in enumerate(names)}, RowLabels(
        by="order", class_names=class_names, notes=notes
    )


def names_beside(strange: Sequence[str], known: Sequence[str]) -> str:
    """The first few strange names, each with the nearest known one if there is any.

    Two names that differ by characters that cannot be seen, or not told apart, are shown in quotes with these
    escaped.
    """
    # A key of several names stands for the first of them.
    keys = {_key(name): name for name in reversed(known)}
    return first_few([*(_beside(name, keys) for name in strange[:LISTED]), *strange[LISTED:]])


def _beside(name: str, keys: dict[str, str]) -> str:
    near = _nearest(name, keys)
    if near is None:
        return name if name.isprintable() else _escaped(name)
    edits = SequenceMatcher(None, name, near, autojunk=False).get_opcodes()
    differing = "".join(name[a:b] + near[c:d] for tag, a, b, c, d in edits if tag != "equal")
    if all(char.isascii() and char.isprintable() and char != " " for char in differing):
        return f"{name} (nearest: {near})"
    return f"{_escaped(name)} (nearest: {_escaped(near)})"


def _nearest(name: str, keys: dict[str, str]) -> str | None:
    key = _key(name)
    # Numbers tell names apart that are no misspellings of each other, such as n01440764 and n01443537.
    alike = [other for other in keys if _digits(other) == _digits(key)]
    close = [key] if key in keys else get_close_matches(key, alike, n=1, cutoff=_CUTOFF)
    return keys[close[0]] if close else None


def _key(name: str) -> str:
    """Letters and digits alone, without accents, case and width; the name itself where it has none."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", name).casefold())) or name


def _digits(key: str) -> str:
    return "".join(filter(str.isdecimal, key))


def _escaped(name: str) -> str:
    # An error is one line in which blanks beside each other become one.
    return ascii(name).replace("  ", r"\x20\x20")
