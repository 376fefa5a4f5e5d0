"""Which files of the library run while a row is answered or a plan is made, and how often control changes file."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tests.architecture.tree import ROOT

# It looks after rows that wait too long ten times a second, whatever a row does meanwhile.
CLOCK = "committee-clock"


@dataclass
class Trace:
    """Files in the order in which they first ran, and how many calls went from one file to another."""

    files: list[str] = field(default_factory=list)
    moves: int = 0

    def enter(self, path: str, caller: str | None) -> None:
        if path not in self.files:
            self.files.append(path)
        self.moves += caller != path


def place_of(frame: FrameType | None) -> str | None:
    """A frame's file below orchestrator/, or None; module bodies that run on import are no step of the work."""
    if frame is None or frame.f_code.co_name == "<module>":
        return None
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(ROOT / "orchestrator"):
        return None
    return path.relative_to(ROOT).as_posix()


@contextlib.contextmanager
def traced() -> Iterator[Trace]:
    """Notes every call in this thread and in threads that start meanwhile."""
    trace = Trace()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and threading.current_thread().name != CLOCK and (place := place_of(frame)) is not None:
            trace.enter(place, place_of(frame.f_back))

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield trace
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
