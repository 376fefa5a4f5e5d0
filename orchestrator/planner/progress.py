"""How long work tells somebody that it gets on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Told how many steps are done.
Advance = Callable[[int], None]
# description, total -> a context that yields what to tell of finished steps.
Progress = Callable[[str, int], AbstractContextManager[Advance]]


def unheard(steps: int) -> None:
    """Steps nobody counts."""
    del steps


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """Progress nobody looks at."""
    del description, total
    yield unheard
