"""Raises in the middle of our own code, at a step that a test chooses."""

import linecache
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any


class InterruptedCallError(MemoryError):
    """The error that a test puts into the code."""


class Interruption:
    """Raises once, when that many lines of some modules have been run; threads started meanwhile count as well.

    Attributes:
        steps: lines run so far, those at which it cannot raise left out.
        at: the line at which it raised; None before.
    """

    def __init__(self, step: int, modules: tuple[ModuleType, ...], *, spared: tuple[str, ...] = ()) -> None:
        self._step, self._files = step, {module.__file__ for module in modules}
        self._spared = set(spared)
        self._lock = threading.Lock()
        self.steps = 0
        self.at: str | None = None

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in self._files or code.co_name in self._spared:
            return None
        if event == "line":
            # The end of a `with` block is a line event of its head, too early for its lock to be let go.
            line = linecache.getline(code.co_filename, frame.f_lineno).strip()
            with self._lock:
                self.steps += not line.startswith("with ")
                if self.at is None and not line.startswith("with ") and self.steps > self._step:
                    self.at = f"{code.co_name}: {line}"
                    raise InterruptedCallError(f"in {self.at}")
        return self.trace

    @contextmanager
    def active(self) -> Iterator[None]:
        before = sys.gettrace()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        try:
            yield
        finally:
            sys.settrace(before)
            threading.settrace(None)  # type: ignore[arg-type]
