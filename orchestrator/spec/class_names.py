"""Names of classes: how text files hold them, and when two names are the same.

Names are compared in Unicode's normal form C: a file system or an editor may store an accented letter as one
code point or as two, and nobody can see which.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def normal_form(name: str) -> str:
    """The name as it is compared, Unicode's NFC."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
    """The names sorted as they are compared, so that the form they are stored in does not change their order."""
    return sorted(names, key=lambda name: (normal_form(name), name))


def names_from_text(text: str) -> tuple[str, ...]:
    """The names of a text with one per line, in the order of the scores.

    Lines end as Triton's own reader has them, at a line feed: other characters that Python takes for line ends
    may be part of a name. A carriage return before it, blanks around a name and empty lines at the end are left
    off; an empty line between names stays, since the line number is the class.
    """
    names = [line.strip() for line in text.removeprefix("\ufeff").split("\n")]
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def first_unlike(one: Sequence[str], other: Sequence[str]) -> int | None:
    """The first class that two lists, of any lengths, call differently; None where they agree."""
    pairs = zip(one, other, strict=False)
    unlike = (number for number, (a, b) in enumerate(pairs) if normal_form(a) != normal_form(b))
    shorter = min(len(one), len(other))
    return next(unlike, None if len(one) == len(other) else shorter)


def first_misplaced(names: Sequence[str], known: Sequence[str]) -> int | None:
    """The first class that is called what `known` calls another one; other spellings are nobody's business."""
    keys = [normal_form(name) for name in known]
    anywhere = set(keys)
    pairs = zip(map(normal_form, names), keys, strict=False)
    return next((number for number, (said, name) in enumerate(pairs) if said != name and said in anywhere), None)
