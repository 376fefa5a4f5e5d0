"""`python -m orchestrator`, and what the `committee` script calls."""

import contextlib
import os
import sys
import threading
import time
from typing import NoReturn

from orchestrator.cli.app import run
from orchestrator.commandline import interrupt_on_signals

# How long a finished command waits for threads of its own.
THREADS_END_S = 2.0


def main() -> None:
    """Runs the command line of this process and exits with its code."""
    interrupt_on_signals()
    _end_process(run())


def _end_process(code: int) -> NoReturn:
    """Exits, also where a thread is in a call that never returns, for which Python would wait."""
    end = time.monotonic() + THREADS_END_S
    threads = [one for one in threading.enumerate() if one is not threading.current_thread() and not one.daemon]
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
