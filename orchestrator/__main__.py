"""`python -m orchestrator`, and what the `committee` script calls."""

from __future__ import annotations

from orchestrator.cli.app import run
from orchestrator.commandline import end_process, interrupt_on_signals


def main() -> None:
    """Runs the command line of this process and exits with its code."""
    interrupt_on_signals()
    end_process(run())


if __name__ == "__main__":
    main()
