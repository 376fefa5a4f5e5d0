"""A child process that ends with this one, and takes what it has started along."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

# Program that asks the kernel to end it when this process ends, and then becomes the child. A preexec_fn would run
# Python between fork and exec, which can deadlock in a process with threads. Number 1 is PR_SET_PDEATHSIG, 15 is
# SIGTERM; the comparison of process ids covers a parent that ended before the call.
_LAUNCHER = (
    "import ctypes, os, sys; "
    "ctypes.CDLL(None).prctl(1, 15); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class Child:
    """A process in a session of its own, its output in a file.

    The session keeps the terminal's Ctrl-C away from it. The kernel ends the child when the thread that started it
    ends, not when the process does, so a thread that lives as long as the child starts it. That thread also ends
    what the child leaves running.

    It inherits no variables, and of open files those named. Stdout and stderr go to the log.

    Raises:
        OSError: the program or the log cannot be opened.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        inherited: Sequence[int] = (),
    ) -> None:
        self._exited = threading.Event()
        self._started = threading.Event()
        self._error: OSError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        args = (list(command), dict(environment), log_path, tuple(inherited))
        threading.Thread(target=self._keep, args=args, name="keeper", daemon=True).start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None, "set before __init__ returns"
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.returncode if self._process is not None and self._exited.is_set() else None

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once it has ended, False when the time passes first."""
        return self._exited.wait(timeout_s)

    def terminate(self) -> None:
        """Sends SIGTERM, unless it has ended."""
        if not self._exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and everything it has started, at once."""
        if not self._exited.is_set():
            _kill_group(self.pid)
            self._exited.wait()

    def _keep(
        self, command: list[str], environment: dict[str, str], log_path: Path, inherited: tuple[int, ...]
    ) -> None:
        try:
            with log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=inherited,
                )
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        # Until it is collected, a process that has ended keeps its id, so this is surely its own group.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        _kill_group(self._process.pid)
        self._process.wait()
        self._exited.set()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
