"""The processes that Triton runs Python models in: which there are, and which have died.

Triton 24.10 does not start a dead one again, says that its model is ready, and collects the process only when the
model is unloaded. Until then it is a zombie, which tells a process that died from one that Triton has ended.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.probe import STUB
from orchestrator.serving.shared_memory import PREFIX

_PROC = Path("/proc")
_END_S = 5.0  # longest wait for a killed process to be gone
_ENDED = ("Z", "X")  # states of processes and threads that have ended
_NAME_BYTES = 15  # that the kernel keeps of a process's name


@dataclass(frozen=True, kw_only=True)
class Stub:
    """One process of a Python model; `instance` is its name in Triton, `shm` that of its shared memory.

    These and `version` are empty where it died before anybody could look at it.
    """

    pid: int
    model: str
    instance: str
    shm: str
    version: int = 0  # of the model


def stub_from_command(pid: int, words: list[str]) -> Stub | None:
    """The process with this command line, None where it is no Python model's."""
    if len(words) < 3 or Path(words[0]).name != STUB:
        return None
    # By its file, MODEL/VERSION/model.py, because people may name instances as they like.
    version = next((folder for folder in Path(words[1]).parents if folder.name.isdigit()), None)
    if version is None:
        return None
    model, number = version.parent.name, int(version.name)
    return Stub(pid=pid, model=model, instance=words[-2], shm=words[2], version=number)


def stubs_of(server: int) -> list[Stub]:
    """The Python models' processes of the server with this process id; zombies have no command line any more."""
    found: list[Stub] = []
    for pid in _children_of(server):
        with contextlib.suppress(OSError):
            words = (_PROC / str(pid) / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
            found += filter(None, [stub_from_command(pid, words)])
    return found


def end_orphans() -> None:
    """Ends this user's Python models' processes whose embedded server was killed; they would keep its memory."""
    orphans = [int(path.name) for path in _PROC.glob("[0-9]*") if _is_orphan(path)]
    for pid in orphans:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    # Their lock is free when the last thread has ended; the command line is gone before that.
    until_s = time.monotonic() + _END_S
    while any(map(_has_threads, orphans)) and time.monotonic() < until_s:
        time.sleep(0.01)


def _has_threads(pid: int) -> bool:
    """Whether a thread of a process may still have its files open."""
    for thread in _PROC.glob(f"{pid}/task/[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            if thread.read_text(errors="replace").rpartition(") ")[2].split()[0] not in _ENDED:
                return True
    return False


def _is_orphan(process: Path) -> bool:
    try:
        if process.stat().st_uid != os.getuid():
            return False
        words = (process / "cmdline").read_text(errors="replace").split("\0")
        stub = stub_from_command(int(process.name), words[:-1])
        if stub is None or not stub.shm.startswith(PREFIX):
            return False
        parent = int((process / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
        # Triton's command line has the prefix as well. Its parent may be one in a container that is not seen.
        return parent != 0 and not _names(_PROC / str(parent), stub.shm)
    except (OSError, ValueError, IndexError):
        return False


def _names(process: Path, shm: str) -> bool:
    """Whether a process is the Triton that memory of this name belongs to."""
    words = (process / "cmdline").read_text(errors="replace").split("\0")
    prefixes = (word.rpartition("=")[2] for word in words if f"={PREFIX}" in word)
    return any(shm.startswith(prefix) for prefix in prefixes)


def _children_of(server: int) -> list[int]:
    found: list[int] = []
    # Children are listed by the thread that started them.
    for path in _PROC.glob(f"{server}/task/*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def _is_nameless(pid: int) -> bool:
    """Whether it was a Python model's process, by the little that is left of one that has died."""
    try:
        name = (_PROC / str(pid) / "comm").read_text().strip()
        return name == STUB[:_NAME_BYTES] and not (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


class DeadStubs:
    """Finds the Python models' processes of one server that have died; `look` is called several times a second."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._known: dict[int, Stub] = {}
        self._zombies: set[int] = set()
        self._told: set[int] = set()  # zombies that were named

    @property
    def pids(self) -> frozenset[int]:
        """Process ids of those that were alive at the last look."""
        return frozenset(self._known)

    def has_successor(self, stub: Stub) -> bool:
        """Whether a younger process of the same instance is alive: its model was loaded anew in its place."""
        same = (stub.model, stub.instance, stub.version)
        return any((one.model, one.instance, one.version) == same for one in self._known.values())

    def note(self) -> None:
        """Takes down which processes there are: a dead one does not tell its model."""
        self._known |= {stub.pid: stub for stub in stubs_of(self._server)}
        children = _children_of(self._server)
        self._told.intersection_update(children)
        for pid in children:
            if pid not in self._known and pid not in self._told and _is_nameless(pid):
                self._known[pid] = Stub(pid=pid, model="", instance="", shm="")

    def look(self) -> list[tuple[Stub, str]]:
        """Processes that have died since the last look, with how; each is named once."""
        self.note()
        states = {pid: _state(pid, self._server) for pid in self._known}
        # One that Triton ends exits by itself and is a zombie for a moment, too, but not in two looks.
        before, self._zombies = self._zombies, {pid for pid, (state, _) in states.items() if state in _ENDED}
        dead = sorted(pid for pid in self._zombies if pid in before or states[pid][1])
        self._told.update(dead)
        found = [(self._known[pid], _how(states[pid][1])) for pid in dead]
        self._known = {pid: stub for pid, stub in self._known.items() if states[pid][0] and pid not in dead}
        return found


def _state(pid: int, parent: int) -> tuple[str | None, int]:
    """The letter of a process's state and its exit status as wait has it; None once it is gone."""
    try:
        words = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(") ")[2].split()
        return (words[0], int(words[-1])) if int(words[1]) == parent else (None, 0)
    except (OSError, ValueError, IndexError):
        return None, 0


def _how(status: int) -> str:
    number = status & 0x7F
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(number).name}" if number else f"exit status {status >> 8}"
    return f"signal {number}"
