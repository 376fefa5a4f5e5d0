"""The `committee` program, also `python -m orchestrator`: its commands, each imported when it is asked for."""

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from orchestrator import __version__
from orchestrator.commandline import EPILOG, Command, interrupt_on_signals, new_program, run_program

# How long a finished command waits for threads of its own.
THREADS_END_S = 2.0


# name -> what `committee --help` says of it. The modules are imported only when their command is asked for: the
# list is quick, and a missing optional package breaks no command but its own.
COMMANDS = {
    "build": "From your models and labelled rows to a certified cascade, in one go.",
    "serve": "Serve a model repository with the embedded Triton.",
    "infer": "Ask a served model about single rows, pictures or digits.",
    "probe": "Ask a served model whether it answers, as a health check.",
    "batch": "Push a file of stored rows through a served model.",
    "record": "Ask members about labelled rows once and keep what they said.",
    "time": "Measure how long members take, batch by batch, to plan in time.",
    "split": "Cut records in two: rows to plan with, rows to evaluate on.",
    "plan": "Choose members, order and thresholds from records.",
    "size": "Say how many servers a plan needs for a load.",
    "evaluate": "Replay a plan over records it has not seen.",
    "render": "Write the model repository that serves a plan.",
    "check": "List everything that is wrong with a model repository.",
    "demo": "Serve the digits cascade, or a cascade of texts, and put every route side by side.",
}


class LazyCommand(TyperCommand):
    """A command whose module is imported when it is run or asked for its help."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which then runs in place of this one."""
        name = str(self.name)
        module = importlib.import_module(f"orchestrator.cli.{name}")
        single = typer.Typer(add_completion=False)
        single.command(name, epilog=EPILOG, cls=Command)(getattr(module, name))
        real: Any = typer.main.get_command(single)
        return real.make_context(info_name, args, parent=parent, **extra)


def make_app() -> Any:
    """The command group."""
    text = "Ensembles and cascades of ordinary trained models on NVIDIA Triton."
    root = new_program("committee", text, completion=True)
    root.callback(help=text)(_options)
    # Without a command of its own typer would refuse to make a group.
    root.command("_", hidden=True)(lambda: None)
    group: Any = typer.main.get_command(root)
    group.commands = {name: LazyCommand(name, help=text) for name, text in COMMANDS.items()}
    return group


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"committee {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    del version


def run(arguments: Sequence[str] | None = None) -> int:
    """As `run_program`, of this one."""
    return run_program(make_app(), "committee", arguments)


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
