"""What the commands share: progress, an error for a missing package, blocks of documents."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from orchestrator.commandline import EXTRAS
from orchestrator.errors import DataError, ExportError

T = TypeVar("T", int, float)
# Where commands look for members unless told otherwise.
REPOSITORY = Path("model_repository")


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
def needs(what: str) -> Iterator[None]:
    """Turns an ImportError inside the block into one line, an ExportError that names the package."""
    try:
        yield
    except ImportError as error:
        module = str(error.name).partition(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if module in modules), "export")
        fix = f"run `make setup`, or pip install 'committee[{extra}]'"
        raise ExportError(what, got=f"no package {error.name}", expected="it installed", fix=fix) from error


def numbers_from_text(option: str, text: str, kind: Callable[[str], T]) -> list[T]:
    """The numbers of an option that takes several; ExportError for anything else."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ExportError(option, got=text, expected="numbers with commas between them") from error


END = "<!-- end -->"


def text_with_block(text: str, begin: str, block: str, *, subject: str) -> str:
    """The document with what stands between two marks replaced by a block, which has both; DataError without."""
    head, found, rest = text.partition(begin)
    _, end, tail = rest.partition(END)
    if not found or not end:
        raise DataError(subject, got="no markers", expected=f"{begin} and {END}")
    return head + block + tail


def write_block(path: Path, begin: str, block: str) -> None:
    """Replaces a block of a document on disk; DataError where that cannot be, or the marks are lost."""
    try:
        text = path.read_text(encoding="utf-8")
        path.write_text(text_with_block(text, begin, block, subject=str(path)), encoding="utf-8")
    except (OSError, ValueError) as error:
        got = f"a file that cannot be used ({error})"
        raise DataError(str(path), got=got, expected=f"text with {begin} and {END}") from error
