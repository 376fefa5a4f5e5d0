"""A file that says what a data set calls the members' classes, such as ImageNet's n01440764 for a tench.

One line per class, in the order of the members' scores: the name in the data set and, after a blank, what the
class is. Kaggle's LOC_synset_mapping.txt has this form. A name with blanks in it has a tab behind it, except where
no line has a tab and all names of the data set are whole lines. The words are compared with the members' class
names: where a line has the words of another class than the one whose place it has, the order is wrong. Where
members have no names, the words, or else the names, become those of the cascade.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError, first_few
from orchestrator.spec.class_names import first_misplaced, normal_form


@dataclass(frozen=True)
class ClassMap:
    """Classes in the order of the members' scores.

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
