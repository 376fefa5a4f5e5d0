"""The models, files and steps of `committee build`. Every step is a command and a process of its own."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from orchestrator.commandline import TEXT_ERRORS
from orchestrator.errors import CommitteeError, DataError, InfeasibleError, RepositoryError, interrupted_from
from orchestrator.planner.goal import ENSEMBLE
from orchestrator.spec import manifest_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.validation import NAME

# Endings of rows in one file.
STORED = (".npz", ".npy", ".parquet")
# How long a child may take to end by itself: Ctrl-C in a terminal reaches it, too, SIGTERM only this process.
OWN_END_S = 5.0
# How long it may take after SIGTERM, since it first keeps what is finished.
ASKED_END_S = 60.0


@dataclass(frozen=True, kw_only=True)
class GivenModel:
    """One of the models given.

    Args:
        word: what `export member` is told, NAME=SOURCE or SOURCE; the name of a member that is there already.
        is_member: whether it lies in the repository already.
    """

    word: str
    is_member: bool


@dataclass(frozen=True, kw_only=True)
class BuildFiles:
    """Places of what the steps write.

    Args:
        repository: members and cascade.
        name: of the cascade.
        work: folder of records, plan and report.
    """

    repository: Path
    name: str
    work: Path

    @property
    def records(self) -> Path:
        """What every member says of every row."""
        return self.work / "records.npz"

    @property
    def plan(self) -> Path:
        """The cascade.json that is rendered."""
        return self.work / PLAN

    @property
    def report(self) -> Path:
        """Folder of the page about the plan."""
        return self.work / "report"


def models_from_words(words: list[str], repository: Path) -> list[GivenModel]:
    """The models as they were given.

    Raises:
        DataError: one that is none, or one alone.
    """
    if len(words) < 2:
        raise DataError("build", got="one model", expected="two or more: a cascade asks a cheap one first")
    models = [_model(word, repository) for word in words]
    if len(set(models)) < len(models):
        raise DataError("build", got="a model more than once", expected="different models")
    return models


def _model(text: str, repository: Path) -> GivenModel:
    name, equals, model = text.partition("=")
    if not equals or Path(text).exists():
        name, model = "", text
    elif NAME.match(name) is None:
        expected = "NAME=MODEL with letters, digits, '_', '.' and '-' in the name"
        raise DataError(f"model {text!r}", got=f"the name {name!r}", expected=expected)
    if (member := _member_of(model, repository)) is not None:
        if name:
            raise DataError(f"model {text}", got="another name for a member of the repository", expected=member)
        return GivenModel(word=member, is_member=True)
    source = _source(model, repository)
    return GivenModel(word=f"{name}={source}" if name else source, is_member=False)


def _member_of(model: str, repository: Path) -> str | None:
    """The member of the repository that a name or a folder means."""
    path = Path(model)
    folder = path if path.is_dir() and path.resolve().parent == repository.resolve() else repository / model
    is_name = NAME.match(folder.name) is not None and folder.parent.resolve() == repository.resolve()
    return folder.name if is_name and not path.is_file() and (folder / MANIFEST).is_file() else None


def _source(model: str, repository: Path) -> str:
    """The source that `export member` takes for a model; what exists on disk is a path."""
    path = Path(model)
    if model and path.is_file():
        return f"onnx:{os.path.normpath(model)}"
    if model and path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"model {model}", got="a folder without config.json", expected="one of transformers")
        return f"hf:{os.path.normpath(model)}"
    if not model or (":" not in model and (path.suffix or "/" in model)):
        raise DataError(
            f"model {model!r}",
            got="no such file",
            expected=f"an .onnx file, a folder, a source such as hf:ID, or a member of {repository}",
        )
    return model


def check_given(given: list[GivenModel], files: BuildFiles, *, data: str, export: list[str]) -> None:
    """Refuses, before any work, what a later step would refuse.

    Raises:
        DataError: naming the option.
    """
    if NAME.match(files.name) is None:
        raise DataError("--name", got=repr(files.name), expected="letters, digits, '_', '.' and '-'")
    taken = [one.word.partition("=")[0] for one in given if one.is_member or "=" in one.word]
    taken += [Path(one.word).stem.lower() for one in given if not one.is_member and "=" not in one.word]
    if files.name in taken:
        raise DataError("--name", got=f"{files.name}, a member", expected="another name for the cascade")
    if files.work.exists() and not files.work.is_dir():
        raise DataError("--work", got=f"{files.work}, a file", expected="a folder")
    path = Path(data)
    known = data.startswith("digits:") or (
        bool(data) and (path.is_dir() or (path.is_file() and path.suffix in STORED))
    )
    if not known:
        expected = f"digits:SPLIT, or a folder of pictures, {' or '.join(STORED)} that is there"
        raise DataError("--data", got=repr(data), expected=expected)
    if export and all(one.is_member for one in given):
        raise DataError("build", got=f"{export[0]} and no model to export", expected="models, or members alone")


def check_members(members: list[str], files: BuildFiles, *, data: str, reference: str | None) -> None:
    """Refuses, before rows are asked about, what only the exported members tell.

    Raises:
        DataError: naming the option.
    """
    if files.name in members:
        raise DataError("--name", got=f"{files.name}, a member", expected="another name for the cascade")
    if reference is not None and reference not in (*members, ENSEMBLE):
        raise DataError("--reference", got=reference, expected=f"one of {', '.join(members)}, or {ENSEMBLE}")
    blind = [name for name in members if manifest_from_path(files.repository / name / MANIFEST).preprocess is None]
    if blind and Path(data).is_dir() and next(Path(data).rglob("*.parquet"), None) is None:
        raise DataError(
            "build",
            got=f"pictures, and {', '.join(blind)} that take numbers",
            expected="members that take pictures",
            fix="give build --mean, --std and --resolution (0 and 1 where a model wants values of 0 to 1)",
        )


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """How a program of Committee is started.

    Args:
        argv: what starts it.
        shown: the same as a person types it in this folder.
        environment: variables it needs beside those of this process.
    """

    argv: tuple[str, ...]
    shown: str
    environment: dict[str, str] = field(default_factory=dict)


class StepFailedError(CommitteeError):
    """A step ended with an error, which its own process has printed."""

    def __init__(self, step: str, code: int) -> None:
        self.exit_code = code
        fix = "ask for something else" if code == InfeasibleError.exit_code else "mend it"
        super().__init__(
            f"build: step {step}",
            got=f"exit code {code}, for the reason above",
            fix=f"{fix} and build again, which does not repeat what is finished{_more_options(step)}",
        )


def _more_options(step: str) -> str:
    return "" if step == "check" else f"; options of that step go through --{step}-args"


def committee_program() -> Launcher:
    """`committee`, by this interpreter."""
    script = Path(sys.executable).with_name("committee")
    shown = _short(script) if script.is_file() else f"{_short(Path(sys.executable))} -m orchestrator"
    return Launcher(argv=(sys.executable, "-m", "orchestrator"), shown=shown)


def export_program() -> Launcher:
    """`python -m export`, by this interpreter; it lies in the checkout and not in the installed package.

    Raises:
        RepositoryError: there is no checkout.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "export" / "__main__.py").is_file():
        raise RepositoryError(
            "build",
            got=f"no package `export` in {checkout}",
            expected="a checkout of Committee, which has it",
            fix="run it from there, or name members that lie in the repository already",
        )
    shown = f"{_short(Path(sys.executable))} -m export"
    if Path.cwd() == checkout:
        return Launcher(argv=(sys.executable, "-m", "export"), shown=shown)
    paths = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    return Launcher(
        argv=(sys.executable, "-m", "export"),
        shown=f"PYTHONPATH={shlex.quote(str(checkout))} {shown}",
        environment={"PYTHONPATH": paths},
    )


