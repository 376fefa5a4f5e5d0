"""The commands that `committee build` gives, each as a process of its own, printed as a person would type it."""

from __future__ import annotations

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
from orchestrator.errors import CommitteeError, InfeasibleError, RepositoryError, interrupted_from

# A Ctrl-C of a terminal reaches the child too and it ends by itself; SIGTERM reaches this process alone.
OWN_END_S = 5.0
# After it was asked to end: what it has in hand is kept first.
ASKED_END_S = 60.0


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
    """The path from this folder, where it lies below it."""
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
            program: who does it.
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
    """Waits for a child that was told to end, tells it otherwise, and kills it in the end."""
    for wait_s, then in ((OWN_END_S, child.terminate), (ASKED_END_S, child.kill)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=wait_s)
            return
        then()
    child.communicate()
