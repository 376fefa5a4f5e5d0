"""`committee serve` as users run it, a process of its own, and the processes of the server it keeps."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from orchestrator.errors import ServingError
from orchestrator.serving.control import RepositoryControl
from orchestrator.serving.machine import CONTROL_HEADER
from perf.harness.server_probe import ServerProcess, server_processes

_STARTUP_S = 120.0
_POLL_S = 0.05


class ServedProduct:
    """A repository served by `committee serve` on free ports, as a context manager; `folder` gets its two logs.

    Args:
        options: more words for its command line.

    Raises:
        ServingError: it ended, or was not ready in time.
    """

    def __init__(self, repository: Path, folder: Path, *, options: tuple[str, ...] = ()) -> None:
        self.repository = repository
        self.events, self.log = folder / "serve.txt", folder / "triton.txt"
        command = ["serve", "--repository", str(repository), "--json", "--log-path", str(self.log), *options]
        ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
        begun_s = time.monotonic()
        with self.events.open("ab") as events:
            self._serve = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *command, *ports],
                stdout=subprocess.PIPE,
                stderr=events,
                start_new_session=True,
            )
        ready = self._announced(begun_s + _STARTUP_S)
        self.start_s = time.monotonic() - begun_s
        self.grpc, self.http, self.metrics = (str(ready[name]) for name in ("grpc", "http", "metrics"))
        self.triton_version = str(ready["triton_version"])

    def __enter__(self) -> "ServedProduct":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def is_alive(self) -> bool:
        """Whether `committee serve` still runs."""
        return self._serve.poll() is None

    @property
    def server_pid(self) -> int | None:
        """Process id of Triton, another after a restart; None while there is none."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self._serve.pid).children()
            return next((one.pid for one in children if _name(one) == "tritonserver"), None)
        return None

    @property
    def processes(self) -> list[ServerProcess]:
        """Triton and every Python model's process; none while there is no server."""
        return [] if (pid := self.server_pid) is None else server_processes(pid)

    def stub(self, model: str) -> int:
        """Process id of a Python model's first instance.

        Raises:
            ServingError: there is none.
        """
        found = next((one.pid for one in self.processes if one.model == model), None)
        if found is None:
            raise ServingError(f"model {model}", got="no process of it")
        return found

    @property
    def control(self) -> RepositoryControl:
        """The server's repository API, with the key that users of this machine can read in the process list."""
        words = psutil.Process(self.server_pid).cmdline()
        key = next(word for word in words if CONTROL_HEADER in word).rsplit("=", 1)[1]
        host, port = self.http.rsplit(":", 1)
        return RepositoryControl(host=host, port=int(port), key=key)

    def is_ready(self, model: str | None = None) -> bool:
        """Whether the server says that a model is ready, or that it is itself."""
        path = f"http://{self.http}/v2/{'health' if model is None else f'models/{model}'}/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(path, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def scrape(self) -> str:
        """The text of the metrics endpoint."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def terminate(self) -> None:
        """Sends `committee serve` SIGTERM."""
        self._serve.send_signal(signal.SIGTERM)

    def ended_within(self, seconds: float) -> bool:
        """Whether `committee serve` ends within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._serve.wait(seconds)
        return not self.is_alive

    def kill(self) -> None:
        """Ends everything at once; the kernel ends Triton with `committee serve`."""
        pid = self.server_pid
        if self.is_alive:
            self._serve.terminate()
            if not self.ended_within(20):
                self._serve.kill()
        with contextlib.suppress(ProcessLookupError):
            if pid is not None:
                os.killpg(pid, signal.SIGKILL)
        self._serve.wait()
        if self._serve.stdout is not None:
            self._serve.stdout.close()

    def _announced(self, deadline_s: float) -> dict[str, Any]:
        stream = self._serve.stdout
        assert stream is not None
        while time.monotonic() < deadline_s and self.is_alive:
            if select.select([stream], [], [], _POLL_S)[0] and (line := stream.readline()):
                return dict(json.loads(line))
        self.kill()
        raise ServingError("committee serve", got=self.events.read_text(errors="replace")[-400:])


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return Path((process.cmdline() or [""])[0]).name
    return ""
