"""`python -m orchestrator`, and what the `committee` script calls."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from orchestrator.cli.app import run


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Runs the command line of this process and exits with its code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # The same way out as Ctrl-C, so that nothing half-written stays behind whatever asks us to end.
        signal.signal(number, _interrupt)
    # A shell starts background jobs with Ctrl-C ignored; `committee serve &` should still end by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run())


if __name__ == "__main__":
    main()
