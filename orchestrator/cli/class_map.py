"""A file that says what a data set calls the members' classes, such as ImageNet's n01440764 for a tench.

One line per class, in the order of the members' scores: the name in the data set and, after a blank, what the
class is. Kaggle's LOC_synset_mapping.txt has this form. A name with blanks in it has a tab behind it. The words
are compared with what the members call their classes: a line that speaks of another class than the one it stands
for means another order. Where members have no names, the words, or else the names, become those of the cascade.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError
from orchestrator.planner.records import named
from orchestrator.spec.class_names import first_misplaced, normal_form


@dataclass(frozen=True)
class ClassMap:
    """Classes in the order of the members' scores.

    Args:
        names: what the data set calls each.
        words: what each is, "" where the file does not say.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Each class in words, by its name in the data set where there are none."""
        return tuple(words or name for name, words in zip(self.names, self.words, strict=True))


def class_map_from_path(path: Path, *, count: int, known: Sequence[str] | None) -> ClassMap:
    """The class map that a file holds.

    Args:
        path: the file.
        count: classes of the members.
        known: what the members call them, None where nobody says.

    Raises:
        DataError: it cannot be read, has another number of classes, a line without a name, a name twice, or
            another order.
    """
    what = f"class map {path}"
    parts = [_parts(line) for line in _text(path, what).split("\n") if line.strip()]
    if len(parts) != count:
        raise DataError(
            what, got=f"{len(parts)} lines", expected=f"{count}, one per class of the members, in order"
        )
    names = [name for name, _ in parts]
    nameless = [words for name, words in parts if not name]
    if nameless:
        raise DataError(what, got=f"no name before {nameless[0]!r}", expected="a name, then a tab and the words")
    twice = [name for name, times in Counter(map(normal_form, names)).items() if times > 1]
    if twice:
        raise DataError(what, got=f"more than one line for {named(twice)}", expected="every name once")
    words = tuple(words for _, words in parts)
    _check_order(what, words, known or ())
    return ClassMap(tuple(names), words)


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
    """Refuses a line that says what the members say of another class."""
    number = first_misplaced(words, known)
    if number is not None:
        raise DataError(
            what,
            got=f"{words[number]!r} on line {number + 1}",
            expected=f"{known[number]!r}, which is what the members call class {number}",
            fix="bring the lines into the members' order",
        )
