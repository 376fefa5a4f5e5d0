"""Collecting faults by field, so that one run names everything that is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from orchestrator.errors import SpecError

# A Triton model name becomes a folder and a metric label, so only characters safe in both pass.
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\Z")


class Faults:
    """Faults found so far in one description; `close` raises them all as one SpecError."""

    def __init__(self, subject: str, prefix: str = "") -> None:
        self.subject = subject
        self.prefix = prefix
        self.found: dict[str, str] = {}

    def add(self, field: str, text: str) -> None:
        """Keeps the first fault of a field: later ones usually follow from it."""
        self.found.setdefault(f"{self.prefix}{field}", text)

    def check(self, field: str, good: bool, text: str) -> None:
        """Adds the fault unless good."""
        if not good:
            self.add(field, text)

    def name(self, field: str, value: object) -> None:
        """A model name: letters, digits, _ . - and no path separators."""
        good = isinstance(value, str) and NAME.match(value) is not None
        self.check(field, good, f"got {value!r}, expected a model name of letters, digits, '_', '.', '-'")

    def text(self, field: str, value: object) -> None:
        """A non-empty string."""
        good = isinstance(value, str) and bool(value)
        self.check(field, good, f"got {value!r}, expected a non-empty string")

    def one_of(self, field: str, value: object, known: Iterable[str]) -> None:
        """One of the known words."""
        words = list(known)
        self.check(field, value in words, f"got {value!r}, expected one of {', '.join(words)}")

    def integer(self, field: str, value: object, *, low: int, high: int | None = None) -> None:
        """A whole number (bool is not one) in [low, high]."""
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        good = good and (high is None or value <= high)  # type: ignore[operator]
        upper = "" if high is None else f" and at most {high}"
        self.check(field, good, f"got {value!r}, expected a whole number of at least {low}{upper}")

    def positive(self, field: str, value: object) -> None:
        """A finite number above zero."""
        good = is_number(value) and math.isfinite(value) and value > 0  # type: ignore[arg-type,operator]
        self.check(field, good, f"got {value!r}, expected a finite number above 0")

    def close(self) -> None:
        """Raises SpecError when anything was found."""
        if self.found:
            raise SpecError(self.subject, self.found)


def is_number(value: object) -> bool:
    """True for int and float, not for bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
