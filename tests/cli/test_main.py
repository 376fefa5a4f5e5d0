import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator import __version__
from orchestrator.__main__ import COMMANDS, run
from orchestrator.cli.console import print_json, progress, stdout_console

ROOT = Path(__file__).parents[2]


def committee(*arguments: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own; `code` runs before it."""
    start = f"import sys; sys.argv[0] = 'committee'\n{code}\nfrom orchestrator.__main__ import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", start, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=60,
    )


def one_line(text: str) -> str:
    """The only line of a text."""
    assert text.count("\n") == 1, text
    return text.strip()


def test_help_lists_every_command_and_imports_none_of_them() -> None:
    code = (
        "import atexit, sys\n"
        "heavy = ('numpy', 'tritonclient', 'onnxruntime', 'orchestrator.cli.serve', 'orchestrator.cli.infer')\n"
        "atexit.register(lambda: print('loaded', [name for name in heavy if name in sys.modules]))"
    )
    start = time.monotonic()
    result = committee("--help", code=code)
    assert time.monotonic() - start < 5
    assert result.returncode == 0
    for name in COMMANDS:
        assert name in result.stdout
    assert "loaded []" in result.stdout


def test_the_module_and_its_version_run(capsys: pytest.CaptureFixture[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "orchestrator", "--version"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (result.returncode, result.stdout.strip()) == (0, f"committee {__version__}")
    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: committee {name}" in out
    assert f"Example: committee {name}" in " ".join(out.split())


def test_no_arguments_are_answered_with_the_help_and_2() -> None:
    result = committee()
    assert result.returncode == 2
    assert "Usage: committee" in result.stdout + result.stderr
    assert "error:" not in result.stderr


def test_a_missing_package_breaks_only_the_command_that_needs_it(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'pyarrow':\n"
        "            raise ModuleNotFoundError('no', name=name)\n"
        "sys.meta_path.insert(0, Without())"
    )
    out = str(tmp_path / "out.parquet")
    result = committee("batch", "--model", "m", "in.npz", out, "--url", "127.0.0.1:9", code=code)
    assert result.returncode == 2
    assert 'needs the Python package pyarrow, which is not installed; pip install "committee[batch]"' in one_line(
        result.stderr
    )
    other = committee("batch", "--model", "m", "in.npz", str(tmp_path / "out.npz"), "--url", "nowhere", code=code)
    assert "server address" in other.stderr
    assert committee("infer", "--help", code=code).returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["infer", "--help"], ["check"], ["check", "--json"]])
def test_a_reader_that_leaves_early_is_no_error_but_has_its_exit_code(words: list[str]) -> None:
    pipe = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert pipe.stdout is not None
    pipe.stdout.close()
    assert pipe.stderr is not None
    assert pipe.stderr.read() == b""
    assert pipe.wait(30) == 141


def test_json_is_one_document_of_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    value = {
        "array": np.array([[1, 2]], np.int32),
        "scalar": np.float32(0.5),
        "nan": float("nan"),
        "inf": np.float32(np.inf),
        "nested": ({"flag": np.bool_(True)}, "text", None),
    }
    print_json(value)
    assert json.loads(capsys.readouterr().out) == {
        "array": [[1, 2]],
        "scalar": 0.5,
        "nan": None,
        "inf": None,
        "nested": [{"flag": True}, "text", None],
    }


def test_progress_says_nothing_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_whole_tables(capsys: pytest.CaptureFixture[str]) -> None:
    stdout_console().print("x" * 150)
    assert capsys.readouterr().out == "x" * 150 + "\n"
