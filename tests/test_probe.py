"""The probe and the draining mark among people and servers that mean no good; the rest is in tests/served."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from orchestrator import probe as probing
from orchestrator.probe import (
    ANSWERED,
    FAILED,
    MOST_TIMEOUT_S,
    drain,
    main,
    mark,
    mark_of,
    probe,
    wait_until_drained,
)


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
    assert path.read_text().split()[1] == "cascade"
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


def wrong_server(answer: bytes, *, then: bytes = b"") -> AbstractContextManager[str]:
    """Gives everybody the answer, and after it `then`, again and again, until the client goes or the test ends."""
    return answering({b"": answer}, then=then)


@contextmanager
def answering(answers: dict[bytes, bytes], *, then: bytes = b"") -> Iterator[str]:
    """Gives the answer to what the request begins with."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            asked = connection.recv(65536)
            connection.sendall(next(answer for begin, answer in answers.items() if asked.startswith(begin)))
            while then and not over.wait(0.05):
                connection.sendall(then)
            # Closed with bytes that nobody has read, it would take the answer back.
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

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
        assert wait_until_drained(url, tmp_path, ["x"], servers=[os.getpid()], until_s=0.0) == ["x"]
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
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def test_of_several_servers_of_a_repository_only_the_one_behind_the_url_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_MARKS", tmp_path)
    monkeypatch.setattr(probing, "cascades_in", lambda _: ["cascade"])
    with ExitStack() as stack:
        (first, _), (second, port) = (listener(stack, "127.0.0.1") for _ in range(2))
        servers, ports = [first, second], [1, port]
        monkeypatch.setattr(probing, "servers_of", lambda _: [server.pid for server in servers])
        drain(f"http://127.0.0.1:{ports[1]}", tmp_path, timeout_s=0.01)
        assert [path.name for path in tmp_path.iterdir()] == [mark_of(servers[1].pid).name]
        # One alone is told whatever leads to it, a gateway's address say.
        monkeypatch.setattr(probing, "servers_of", lambda _: [servers[0].pid])
        drain("http://127.0.0.1:1", tmp_path, timeout_s=0.01)
        assert mark_of(servers[0].pid).exists()


def listener(stack: ExitStack, host: str, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    words = [sys.executable, "-c", LISTENER, host, str(port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = stack.enter_context(subprocess.Popen(words, **pipes))
    return process, int(process.stdout.readline())


def test_servers_at_one_port_are_told_apart_by_their_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_MARKS", tmp_path)
    monkeypatch.setattr(probing, "cascades_in", lambda _: ["cascade"])
    with ExitStack() as stack:
        first, port = listener(stack, "127.0.0.1")
        second, _ = listener(stack, "127.0.0.2", port)
        monkeypatch.setattr(probing, "servers_of", lambda _: [first.pid, second.pid])
        for host in ("127.0.0.3", "example.invalid"):
            with pytest.raises(LookupError, match="none of the 2 servers"):
                drain(f"http://{host}:{port}", tmp_path, timeout_s=0.01)
        assert not list(tmp_path.iterdir())
        drain(f"http://localhost:{port}", tmp_path, timeout_s=0.01)
        assert [path.name for path in tmp_path.iterdir()] == [mark_of(first.pid).name]
        drain(f"http://127.0.0.2:{port}", tmp_path, timeout_s=0.01)
        assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for the only server of a repository with one cascade."""
    (tmp_path / "x" / "1").mkdir(parents=True)
    (tmp_path / "x" / "1" / "cascade.json").write_text('{"stages": []}')
    (tmp_path / "marks").mkdir()
    monkeypatch.setattr(probing, "_MARKS", tmp_path / "marks")
    with subprocess.Popen(["sleep", "60"]) as server:
        monkeypatch.setattr(probing, "servers_of", lambda _: [server.pid])
        yield server
        server.kill()


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s"
UNKNOWN = b'{"error": "Request for unknown model: \'x\' is not found"}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "refused"),
        (b"\x00\x00\x06\x04\x00\r\n", PROTOCOL),
        (NOT_FOUND % (5, b"<html"), "<html"),
        (NOT_FOUND % (len(UNKNOWN), UNKNOWN), "unknown model"),
    ],
)
def test_an_address_where_the_server_does_not_answer_says_nothing_about_its_rows(
    answer: bytes | None, said: str, told: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_OBEYS_S", 0.1)
    with wrong_server(answer) if answer else nullcontext("http://127.0.0.1:1") as url:
        code, text = probing._drain_in_words(url, tmp_path, 0.3)
    assert code == FAILED
    assert text.startswith("not drained: x; ")
    assert said in text


def test_a_server_that_ends_while_it_drains_is_drained(told: subprocess.Popen[bytes], tmp_path: Path) -> None:
    timer = threading.Timer(0.3, told.kill)
    timer.start()
    assert drain("http://127.0.0.1:1", tmp_path, timeout_s=20) == []
    timer.join()


def test_where_no_server_is_found_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probing, "servers_of", lambda _: [])
    assert main(["--drain"]) == FAILED
    assert "no server was told" in capsys.readouterr().out


def test_an_answer_that_is_too_large_to_be_read_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_MOST_ANSWER_BYTES", 3 << 20)
    row = b'{"name": "x", "inputs": [], "outputs": [], "model_stats": [], "model_name": "x"}'
    large = b'{"model_name":"x","model_version":"1","outputs":[{"data":[' + b"0.12345678," * 400_000
    for body, code in ((large, ANSWERED), (b'["model_name"' + large, FAILED)):
        with answering({b"GET": http(row), b"POST": http(body)}) as url:
            assert probe(url, "x", timeout_s=20.0)[0] == code
