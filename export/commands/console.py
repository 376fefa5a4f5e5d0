"""What the commands share: progress for people, and one line for a package that is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from orchestrator.errors import ExportError


@contextmanager
def progress_on(first: str) -> Iterator[Callable[[str], None]]:
    """A spinner with the time on stderr; the block gets a function that says what is being done."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    # In a file or a pipe a spinner leaves nothing but an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(first)
        yield lambda text: progress.update(task, description=text)


@contextmanager
def needs(what: str, fix: str = "run `make setup`, or pip install 'committee[export]'") -> Iterator[None]:
    """Turns a missing package of the block into one line.

    Args:
        what: the command, as a person would name it.
        fix: how to bring the package.

    Raises:
        ExportError: naming the package.
    """
    try:
        yield
    except ImportError as error:
        raise ExportError(what, got=f"no package {error.name}", expected="it installed", fix=fix) from error
