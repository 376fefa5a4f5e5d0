"""Names that match no known one, for an error: each with the nearest known name, and look-alikes made visible."""

import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches

from orchestrator.errors import LISTED

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
