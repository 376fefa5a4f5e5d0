"""Callback types for progress and their no-op defaults; what to say of a job that ends early."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from orchestrator.errors import CommitteeError, SpecError, interrupted_from

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


def rows_kept(done: int, total: int, folder: Path) -> str:
    """What to say of the rows that a folder keeps for the next run."""
    return f"{done} of {total} rows are kept in {folder}, the same command goes on from there"


@contextmanager
def saying_what_is_kept(kept: Callable[[], str]) -> Iterator[None]:
    """Adds to errors and interrupts in the block what `kept` then says; "" where nothing is kept."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise interrupted_from(stopped, f"stopped: {kept() or 'no row was settled yet'}") from None
    except SpecError:
        raise
    except CommitteeError as error:
        fix = "; ".join(filter(None, (error.fix, kept())))
        raise type(error)(error.what, got=error.got, expected=error.expected, fix=fix or None) from error
