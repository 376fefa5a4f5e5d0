"""What the three command lines share: exit codes, errors as one line or one JSON object, `-h`, signals."""

import contextlib
import errno
import json
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from orchestrator.errors import CommitteeError, Interrupted, SpecError
from orchestrator.files import disk_error_from

# docs/commands.md has the same table; a test holds the two together.
EXIT_CODES = {
    0: "done",
    1: "a check or a target failed, or the disk or the program itself",
    2: "a command line, file or value that cannot be used",
    3: "no plan does what was asked",
    4: "the embedded server cannot start, or ended",
    5: "a request to a server failed",
    6: "a probe found a server that is alive, but busy or draining",
    7: "done, but some rows have no answer",
    129: "SIGHUP",
    130: "Ctrl-C",
    141: "the output was closed",
    143: "SIGTERM",
}
EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
JSON_OPTION = "--json"
# Set in the environment, it keeps errors in words where --json is given.
TEXT_ERRORS = "COMMITTEE_TEXT_ERRORS"
# What the system answers where a program asks for nonsense; it names no file then.
_OWN_FAULTS = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL})
# extra -> the top-level modules that it brings
EXTRAS = {
    "demo": ("PIL", "matplotlib", "sklearn", "tokenizers"),
    "plan": ("scipy", "jinja2"),
    "batch": ("pyarrow",),
    "remote": ("fsspec",),
    "serve": ("pytriton",),
    "export": ("torch", "transformers", "onnxscript", "safetensors"),
    "tabular": ("skl2onnx", "onnxmltools", "lightgbm", "xgboost"),
    "perf": ("pandas", "psutil", "prometheus_client", "cpuinfo", "pynvml", "simpy"),
}
# Both typer's own and click's exceptions, whichever the installed typer uses, have this base two steps up.
UsageProblem: Any = typer.BadParameter.__mro__[2]


