import os
import socket
import subprocess
import sys
import time

import pytest

from perf.harness.server_probe import (
    Counts,
    PeakMemory,
    ServerProcess,
    counted_between,
    cpu_s,
    memory_of,
    server_processes,
    unconnected_sockets,
)

# A leader of a session with one child, as a server with one model; both hold and use something. The child calls
# itself what Triton's stub is called.
LEADER = """
import subprocess, sys, time
words = ["triton_python_backend_stub", sys.argv[1], "shm", "8", "small_0_0", "DEFAULT"]
child = subprocess.Popen(words, executable=sys.executable)
end = time.process_time() + 0.2
while time.process_time() < end: pass
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def leader(tmp_path):
    model = tmp_path / "small" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import time; x = bytearray(30 << 20); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", LEADER, str(model)], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    yield process
    subprocess.run(["kill", "--", f"-{process.pid}"], check=False)
    process.wait()
    process.stdout.close()


def test_a_servers_processes_are_those_of_its_session_each_with_its_model(leader: subprocess.Popen[str]) -> None:
    found = server_processes(leader.pid)
    assert [one.model for one in found] == [None, "small"]
    assert found[0].pid == leader.pid
    assert cpu_s(found) >= 0.2
    alone, both = memory_of(found, ["other"]), memory_of(found)
    assert memory_of(found, ["small"]).resident_bytes == pytest.approx(both.resident_bytes, rel=0.05)
    assert both.resident_bytes - alone.resident_bytes > 30 * 2**20
    with PeakMemory(found, interval_s=0.01) as watch:
        pass
    assert watch.peak.total_bytes == pytest.approx(both.total_bytes, rel=0.05)


def test_processes_that_are_gone_cost_nothing(leader: subprocess.Popen[str]) -> None:
    found = server_processes(leader.pid)
    leader.kill()
    leader.wait()
    assert cpu_s(found[:1]) == 0
    assert memory_of(found[:1]).total_bytes == 0


def test_only_models_that_were_asked_in_between_are_counted() -> None:
    before = {"a": Counts(rows=10, calls=5), "b": Counts(rows=3, calls=3)}
    after = {"a": Counts(rows=30, calls=10), "b": Counts(rows=3, calls=3), "c": Counts(rows=2, calls=1)}
    assert counted_between(before, after) == {"a": Counts(rows=20, calls=5), "c": Counts(rows=2, calls=1)}


def test_a_socket_counts_as_unconnected_once_its_client_has_left_with_data_unread() -> None:
    here = ServerProcess(pid=os.getpid(), model=None, shm=None)
    before = unconnected_sockets(here)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.sendall(b"x")
            assert unconnected_sockets(here) == before
            client.close()  # with a byte unread, so that the connection is reset
            assert unconnected_sockets(here) == before + 1
    assert unconnected_sockets(here) == before
