"""Runs `committee` in this process and looks at what it printed."""

from collections.abc import Sequence

import pytest

from orchestrator.__main__ import run


def printed_by(words: Sequence[object], capsys: pytest.CaptureFixture[str], *, code: int = 0) -> str:
    """Runs a command line that ends with an exit code; gives stdout, or the one line on stderr where it failed."""
    capsys.readouterr()
    found = run([*map(str, words)])
    printed = capsys.readouterr()
    assert found == code, printed
    assert not code or printed.err.count("\n") == 1, printed.err
    return printed.err if code else printed.out