class Program(TyperGroup):
    """The commands of one program; each has `-h`, and the exit codes below its help."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.epilog = command.epilog or EPILOG
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Reads the words before the command, which may print a help."""
        with _past_typer():
            return super().make_context(info_name, args, parent=parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        with _past_typer():
            return super().invoke(ctx)


class Command(TyperCommand):
    """A command whose errors name its options where the library names `arguments`, in backticks."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except CommitteeError as error:
            raise error.reworded(lambda text: with_options(text, self)) from error


def with_options(text: str, command: Any = None) -> str:
    """A text of the library with options of the click command that runs in place of arguments of the same names.

    `max_cost` becomes --max-cost, `certify=False` becomes --no-certify, and `reference=big` --reference big. With
    another command's name before it, `record.class_map` becomes --class-map. Other words in backticks stay.
    """
    known = {} if command is None else {parameter.name: parameter for parameter in command.params}

    def spoken(match: re.Match[str]) -> str:
        other, name, value = match.groups()
        if other:
            return f"--{name.replace('_', '-')}" + (f" {value}" if value else "")
        if name not in known:
            return match.group(0)
        option = known[name]
        if option.param_type_name == "argument":
            return str(option.metavar or name.upper())
        if value == "False" and option.secondary_opts:
            return str(option.secondary_opts[0])
        word = next((word for word in option.opts if word.startswith("--")), option.opts[0])
        return word if value in (None, "True") else f"{word} {value}"

    return re.sub(r"`([a-z]\w*\.)?([a-z]\w*)(?:=([\w.]+))?`", spoken, text)


class HandsOn(Command):
    """A command that hands its words to another program, a whole word `-h` apart."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        # As an option, -h would be found inside words such as -Hauthorization:... too.
        settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--help"]}
        super().__init__(*args, **{**attributes, "context_settings": settings})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes `-h` for `--help`."""
        asked = _own_words(args)
        return super().parse_args(ctx, ["--help" if word == "-h" else word for word in asked] + args[len(asked) :])


class _PastTyperError(Exception):
    """Carries exceptions past typer, which would turn them into exit codes of its own and print nothing."""

    def __init__(self, carried: KeyboardInterrupt | BrokenPipeError) -> None:
        super().__init__(str(carried))
        self.carried = carried


@contextlib.contextmanager
def _past_typer() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError) as error:
        raise _PastTyperError(error) from error
    except SystemExit as error:
        # rich raises it where nobody reads its output any more.
        if isinstance(error.__context__, BrokenPipeError):
            raise _PastTyperError(error.__context__) from error
        raise


class _Typer(typer.Typer):
    def command(self, name: str | None = None, *, cls: Any = None, **settings: Any) -> Any:
        return super().command(name, cls=cls or Command, **settings)


def new_program(name: str, text: str, *, completion: bool = False) -> typer.Typer:
    """A program without commands; shells can complete one that is installed under its name (`completion`)."""
    return _Typer(
        name=name,
        cls=Program,
        help=text,
        epilog=EPILOG,
        add_completion=completion,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=HELP_OPTIONS,
    )


def run_program(program: Any, name: str, arguments: Sequence[str] | None = None) -> int:
    """Runs one command line of a program and returns its exit code; nothing is raised.

    Args:
        program: the group of commands.
        name: of the program, for usage lines.
        arguments: without the program's name; None takes them from the process.
    """
    # Otherwise gRPC's core prints a line about every connection that ends.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    args = list(sys.argv[1:] if arguments is None else arguments)
    as_json = JSON_OPTION in _own_words(args) and not os.environ.get(TEXT_ERRORS)
    return guarded(lambda: program(args=args, prog_name=name, standalone_mode=False), as_json=as_json)


def interrupt_on_signals() -> None:
    """Lets SIGTERM and SIGHUP end the process as Ctrl-C does, so that nothing half-written stays behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    # A shell starts background jobs with Ctrl-C ignored; `committee serve &` should still end by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(number: int, _frame: FrameType | None) -> None:
    """A signal handler that raises `Interrupted`."""
    raise Interrupted(number=number)


def guarded(command: Callable[[], Any], *, as_json: bool = False) -> int:
    """Calls a command; errors become one line on stderr, in JSON if so asked, and an exit code."""
    try:
        code = command()
    except (Exception, KeyboardInterrupt) as error:
        ours = error.carried if isinstance(error, _PastTyperError) else error
        if (stop := _interruption_behind(ours)) is not None:
            return _interrupted(stop, as_json=as_json)
        if os.environ.get("COMMITTEE_DEBUG") == "1":
            traceback.print_exc()
        return _code_of(ours, as_json=as_json)
    # typer hands an Exit back as the code it carries, and a finished command as whatever it returned.
    return code if isinstance(code, int) else 0


def _interruption_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The interruption behind an error: a package whose import is interrupted raises an error of its own."""
    before: BaseException | None = error
    # An error may be its own context.
    seen: list[BaseException] = []
    while before is not None and before not in seen and not isinstance(before, KeyboardInterrupt):
        seen.append(before)
        before = before.__cause__ or before.__context__
    return before if isinstance(before, KeyboardInterrupt) else None


def _own_words(args: Sequence[str]) -> list[str]:
    """The words before `--`, behind which nothing is an option."""
    return list(args[: args.index("--")] if "--" in args else args)


def _interrupted(stop: KeyboardInterrupt, *, as_json: bool) -> int:
    said = stop if isinstance(stop, Interrupted) else Interrupted()
    return _say(said.text, said.exit_code, kind="Interrupted", prefix="", as_json=as_json)


def _code_of(error: BaseException, *, as_json: bool) -> int:
    if isinstance(error, typer.Abort):
        return _interrupted(KeyboardInterrupt(), as_json=as_json)
    if isinstance(error, BrokenPipeError):
        # The reader of our output is gone. Python would raise once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, UsageProblem):
        return _usage(error, as_json=as_json)
    kind = type(error).__name__
    if isinstance(error, OSError):
        error = disk_error_from(error) or error
        kind = type(error).__name__
    if isinstance(error, CommitteeError):
        text, code = str(error), error.exit_code
    elif isinstance(error, ImportError) and not (error.name or "").startswith("orchestrator"):
        text, code = _unusable(error), 2
    elif isinstance(error, OSError) and error.strerror and error.errno not in _OWN_FAULTS:
        # A missing permission, or no more open files: the user's to mend, not ours.
        text, code = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror, 1
    else:
        what = " ".join(f"{kind}: {error}".split())
        text, code = f"{what}; this is a fault of committee itself, its traceback is {_kept_traceback(error)}", 1
    return _say(text, code, kind=kind, parts=_parts(error), as_json=as_json)


def _parts(error: BaseException) -> dict[str, Any]:
    """The parts of an error for its JSON object."""
    names = ("fix",) if isinstance(error, SpecError) else ("what", "got", "expected", "fix")
    values = {name: getattr(error, name) for name in names} if isinstance(error, CommitteeError) else {}
    found: dict[str, Any] = {name: " ".join(str(one).split()) for name, one in values.items() if one is not None}
    return found | {"faults": dict(error.faults)} if isinstance(error, SpecError) else found


def _usage(error: Any, *, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    text = error.format_message()
    if not text or "\n" in text:
        # A command without arguments is answered with its help, which rich has printed by now and click has not.
        if text:
            typer.echo(text, err=True)
        return int(error.exit_code)
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    return _say(f"{text.rstrip('.')}{hint}", int(error.exit_code), kind="UsageError", as_json=as_json)


def _unusable(error: ImportError) -> str:
    if not isinstance(error, ModuleNotFoundError):
        # Installed, but not compatible with another package, which the error names.
        return f"a Python package cannot be used: {' '.join(str(error).split())}"
    module = (error.name or str(error)).split(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    install = f'pip install "committee[{extra}]"' if extra else f"pip install {module}"
    return f"this command needs the Python package {module}, which is not installed; {install}"


def _kept_traceback(error: BaseException) -> str:
    try:
        # Names of files in it may be no text.
        with tempfile.NamedTemporaryFile(
            "w", prefix="committee-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        # A full disk takes no file, and the traceback is all there is.
        traceback.print_exception(error)
        return "above"
    return f"in {file.name}"


def _say(
    text: str, code: int, *, kind: str, parts: dict[str, Any] | None = None, prefix: str = "error: ", as_json: bool
) -> int:
    """Prints the one line of an error, the last on stderr, and returns the code."""
    if as_json:
        document = {"error": {"type": kind, "exit_code": code, "message": text, **(parts or {})}}
        # ASCII escapes: file names may hold bytes that are no text, which no stream takes.
        typer.echo(json.dumps(document), err=True)
    else:
        typer.echo(f"{prefix}{text}", err=True)
    return code
