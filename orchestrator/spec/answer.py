"""What a cascade answers with: its output columns, status bits and names of classes.

Names are compared in Unicode's normal form C: a file system or an editor may store an accented letter as one
code point or as two, and both look alike.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# Bits of the status column.
DEGRADED = 1  # a member failed; the others answered
DEADLINE = 2  # the deadline passed; the best answer so far
ABSTAINED = 4  # below the plan's abstain window
CAPPED = 8  # answered at the request's `max_stage`, below the threshold
GEARED = 16  # judged by a cheaper gear
# bit -> its name in metrics and for people
STATUS_BITS = {
    DEGRADED: "degraded", DEADLINE: "deadline", ABSTAINED: "abstained", CAPPED: "capped", GEARED: "geared"
}  # fmt: skip


class AnswerColumn(NamedTuple):
    """An output of a cascade."""

    triton_dtype: str  # "FP32", "INT64" or "INT32"
    numpy_dtype: type[np.generic]  # the same for numpy
    is_vector: bool = False  # k values per row, one per class, instead of one

    def width(self, classes: int) -> int:
        """Values per row where there are k classes."""
        return classes if self.is_vector else 1


# By name, in the order they are served.
ANSWER_COLUMNS = {
    "probabilities": AnswerColumn("FP32", np.float32, is_vector=True),
    "label": AnswerColumn("INT64", np.int64),
    "confidence": AnswerColumn("FP32", np.float32),
    "exit_stage": AnswerColumn("INT32", np.int32),
    "cost": AnswerColumn("FP32", np.float32),
    "status": AnswerColumn("INT32", np.int32),
}


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
