"""A version of a cascade that takes the place of one that serves: accepted only when all its members are there."""

import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.bls import replacement
from orchestrator.bls.replacement import is_listening
from orchestrator.errors import SpecError
from orchestrator.spec import FusedPrefix
from tests.bls.fixtures import HARD, ask_all, asking, large, loaded, small, two_stages, usual
from tests.fakes.triton import FakeTriton

SERVES = {"cascade": large}


@pytest.fixture(autouse=True)
def up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacement, "is_listening", lambda _: True)
    monkeypatch.setattr(replacement, "WAIT_S", 0.3)
    monkeypatch.setattr(replacement, "_ASK_S", 0.01)


def without(*names: str, **more: object) -> FakeTriton:
    server = usual(**SERVES, **more)
    for name in names:
        del server.members[name]
    return server


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("on_failure", ["error", "answer"])
def test_a_missing_member_at_any_stage_refuses_what_would_replace_a_good_version(
    tmp_path: Path, name: str, on_failure: str
) -> None:
    first, last = two_stages().stages
    spec = two_stages(stages=(first, dataclasses.replace(last, on_failure=on_failure)))
    with (
        pytest.raises(SpecError, match=f"cascade: {name}: it is not ready; load them first .* stays"),
        loaded(tmp_path, without(name), spec),
    ):
        pass


def test_a_pinned_version_that_the_server_does_not_have_refuses_it_too(tmp_path: Path) -> None:
    first, last = two_stages().stages
    last = dataclasses.replace(last, members=(dataclasses.replace(last.members[0], version=7),))
    server = without()
    with pytest.raises(SpecError, match="large: its version 7 is not ready"):  # noqa: SIM117
        with loaded(tmp_path, server, two_stages(stages=(first, last))):
            pass
    server.versions["large"] = {1, 7}
    with loaded(tmp_path, server, two_stages(stages=(first, last))) as model:
        assert not ask_all(model, [asking(HARD)])[0].has_error()


def test_a_member_that_is_loading_at_the_same_time_is_waited_for(tmp_path: Path) -> None:
    server = without("large")
    timer = threading.Timer(0.1, lambda: server.members.update(large=large))
    timer.start()
    with loaded(tmp_path, server) as model:
        assert not ask_all(model, [asking(HARD)])[0].has_error()
    timer.join()


def test_a_missing_fused_prefix_refuses_nothing_because_the_members_are_asked(tmp_path: Path) -> None:
    first, last = two_stages().stages
    middle = dataclasses.replace(first, members=(dataclasses.replace(first.members[0], name="middle"),))
    spec = two_stages(stages=(first, middle, last), fused_prefix=FusedPrefix(name="both", stages=2))
    with loaded(tmp_path, without(middle=small), spec) as model:
        assert not ask_all(model, [asking(HARD)])[0].has_error()


def test_the_first_version_may_be_loaded_before_its_members(tmp_path: Path) -> None:
    with loaded(tmp_path, without("large", "cascade")):
        pass


def test_a_server_that_starts_is_asked_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacement, "is_listening", lambda _: False)
    server = without("large")

    def ask(*_: str) -> bool:
        raise AssertionError("asked while it starts")

    monkeypatch.setattr(server, "is_model_ready", ask)
    with loaded(tmp_path, server):
        pass


def test_a_process_listens_once_a_socket_of_its_own_does() -> None:
    code = "import socket, sys\ns = socket.socket()\nsys.stdin.readline()\ns.bind(('127.0.0.1', 0))\ns.listen()\n"
    code += "print('listens', flush=True)\nsys.stdin.readline()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with socket.create_server(("127.0.0.1", 0)), subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert is_listening(os.getpid())
        assert not is_listening(other.pid)
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(b"\n")
        other.stdin.flush()
        assert other.stdout.readline() == b"listens\n"
        assert is_listening(other.pid)
        other.stdin.close()
    assert not is_listening(other.pid)


def test_a_server_that_polls_its_repository_is_waited_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        ["--model-control-mode=poll"],
        ["--model-control-mode", "poll"],
        ["--model-control-mode=explicit", "poll"],
    ]
    said = []
    for options in words:
        with subprocess.Popen([sys.executable, "-c", "input()", *options], stdin=subprocess.PIPE) as process:
            until_s = time.monotonic() + 5
            while b"input()" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                assert time.monotonic() < until_s
            said.append(replacement._polls(process.pid))
            assert process.stdin is not None
            process.stdin.close()
    assert said == [True, True, False]
