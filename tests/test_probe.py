"""The probe and the draining mark among people and servers that mean no good; the rest is in tests/served."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator import probe as probing
from orchestrator.probe import FAILED, MOST_TIMEOUT_S, drain, main, mark, mark_of, probe, wait_until_drained


def test_a_mark_follows_no_link_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_MARKS", tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious things")
    path = mark_of(os.getpid())
    for link in (path, path.with_name(f"{path.name}.new")):
        link.symlink_to(victim)
    mark([os.getpid()], ["cascade"])
    assert victim.read_text() == "precious things"
    assert path.read_text().endswith(" cascade")
    assert not path.is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


def test_draining_says_which_cascades_could_not_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_MARKS", tmp_path)
    monkeypatch.setattr(probing, "servers_of", lambda _: [os.getpid()])
    monkeypatch.setattr(probing, "cascades_in", lambda _: ["cascade"])
    # What cannot be replaced, as somebody else's file cannot where the folder is sticky.
    (mark_of(os.getpid()) / "inside").mkdir(parents=True)
    assert drain("http://127.0.0.1:1", tmp_path, timeout_s=0.1) == ["cascade"]
    assert [path.name for path in tmp_path.iterdir()] == [mark_of(os.getpid()).name]


INPUT = b'{"name": "a", "datatype": "FP32", "shape": [1000000000, 1000]}'
ROW = b'{"name": "x", "inputs": [%s], "outputs": [], "model_stats": []}' % INPUT
PROTOCOL = "got no answer of Triton's HTTP protocol"


@contextmanager
def wrong_server(answer: bytes, *, then: bytes = b"") -> Iterator[str]:
    """Gives everybody the answer, and after it `then`, again and again, until the client goes or the test ends."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(answer)
            while then and not over.wait(0.05):
                connection.sendall(then)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http(b"[]"), PROTOCOL),
        (http(b"null"), PROTOCOL),
        (http(b"<html>"), PROTOCOL),
        (http(b"\xff"), PROTOCOL),
        (http(b"[" * 100_000), PROTOCOL),
        (http(b'{"model_stats": [{"inference_stats": 1}]}'), PROTOCOL),
        (http(b'{"model_stats": [{"inference_stats": {"success": {"count": 1e999}}}]}'), PROTOCOL),
        (http(b'{"model_stats": [], "inputs": [1]}'), PROTOCOL),
        (http(ROW), "more than 256 MiB"),
        (b"\x00\x00\x06\x04\x00\x1b[2J\x07\r\n", PROTOCOL),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n\x1b[2J\x07", "?[2J?"),
        (b"", "Remote end closed connection"),
    ],
)
def test_a_wrong_server_fails_in_one_line(answer: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x" / "1").mkdir(parents=True)
    (tmp_path / "x" / "1" / "cascade.json").write_text("{}")
    with wrong_server(answer) as url:
        code, text = probe(url, "x", timeout_s=5.0)
        assert set(wait_until_drained(url, tmp_path, ["x"], until_s=0.0)) <= {"x"}
    assert code == FAILED
    assert said in text
    assert text.isprintable()


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"])
def test_a_server_that_answers_byte_after_byte_is_not_waited_for(begin: bytes) -> None:
    outcome: list[tuple[int, str]] = []
    with wrong_server(begin, then=b"a") as url:
        thread = threading.Thread(target=lambda: outcome.append(probe(url, "x", timeout_s=0.3)), daemon=True)
        thread.start()
        thread.join(timeout=20)
    assert outcome == [(FAILED, "x has not answered within 0.3 s, and no other request either")]


@pytest.mark.parametrize("text", ["inf", "nan", "-1", "0", "1e10", "soon"])
def test_an_impossible_time_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "x", "--timeout-s", text])
    assert "--timeout-s" in capsys.readouterr().err
    assert probe("127.0.0.1:1", "x", timeout_s=MOST_TIMEOUT_S)[0] == FAILED


LISTENER = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def test_of_several_servers_of_a_repository_only_the_one_behind_the_url_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_MARKS", tmp_path)
    monkeypatch.setattr(probing, "cascades_in", lambda _: ["cascade"])
    with ExitStack() as stack:
        words = [sys.executable, "-c", LISTENER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        servers = [stack.enter_context(subprocess.Popen(words, **pipes)) for _ in range(2)]
        ports = [int(server.stdout.readline()) for server in servers]
        monkeypatch.setattr(probing, "servers_of", lambda _: [server.pid for server in servers])
        drain(f"http://127.0.0.1:{ports[1]}", tmp_path, timeout_s=0.01)
        assert [path.name for path in tmp_path.iterdir()] == [mark_of(servers[1].pid).name]
        # One alone is told whatever leads to it, a gateway's address say.
        monkeypatch.setattr(probing, "servers_of", lambda _: [servers[0].pid])
        drain("http://127.0.0.1:1", tmp_path, timeout_s=0.01)
        assert mark_of(servers[0].pid).exists()
