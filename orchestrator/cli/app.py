"""The `committee` program: finds the command, runs it, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from orchestrator import __version__
from orchestrator.errors import CommitteeError

# name -> what `committee --help` says of it. The modules are imported only when their command is asked for: the
# list is quick, and a missing optional package breaks no command but its own.
COMMANDS = {
    "build": "From your models and labelled rows to a certified cascade, in one go.",
    "serve": "Serve a model repository with the embedded Triton.",
    "infer": "Ask a served model about single rows, pictures or digits.",
    "batch": "Push a file of stored rows through a served model.",
    "record": "Ask members about labelled rows once and keep what they said.",
    "split": "Cut records in two: rows to plan with, rows to evaluate on.",
    "plan": "Choose members, order and thresholds from records.",
    "evaluate": "Replay a plan over records it has not seen.",
    "render": "Write the model repository that serves a plan.",
    "check": "List everything that is wrong with a model repository.",
    "demo": "Serve the digits cascade and put every route side by side.",
}
# top-level module -> the extra that brings it
EXTRAS = {
    "PIL": "demo",
    "matplotlib": "demo",
    "sklearn": "demo",
    "scipy": "plan",
    "pyarrow": "batch",
    "pytriton": "serve",
    "torch": "export",
}
# Both typer's own and click's exceptions, whichever the installed typer uses, have this base two steps up.
UsageProblem: Any = typer.BadParameter.__mro__[2]


class LazyCommand(TyperCommand):
    """A command whose module is imported when it is run or asked for its help."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which then runs in place of this one."""
        return self._real().make_context(info_name, args, parent=parent, **extra)

    def _real(self) -> Any:
        name = str(self.name)
        module = importlib.import_module(f"orchestrator.cli.{name}")
        single = typer.Typer(add_completion=False)
        single.command(name)(getattr(module, name))
        return typer.main.get_command(single)


def make_app() -> Any:
    """The command group."""
    root = typer.Typer(
        name="committee", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
    )
    root.callback(help="Ensembles and cascades of ordinary trained models on NVIDIA Triton.")(_options)
    # Without a command of its own typer would refuse to make a group.
    root.command("_", hidden=True)(_nothing)
    group: Any = typer.main.get_command(root)
    group.commands = {name: LazyCommand(name, help=text) for name, text in COMMANDS.items()}
    return group


def _nothing() -> None:
    pass


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
    """Runs one command line and returns its exit code; nothing is raised but with COMMITTEE_DEBUG=1.

    Args:
        arguments: without the program's name; None takes them from the process.
    """
    # gRPC's core otherwise tells users about every connection that ends.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    args = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: make_app()(args=args, prog_name="committee", standalone_mode=False))


def guarded(command: Callable[[], Any]) -> int:
    """Calls a command; errors become one line on stderr and an exit code."""
    try:
        code = command()
    except Exception as error:
        if os.environ.get("COMMITTEE_DEBUG") == "1":
            traceback.print_exc()
        return _code_of(error)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        return 130
    # typer hands an Exit back as the code it carries, and a finished command as whatever it returned.
    return code if isinstance(code, int) else 0


def _code_of(error: Exception) -> int:
    if isinstance(error, CommitteeError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, UsageProblem):
        return _usage(error)
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, ImportError) and not (error.name or "").startswith("orchestrator"):
        return _unusable(error)
    if isinstance(error, OSError) and error.filename is not None:
        # A full disk or a missing permission: the user's to mend, not ours.
        return _fail(f"{error.filename}: {error.strerror}", 1)
    path = _kept_traceback()
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return _fail(f"{what}; this is a fault of committee itself, its traceback is in {path}", 1)


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    text = error.format_message()
    if not text or "\n" in text:
        # A command without arguments is answered with its help, which rich has printed by now and click has not.
        if text:
            typer.echo(text, err=True)
        return int(error.exit_code)
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    return _fail(f"{text.rstrip('.')}{hint}", int(error.exit_code))


def _unusable(error: ImportError) -> int:
    if not isinstance(error, ModuleNotFoundError):
        # Installed, but it does not go with the other packages; its own words say with which.
        return _fail(f"a Python package cannot be used: {' '.join(str(error).split())}", 2)
    module = (error.name or str(error)).split(".")[0]
    extra = EXTRAS.get(module)
    install = f'pip install "committee[{extra}]"' if extra else f"pip install {module}"
    return _fail(f"this command needs the Python package {module}, which is not installed; {install}", 2)


def _kept_traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="committee-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


def _fail(text: str, code: int) -> int:
    typer.echo(f"error: {text}", err=True)
    return code
