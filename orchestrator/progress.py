"""Callback types for progress, and their no-op defaults."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Called with the number of steps that were finished since the last call.
Advance = Callable[[int], None]
# Called with a description and the number of steps; the context yields the `Advance` of these steps.
Progress = Callable[[str, int], AbstractContextManager[Advance]]


def no_advance(steps: int) -> None:
    """An `Advance` that does nothing."""
    del steps


@contextmanager
def no_progress(description: str, total: int) -> Iterator[Advance]:
    """A `Progress` that shows nothing."""
    del description, total
    yield no_advance
