"""Class names: reading them from text files, and comparing them.

Names are compared in Unicode's normal form C: a file system or an editor may store an accented letter as one
code point or as two, and both look alike.
"""

import unicodedata
from collections.abc import Iterable, Sequence


def normal_form(name: str) -> str:
    """The form in which names are compared, Unicode's NFC."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
    """The names sorted by normal form, so that the form in which they are stored does not change the order."""
    return sorted(names, key=lambda name: (normal_form(name), name))


def names_from_text(text: str) -> tuple[str, ...]:
    """The names of a text with one per line, in the order of the scores.

    Lines end at a line feed, as in Triton's own reader: other characters that Python takes for line ends may be
    part of a name. Carriage returns, blanks around a name and empty lines at the end are removed. An empty line
    between names stays, since the line number is the class.
    """
    names = [line.strip() for line in text.removeprefix("\ufeff").split("\n")]
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def first_unlike(one: Sequence[str], other: Sequence[str]) -> int | None:
    """Number of the first class that two lists of any lengths name differently; None where they agree."""
    pairs = zip(one, other, strict=False)
    unlike = (number for number, (a, b) in enumerate(pairs) if normal_form(a) != normal_form(b))
    shorter = min(len(one), len(other))
    return next(unlike, None if len(one) == len(other) else shorter)


def first_misplaced(names: Sequence[str], known: Sequence[str]) -> int | None:
    """Number of the first class that has the name of another class in `known`; unknown names do not count."""
    keys = [normal_form(name) for name in known]
    anywhere = set(keys)
    pairs = zip(map(normal_form, names), keys, strict=False)
    return next((number for number, (said, name) in enumerate(pairs) if said != name and said in anywhere), None)
