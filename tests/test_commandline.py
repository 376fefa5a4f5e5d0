"""What the three command lines have in common: exit codes, errors as a line or as JSON, `-h`, completion."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from orchestrator import commandline, errors
from orchestrator.__main__ import make_app
from orchestrator.commandline import EXIT_CODES, guarded, run_program
from orchestrator.errors import (
    CommitteeError,
    DataError,
    InfeasibleError,
    Interrupted,
    SpecError,
    UnavailableError,
    interrupted_from,
)

ROOT = Path(__file__).parents[1]
NAMES = {"committee": "committee", "export": "python -m export", "perf": "python -m perf"}


def program(name: str) -> Any:
    """The group of commands of one of the three."""
    if name == "committee":
        return make_app()
    module = __import__(f"{name}.__main__", fromlist=["app"])
    return typer.main.get_command(module.app)


def every_command() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        for command in program(name).commands:
            yield name, command


def asked(name: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_program(program(name), NAMES[name], arguments)
    return code, out.getvalue(), err.getvalue()


def error_of(text: str) -> dict[str, Any]:
    """The error that the last line of stderr tells."""
    document = json.loads(text.splitlines()[-1])
    assert set(document) == {"error"}
    found: dict[str, Any] = document["error"]
    assert {"type", "exit_code", "message"} <= set(found)
    return found


@pytest.mark.parametrize(("name", "command"), [*((name, "") for name in NAMES), *every_command()])
def test_a_short_h_gives_the_help_with_the_exit_codes(name: str, command: str) -> None:
    code, out, _ = asked(name, *filter(None, [command]), "-h")
    assert code == 0
    words = " ".join(out.split())
    assert f"Usage: {NAMES[name]} {command}".strip() in words
    for number, meaning in EXIT_CODES.items():
        assert f"{number} {meaning}" in words
    assert asked(name, *filter(None, [command]), "--help")[1] == out


@pytest.mark.parametrize("command", ["analyzer", "tritonserver"])
def test_letters_of_another_programs_options_do_not_ask_for_help(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "program"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; import perf.load.analyzer as c; from perf import __main__ as m\n"
        f"c.analyzer_program = c.server_program = lambda *_: Path({str(script)!r})\n"
        "c.find_analyzer = c.machine_here = lambda: None\n"
        "import typer; from orchestrator.commandline import run_program\n"
        "sys.exit(run_program(typer.main.get_command(m.app), 'perf'))"
    )
    words = ["-Hauthorization: h", "-uhost", "--json", "-p", "2000", "--", "-h"]
    done = subprocess.run([sys.executable, "-c", code, command, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [word for word in words if word != "--"]


def test_every_error_of_ours_has_a_documented_exit_code() -> None:
    def below(kind: type[CommitteeError]) -> Iterator[type[CommitteeError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    assert {kind.exit_code for kind in below(errors.CommitteeError)} <= set(EXIT_CODES)


def test_the_documented_exit_codes_are_those_of_the_help() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]*?) \|", text, re.M)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "says"),
    [
        ("committee", ["check", "--repository", "nowhere"], "RepositoryError", "nowhere"),
        ("committee", ["infer", "--modle", "x"], "UsageError", "No such option: --modle"),
        ("committee", ["infer", "digit:1"], "UsageError", "Missing option '--model'"),
        ("committee", ["plan"], "UsageError", "Missing argument"),
        ("committee", ["batch", "a.npy", "b.npz", "-m", "m", "--in-flight", "many"], "UsageError", "--in-flight"),
        ("committee", ["evaluate", "no.json", "no.npz"], "SpecError", "no.json"),
        ("committee", ["batch", "a.npy"], "UsageError", "see `committee batch --help`"),
        ("committee", ["nope"], "UsageError", "No such command 'nope'; see `committee --help`"),
        ("export", ["show", "nobody"], "ExportError", "member nobody"),
        ("export", ["cost", "nothing.onnx", "--nope"], "UsageError", "--nope"),
        ("perf", ["live", "--url", "nowhere"], "InputError", "nowhere"),
        ("perf", ["inputs"], "UsageError", "Missing option"),
        ("perf", ["overload", "--batch", "0"], "UsageError", "--batch"),
    ],
)
def test_with_json_an_error_is_one_object_with_the_same_words_and_code(
    name: str, arguments: list[str], kind: str, says: str
) -> None:
    plain_code, _, plain = asked(name, *arguments)
    code, out, err = asked(name, *arguments, "--json")
    found = error_of(err)
    assert code == plain_code == found["exit_code"] == 2
    assert err.count("\n") == 1
    assert out == ""
    assert plain == f"error: {found['message']}\n"
    assert found["type"] == kind
    assert says in found["message"]


def test_behind_two_dashes_json_is_no_option() -> None:
    assert asked("committee", "plan", "--", "--json")[2].startswith("error: ")


def raising(error: BaseException) -> Any:
    def command(*_words: object, **_options: object) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SpecError("plan", {"a": "wrong", "b": "missing"}), 2, "plan: a: wrong; b: missing"),
        (CommitteeError("x", got="two\nlines"), 2, "x: got two lines"),
        (InfeasibleError("plan"), 3, "plan"),
        (UnavailableError("model m"), 5, "model m"),
        (OSError(28, "No space left", "a.npz"), 1, "no space left on a.npz; make room there, or write elsewhere"),
        (OSError(28, "No space left"), 1, "no space left on the output; make room there, or write elsewhere"),
        (
            OSError(5, "Input/output error", "a.npz"),
            1,
            "a.npz: got Input/output error, expected a disk that can be used; mend it, or use another",
        ),
        (PermissionError(13, "Permission denied", "a.npz"), 1, "a.npz: Permission denied"),
        (OSError(24, "Too many open files"), 1, "Too many open files"),
        (ImportError("a needs b 2"), 2, "a Python package cannot be used: a needs b 2"),
    ],
)
def test_an_error_is_one_line_with_its_code(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == code
    assert capsys.readouterr().err == f"error: {said}\n"


def test_an_unexpected_error_is_one_line_and_its_traceback_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(ZeroDivisionError("by\nzero"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: by zero" in line
    kept = Path(line.rsplit(" ", 1)[1])
    assert "Traceback" in kept.read_text()
    kept.unlink()


def test_a_fault_of_our_own_is_shown_where_no_disk_takes_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.NamedTemporaryFile", raising(OSError(28, "No space left on device")))
    assert guarded(raising(OSError(9, "Bad file descriptor"))) == 1
    *traceback, line = capsys.readouterr().err.splitlines()
    assert "fault of committee itself, its traceback is above" in line
    assert "Traceback" in traceback[0]
    assert "No space left" not in "".join(traceback)


def test_debugging_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMITTEE_DEBUG", "1")
    assert guarded(raising(UnavailableError("model m"))) == 5
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: model m\n")


def test_a_commands_own_exit_code_comes_through() -> None:
    app = typer.Typer()

    @app.command()
    def leave() -> None:
        raise typer.Exit(7)

    assert guarded(lambda: app([], standalone_mode=False)) == 7
    assert guarded(lambda: None) == 0


def test_the_parts_of_an_error_are_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        guarded(raising(UnavailableError("model m", got="two\nlines", expected=3, fix="wait")), as_json=True) == 5
    )
    found = error_of(capsys.readouterr().err)
    assert (found["what"], found["got"], found["expected"], found["fix"]) == ("model m", "two lines", "3", "wait")
    assert guarded(raising(SpecError("plan", {"a": "wrong", "b": "missing"})), as_json=True) == 2
    assert error_of(capsys.readouterr().err)["faults"] == {"a": "wrong", "b": "missing"}
    assert guarded(raising(InfeasibleError("plan")), as_json=True) == 3
    assert set(error_of(capsys.readouterr().err)) == {"type", "exit_code", "message", "what"}
    assert guarded(raising(ModuleNotFoundError("no", name="pyarrow")), as_json=True) == 2
    assert "pyarrow" in error_of(capsys.readouterr().err)["message"]
    assert guarded(raising(DeprecationWarning("name \udcff")), as_json=True) == 1
    found = error_of(capsys.readouterr().err)
    assert found["type"] == "DeprecationWarning"
    Path(found["message"].rsplit(" ", 1)[1]).unlink()
    stopped = interrupted_from(Interrupted(number=signal.SIGTERM), "stopped: 3 of 9 rows are kept")
    assert guarded(raising(stopped), as_json=True) == 143
    found = error_of(capsys.readouterr().err)
    assert (found["type"], found["message"]) == ("Interrupted", "stopped: 3 of 9 rows are kept")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_signal_is_128_and_its_number(number: signal.Signals, code: int, as_json: bool) -> None:
    assert code in EXIT_CODES
    start = (
        "import sys, time, typer\n"
        "from orchestrator.commandline import interrupt_on_signals, new_program, run_program\n"
        "app = new_program('x', 'x')\n"
        "@app.command()\n"
        "def one(json: bool = False) -> None:\n"
        "    print('ready', flush=True); time.sleep(30)\n"
        "@app.command()\n"
        "def two() -> None: pass\n"
        "interrupt_on_signals()\n"
        "sys.exit(run_program(typer.main.get_command(app), 'x'))"
    )
    words = ["one", *(["--json"] if as_json else [])]
    with subprocess.Popen(
        [sys.executable, "-c", start, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert (error_of(err)["message"] if as_json else err.strip()) == "interrupted"


def completed(*words: str) -> list[str]:
    """What bash would be offered behind these words, by way of the script that it sources."""
    script = shell("_COMMITTEE_COMPLETE=source_bash committee")
    # The script's function is called as bash calls it on a tab.
    function = re.search(r"complete .*-F (\w+) committee", script)
    assert function is not None
    typed = " ".join(f"'{word}'" for word in ("committee", *words))
    call = f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; {function[1]} committee"
    return shell(f"{script}\n{call}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"").split()


def shell(text: str) -> str:
    """Output of a bash in which `committee` is the program of this checkout."""
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


def test_a_shell_completes_commands_and_options_of_committee() -> None:
    assert set(completed("re")) == {"record", "render"}
    assert set(completed("evaluate", "--ref")) == {"--reference"}
    assert "--join" in completed("record", "--")


def test_completion_is_offered_in_the_help_of_committee_alone() -> None:
    assert "--install-completion" in asked("committee", "-h")[1]
    for name in ("export", "perf"):
        assert "completion" not in asked(name, "-h")[1]


def test_the_help_of_committee_stays_quick() -> None:
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "orchestrator", "-h"], capture_output=True, cwd=ROOT, check=True)
    assert time.monotonic() - start < 5
    assert commandline.EPILOG.startswith("Exit codes: 0 done")


def test_errors_call_arguments_of_the_library_by_the_options_of_the_command() -> None:
    app = commandline.new_program("tool", "A tool.")

    @app.command("run")
    def run(
        rows: Path, max_cost: float = 1.0, certify: Annotated[bool, typer.Option("--certify/--no-certify")] = True
    ) -> None:
        if certify:
            raise DataError("`rows`", got="`max_cost`", expected="`certify=False`", fix="`max_cost=2` or `other`")
        raise SpecError("plan", {"max_cost": "got 1 without `certify`", "x": "`y`"}, of_arguments=True)

    app.command("other")(lambda: None)
    program = typer.main.get_command(app)
    with pytest.raises(DataError, match=r"^ROWS: got --max-cost, expected --no-certify; --max-cost 2 or `other`$"):
        program(["run", "a"], standalone_mode=False)
    with pytest.raises(SpecError) as caught:
        program(["run", "a", "--no-certify"], standalone_mode=False)
    assert caught.value.faults == {"--max-cost": "got 1 without --certify", "x": "`y`"}
    assert str(caught.value) == "plan: --max-cost: got 1 without --certify; x: `y`"
    assert commandline.with_options("`record.first_label=1` or `max_cost`") == "--first-label 1 or `max_cost`"
