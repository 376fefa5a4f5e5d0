"""Processes of models that die, and servers that die: what is repaired, what is started again, and how often."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import ServingError
from orchestrator.serving import repairs, stubs, supervision
from orchestrator.serving.control import ModelEntry
from orchestrator.serving.repairs import MOST_REPAIRS, Repairs
from orchestrator.serving.stubs import DeadStubs, Stub, end_orphans, stub_from_command, stubs_of
from orchestrator.serving.supervision import MOST_RESTARTS, WITHIN_S, RestartLimit, Supervision
from tests.bls.fixtures import eventually

# Stands for Triton: starts what stands for Python models' processes, and collects none that dies.
PARENT = """
import subprocess, sys
stub, memory, _, *files = sys.argv[1:]
for file in files:
    subprocess.Popen([stub, file, memory, "4", "4", "1", "backends", "336", "workers_0", "DEFAULT"])
print("started", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def parent_of(tmp_path: Path, *models: str, memory: str = "memory", prefix: str = "") -> Iterator[int]:
    # Started by its interpreter, a script has that as its first word, so a link to the interpreter stands for it.
    link = tmp_path / "triton_python_backend_stub"
    tmp_path.mkdir(exist_ok=True)
    link.symlink_to(sys.executable)
    files = [tmp_path / model / "1" / "model.py" for model in models]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("import time; time.sleep(60)")
    words = [sys.executable, "-c", PARENT, str(link), memory, prefix, *map(str, files)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        try:
            yield parent.pid
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_processes_of_models_are_told_by_their_command_lines() -> None:
    words = ["/b/python/triton_python_backend_stub", "/r/a_1_model/1/model.py", "shm", "4", "4", "1", "/b", "336"]
    found = stub_from_command(7, [*words, "a_1_model_0_1", "DEFAULT"])
    assert found == Stub(pid=7, model="a_1_model", instance="a_1_model_0_1", shm="shm", version=1)
    assert stub_from_command(7, ["/usr/bin/python3", *words[1:], "m_0_0", "DEFAULT"]) is None
    assert stub_from_command(7, [""]) is None
    # Instances of a group with a name have that, and a member's file may be of any kind, in a repository anywhere.
    named = [words[0], "/data/2/repo/m/13/model.onnx", *words[2:8], "workers_0", "DEFAULT"]
    assert stub_from_command(7, named) == Stub(pid=7, model="m", instance="workers_0", shm="shm", version=13)


def test_a_process_that_died_is_named_once_with_how_and_the_living_are_not(tmp_path: Path) -> None:
    with parent_of(tmp_path, "first", "second") as pid:
        # A process has no command line for a moment after its start.
        eventually(lambda: sorted(stub.model for stub in stubs_of(pid)) == ["first", "second"])
        dead = DeadStubs(pid)
        assert dead.look() == []
        victim = next(stub.pid for stub in stubs_of(pid) if stub.model == "first")
        os.kill(victim, signal.SIGKILL)
        found: list[tuple[Stub, str]] = []
        eventually(lambda: found.extend(dead.look()) or found)
        assert [(stub.model, how) for stub, how in found] == [("first", "signal SIGKILL")]
        assert [stub.model for stub in stubs_of(pid)] == ["second"]
        assert dead.look() == []


def test_processes_whose_server_was_killed_are_ended_and_no_others(tmp_path: Path) -> None:
    orphan = parent_of(tmp_path / "b", "m", memory="committee_1_2_3")
    with parent_of(tmp_path, "other") as others, orphan as orphaned:
        eventually(lambda: stubs_of(others) and stubs_of(orphaned))
        # This parent has not the name of the memory in its command line, as the Triton of a process has.
        end_orphans()
        assert [stub.model for stub in stubs_of(others)] == ["other"]
        assert stubs_of(orphaned) == []
    with parent_of(tmp_path / "c", "m", memory="committee_1_2_3", prefix="x=committee_1_2_") as running:
        eventually(lambda: stubs_of(running))
        end_orphans()
        assert [stub.model for stub in stubs_of(running)] == ["m"]


def test_orphans_are_waited_for_until_they_have_let_go_of_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The command line of a process that was killed is gone before its files are closed.
    looked = [False, True]
    monkeypatch.setattr(stubs, "_PROC", tmp_path)
    monkeypatch.setattr(stubs, "_is_orphan", lambda _: looked.pop() if looked else False)
    monkeypatch.setattr(stubs, "os", SimpleNamespace(kill=lambda *_: None))
    states = [tmp_path / "7" / "task" / thread / "stat" for thread in ("7", "8")]
    for path, state in zip(states, "ZS", strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(f"7 (stub) {state} 1")
    timer = threading.Timer(0.3, lambda: states[1].write_text("8 (stub) Z 1"))
    timer.start()
    end_orphans()
    assert states[1].read_text() == "8 (stub) Z 1"
    timer.join()


def test_so_many_restarts_are_made_and_those_of_long_ago_do_not_count() -> None:
    limit = RestartLimit()
    assert [limit.pause_s(now_s=60.0 * n, ran_s=60.0) for n in range(MOST_RESTARTS)] == [0.0] * MOST_RESTARTS
    assert limit.pause_s(now_s=WITHIN_S - 1, ran_s=60.0) is None
    assert limit.pause_s(now_s=WITHIN_S, ran_s=60.0) == 0.0


def test_a_server_that_ends_soon_is_started_after_ever_longer_pauses_until_it_holds() -> None:
    limit = RestartLimit()
    assert [limit.pause_s(now_s=0.0, ran_s=ran_s) for ran_s in (60.0, 0.1, 0.1, 60.0, 0.1)] == [0, 1, 2, 0, 1]


class Server:
    """Ends as often as it is started, or is too broken to start."""

    def __init__(self, *, fails: Exception | None = None) -> None:
        self.fails, self.restarts = fails, 0
        self.pid, self.log_path = 1, "the log"

    def wait(self, timeout_s: float) -> int:
        return -signal.SIGSEGV

    def kill(self, *, keep_log: bool) -> None:
        assert keep_log

    def restart(self) -> None:
        self.restarts += 1
        if self.fails is not None:
            raise self.fails


@pytest.mark.parametrize("fails", [None, ServingError("embedded Triton did not start"), FileNotFoundError("/tmp")])
def test_a_server_that_keeps_dying_is_given_up_after_its_restarts_with_the_reason(
    fails: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_OneServer", FakeOneServer)
    monkeypatch.setattr(supervision.time, "sleep", lambda _: None)
    told: list[str] = []
    server: Any = Server(fails=fails)
    with pytest.raises(
        ServingError, match="after 5 restarts within 10 minutes; the whole log is the log"
    ) as caught:
        Supervision(server, restarts=True, tell=told.append).run()
    assert server.restarts == MOST_RESTARTS
    assert (str(fails) if fails else "SIGSEGV") in str(caught.value)
    assert sum("Triton is started again" in text for text in told) == MOST_RESTARTS
    assert sum("Triton is ready again" in text for text in told) == (0 if fails else MOST_RESTARTS)


def test_without_restarts_the_first_end_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_OneServer", FakeOneServer)
    server: Any = Server()
    with pytest.raises(ServingError, match="ended by itself: got signal SIGSEGV; "):
        Supervision(server, restarts=False, tell=lambda _: None).run()
    assert server.restarts == 0


class FakeOneServer:
    def __init__(self, server: Any, **_: Any) -> None:
        self.server = server

    def until_ended(self) -> str:
        return signal.Signals(-self.server.wait(0)).name.join(["signal ", ""])


class Repairable:
    """A server that runs, and whose models load at the second try."""

    def __init__(self, folder: Path, *, failures: int = 0) -> None:
        cascade = ModelEntry(name="cascade", backend="python", is_cascade=True)
        self.models = (cascade, ModelEntry(name="member", backend="python"))
        self.held_prefix = f"{folder}/held_"
        self.reloaded: list[str] = []
        self.failures = failures
        self.control = self.stubs = self
        self.pids: frozenset[int] = frozenset()
        self.missing_file: Path | None = None
        self.serving: dict[str, frozenset[int]] = {}
        self.states: dict[str, str] = {}
        # A load waits for it.
        self.lets_load = threading.Event()
        self.lets_load.set()

    def reload(self, name: str) -> None:
        self.reloaded.append(name)
        self.lets_load.wait(10)
        if len(self.reloaded) <= self.failures:
            raise ServingError("Triton refused it")

    def ready_versions(self) -> dict[str, frozenset[int]]:
        return self.serving

    def index(self) -> list[dict[str, str]]:
        return [{"name": name, "version": "1", "state": state} for name, state in self.states.items()]


class Deaths:
    """Gives each of the processes at one look."""

    are_succeeded = False

    def __init__(self, *models: str, pid: int = 7) -> None:
        self._left = [Stub(pid=pid, model=name, instance=f"{name}_0_0", shm="") for name in models]

    def look(self) -> list[tuple[Stub, str]]:
        return [(self._left.pop(), "signal SIGKILL")] if self._left else []

    def has_successor(self, stub: Stub) -> bool:
        return self.are_succeeded


def watched(server: Repairable, *dead: str, restarts: bool = True) -> tuple[Any, list[str]]:
    told: list[str] = []
    made = object.__new__(supervision._OneServer)
    made._server, made._restarts, made._tell = server, restarts, told.append  # type: ignore[assignment]
    made._dead, made._watches_cascades = Deaths(*dead), False  # type: ignore[assignment]
    made._said = ""
    made._look_at_cascades, made._repairs = None, Repairs(server, tell=told.append)  # type: ignore[arg-type]
    return made, told


def settled(one: Any) -> None:
    """Looks until no load goes on any more."""
    eventually(lambda: one._look() is None and not one._repairs.is_busy)


@pytest.mark.parametrize(("held", "model"), [(0, "cascade"), (9, "member"), (None, "member")])
def test_a_model_whose_process_held_nothing_that_is_lost_is_loaded_again(
    tmp_path: Path, held: int | None, model: str
) -> None:
    server = Repairable(tmp_path)
    if held is not None:
        (tmp_path / "held_7").write_bytes(held.to_bytes(8, "little"))
    one, told = watched(server, model)
    settled(one)
    assert server.reloaded == [model]
    assert told[0] == f"model {model}: its process 7 ended with signal SIGKILL; the model is loaded again"
    assert told[1].startswith(f"model {model} is loaded again after ")


@pytest.mark.parametrize("successor", ["process", "version", ""])
def test_a_process_that_died_while_it_was_unloaded_has_nothing_loaded_again(
    tmp_path: Path, successor: str
) -> None:
    server = Repairable(tmp_path)
    (tmp_path / "held_7").write_bytes(bytes(8))
    one, _ = watched(server, "cascade")
    one._dead.are_succeeded = successor == "process"
    server.serving = {"cascade": frozenset({2 if successor == "version" else 0})}
    settled(one)
    assert server.reloaded == ([] if successor else ["cascade"])


def test_a_younger_process_of_the_same_instance_takes_the_place_of_one(tmp_path: Path) -> None:
    with parent_of(tmp_path, "first", "second") as pid:
        dead = DeadStubs(pid)
        dead.note()
        first = next(stub for stub in stubs_of(pid) if stub.model == "first")
        assert dead.has_successor(dataclasses.replace(first, pid=1))
        assert not dead.has_successor(dataclasses.replace(first, version=first.version + 1))


@pytest.mark.parametrize(("held", "words"), [(3, "held 3 requests"), (None, "held an unknown number of requests")])
def test_a_cascade_whose_process_held_requests_ends_the_server(
    tmp_path: Path, held: int | None, words: str
) -> None:
    if held is not None:
        (tmp_path / "held_7").write_bytes(held.to_bytes(8, "little"))
    one, _ = watched(server := Repairable(tmp_path), "cascade")
    assert one._look() == f"model cascade: its process 7 ended with signal SIGKILL and {words}"
    assert server.reloaded == []
    one, told = watched(server, "cascade", restarts=False)
    settled(one)
    assert server.reloaded == ["cascade"]
    assert words in told[0]


def test_a_model_that_does_not_load_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(repairs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one, told = watched(server := Repairable(tmp_path, failures=2), "member")
    settled(one)
    assert "is not loaded again yet: Triton refused it" in told[-1]
    settled(one)
    assert server.reloaded == ["member"]
    for _ in range(2):
        now[0] += 3.1
        settled(one)
    assert server.reloaded == ["member"] * 3
    assert len(told) == 3
    assert "is loaded again" in told[-1]


@pytest.mark.parametrize("model", ["member", ""])
def test_a_process_that_dies_while_its_model_is_loaded_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr(repairs, "_ANSWER_S", 0.1)
    one, told = watched(server := Repairable(tmp_path), "member")
    server.lets_load.clear()
    server.pids = frozenset({7})
    assert one._look() is None
    eventually(lambda: server.reloaded)
    try:
        one._dead = Deaths("member")  # another instance from before the load, which brings both back
        time.sleep(0.2)
        assert one._look() is None
        one._dead = Deaths(model, pid=8)
        eventually(one._look)
        why = one._look()
        assert why.startswith("model member: its process 8 ended with" if model else "a model: its process 8")
        assert why.endswith("while the model was loaded, which Triton never finishes")
    finally:
        server.lets_load.set()
    # Triton answers a load that it has given up itself.
    eventually(lambda: one._look() is None)
    assert told[-1].startswith("model member is loaded again after ")


def test_a_process_that_dies_while_somebody_else_loads_its_model_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairs, "_ANSWER_S", 0.1)
    one, told = watched(server := Repairable(tmp_path), "member")
    server.states["member"] = "LOADING"
    eventually(one._look)
    assert "while the model was loaded" in one._look()
    assert server.reloaded == told == []


def test_a_process_that_died_before_anybody_could_look_is_named_once_without_its_model(tmp_path: Path) -> None:
    with parent_of(tmp_path, "first") as pid:
        eventually(lambda: stubs_of(pid))
        (victim,) = stubs_of(pid)
        os.kill(victim.pid, signal.SIGKILL)
        eventually(lambda: not stubs_of(pid))
        dead = DeadStubs(pid)
        found: list[tuple[Stub, str]] = []
        eventually(lambda: found.extend(dead.look()) or found)
        assert [(stub.pid, stub.model, how) for stub, how in found] == [(victim.pid, "", "signal SIGKILL")]
        assert dead.look() == dead.look() == []


def test_a_server_is_started_again_after_so_many_repairs(tmp_path: Path) -> None:
    one, told = watched(server := Repairable(tmp_path))
    for _ in range(MOST_REPAIRS):
        one._dead = Deaths("member")
        settled(one)
    assert server.reloaded == ["member"] * MOST_REPAIRS
    one._dead = Deaths("member")
    assert one._look() == (
        "model member: its process 7 ended with signal SIGKILL after 5 repairs, each of which leaves memory"
    )
    one._restarts, one._dead = False, Deaths("member")
    settled(one)
    assert len(told) == 2 * (MOST_REPAIRS + 1)


def test_a_server_whose_own_files_are_gone_is_started_again(tmp_path: Path) -> None:
    one, _ = watched(server := Repairable(tmp_path))
    assert one._look() is None
    server.missing_file = tmp_path / "stub"
    assert (one._look() or "").startswith(f"{tmp_path}/stub is gone, ")
