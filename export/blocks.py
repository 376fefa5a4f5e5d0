"""Parts of a document that a command writes, between a line that names the command and `<!-- end -->`."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import DataError

END = "<!-- end -->"


def text_with_block(text: str, begin: str, block: str, *, subject: str) -> str:
    """The text with what stands between two marks replaced.

    Args:
        text: of the document.
        begin: first mark.
        block: new content, both marks included.
        subject: the document's name, for messages.

    Raises:
        DataError: the document has lost its marks.
    """
    head, found, rest = text.partition(begin)
    _, end, tail = rest.partition(END)
    if not found or not end:
        raise DataError(subject, got="no markers", expected=f"{begin} and {END}")
    return head + block + tail


def write_block(path: Path, begin: str, block: str) -> None:
    """Replaces a block of a document on disk; other parts of it are left alone.

    Raises:
        DataError: the document cannot be read or written, or has lost its marks.
    """
    try:
        text = path.read_text(encoding="utf-8")
        path.write_text(text_with_block(text, begin, block, subject=str(path)), encoding="utf-8")
    except (OSError, ValueError) as error:
        got = f"a file that cannot be used ({error})"
        raise DataError(str(path), got=got, expected=f"text with {begin} and {END}") from error
