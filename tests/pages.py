"""Runs the commands of a documentation page as they stand."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENTRIES = {"python": "", "committee": "-m orchestrator "}


def blocks(text: str, language: str = "bash") -> list[str]:
    """The blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def write_programs(folder: Path) -> None:
    """Puts .venv/bin with `python` and `committee` into a folder, as a checkout has it after `make setup`."""
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    for name, words in ENTRIES.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n')
        (programs / name).chmod(0o755)


def on_free_ports(commands: list[str]) -> list[str]:
    """The commands with other ports than the page's."""
    text = "\n".join(commands)
    for port in ("8000", "8001", "8002"):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            text = text.replace(port, str(listener.getsockname()[1]))
    return text.splitlines()


def run_commands(folder: Path, commands: Sequence[str], *, timeout_s: float, path: str = "") -> str:
    """Runs lines of shell in a folder until one fails; gives what they and bash print.

    Servers among them end with the shell.
    """
    environment = {
        "PATH": f"{os.environ['PATH']}{path}",
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    log = folder / "log.txt"
    # Not a pipe: a server would hold it open after a command that failed.
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", "-c", "\n".join(commands)], cwd=folder, env=environment, start_new_session=True,
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        process.wait(timeout=timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    shown = log.read_text()
    sys.stdout.write(shown)
    assert process.returncode == 0, shown
    return shown
