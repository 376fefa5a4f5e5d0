"""The report of a check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, or worth knowing.

    Args:
        model: name of the model, which is its folder's.
        field: the part concerned, e.g. "config.pbtxt" or "member small".
        text: got, expected and what to do, on one line.
    """

    model: str
    field: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of a check; truthy when there are no faults.

    Args:
        repository: the repository that was checked.
        checked: names of the models that were checked.
        faults: things that would make serving fail or answer wrongly.
        notes: things that cost time or deserve a look.
    """

    repository: Path
    checked: tuple[str, ...]
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]

    def __bool__(self) -> bool:
        """Whether the repository can be served as its plans say."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "repository": str(self.repository),
            "passed": bool(self),
            "checked": list(self.checked),
            "faults": [vars(fault) for fault in self.faults],
            "notes": [vars(note) for note in self.notes],
        }


@dataclass
class Findings:
    """Faults and notes gathered so far, each once."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)

    def fault(self, model: str, subject: str, text: object) -> None:
        """Adds a fault."""
        self._add(self.faults, Fault(model, subject, " ".join(str(text).split())))

    def note(self, model: str, subject: str, text: object) -> None:
        """Adds a note."""
        self._add(self.notes, Fault(model, subject, " ".join(str(text).split())))

    def each(self, model: str, texts: Mapping[str, str], *, fix: str | None = None) -> None:
        """Adds a fault per field of a description."""
        for name, text in texts.items():
            self.fault(model, name, text if fix is None else f"{text}; {fix}")

    @staticmethod
    def _add(found: list[Fault], fault: Fault) -> None:
        if fault not in found:
            found.append(fault)