def _short(path: Path) -> str:
    """The path relative to the current folder, where it lies below that."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


@dataclass
class Steps:
    """Runs steps one after another and keeps what they printed.

    Args:
        total: how many there will be.
        as_json: have every step print JSON, and keep it instead of showing it.
        done: a JSON object per finished step: step, command, seconds, result.
        running: the step that runs, or that failed.
    """

    total: int
    as_json: bool = False
    done: list[dict[str, Any]] = field(default_factory=list)
    running: str | None = None

    def run(self, step: str, what: str, program: Launcher, words: list[str], *, parsed: bool = False) -> Any:
        """Runs one step; progress and errors of its process go to stderr as they come.

        Args:
            step: its name.
            what: what it does, for people.
            program: that does it.
            words: the arguments.
            parsed: have it print JSON and return that.

        Returns:
            the JSON value it printed; None where it was to print text.

        Raises:
            StepFailedError: it ended with another code than 0.
            Interrupted: somebody ended this process; the step's has ended too.
        """
        self.running = step
        quiet = parsed or self.as_json
        words = [*words, "--json"] if quiet else words
        command = f"{program.shown} {shlex.join(words)}"
        typer.secho(f"[{len(self.done) + 1}/{self.total}] {step}: {what}", err=True, bold=True)
        typer.echo(f"$ {command}", err=True)
        start = time.monotonic()
        # The names of members are read from JSON, but people read its errors.
        environment = program.environment | ({} if self.as_json else {TEXT_ERRORS: "1"})
        try:
            code, printed = _run((*program.argv, *words), environment, captured=quiet)
        except KeyboardInterrupt as stop:
            text = f"build: stopped in step {step}; the same command goes on from there"
            raise interrupted_from(stop, text) from None
        if code:
            raise StepFailedError(step, code if code > 0 else 128 - code)
        result = json.loads(printed) if quiet else None
        seconds = round(time.monotonic() - start, 1)
        self.running = None
        self.done.append({"step": step, "command": command, "seconds": seconds, "result": result})
        return result


def _run(argv: tuple[str, ...], environment: dict[str, str], *, captured: bool) -> tuple[int, str]:
    """Exit code, negative for a signal, and what was printed to stdout."""
    sys.stdout.flush()
    child = subprocess.Popen(
        argv, env=os.environ | environment, stdout=subprocess.PIPE if captured else None, text=True
    )
    try:
        printed, _ = child.communicate()
    except BaseException:
        _end(child)
        raise
    return child.returncode, printed or ""


def _end(child: subprocess.Popen[str]) -> None:
    """Waits for a child to end by itself, then after SIGTERM, and kills it at last."""
    for wait_s, then in ((OWN_END_S, child.terminate), (ASKED_END_S, child.kill)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=wait_s)
            return
        then()
    child.communicate()
