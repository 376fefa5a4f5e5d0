"""Asks a served cascade for an answer, and lets the cascades of a server finish before it stops.

Only the standard library is imported, because standalone renderings carry this file as `committee_probe.py` into
NVIDIA's image, where containers run it: `python3 /models/committee_probe.py --alive` as a health check, and with
`--drain` before they stop.

Draining begins with a file, since nothing else reaches a cascade in every release and control mode. From then on
the cascade refuses new requests with UNAVAILABLE, and says in the refusal how many older ones it still has.
"""

import argparse
import contextlib
import http.client
import json
import os
import queue
import re
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

# Exit codes: answered, not answered, and alive but takes no request now.
ANSWERED, FAILED, BUSY = 0, 1, 6
HTTP_URL = "http://127.0.0.1:8000"
SCRIPT = "committee_probe.py"
DRAINING = "is draining, requests still to be answered: "
FULL_WORDS = "rows wait for later stages"
# In refusals of a cascade that lives: by our runtime, or by Triton's queue in front of it.
BUSY_WORDS = (DRAINING, FULL_WORDS, "maximum queue size", "Request timeout expired")
# In those of one that had no time for the row, because of its load or because a member hangs.
LATE_WORDS = ("deadline passed", "deadline too near")
# What Triton says of a version that is not loaded, and of one whose process is dead.
_AWAY_WORDS = ("Request for unknown model", "has no available versions", "Stub process")
# Bytes of a zero by Triton dtype.
_ZERO_BYTES = {"BOOL": 1, "BYTES": 4} | {
    f"{kind}INT{bits}": bits // 8 for kind in ("", "U") for bits in (8, 16, 32, 64)
}
_ZERO_BYTES |= {"BF16": 2} | {f"FP{bits}": bits // 8 for bits in (16, 32, 64)}
# What a server may take at most to answer, and to be asked: another one may answer without end.
MOST_TIMEOUT_S, _MOST_ANSWER_BYTES, _MOST_ROW_BYTES = 86_400.0, 64 << 20, 256 << 20
_LOOK_AGAIN_S = 0.5  # that a loaded server gets at least, also where the time is over
# What a server's silence raises, and what an answer does that has another form than Triton's.
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)
_NO_TRITON = (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)
# An answer of more bytes is no cascade's, and is known by its beginning; its end may be cut off.
_MOST_READ_BYTES = 1 << 20
_BEGINNING = re.compile(rb'\s*\{\s*"(id|model_name|model_version|parameters|outputs)"\s*:')
_STATUS_WORDS = {1: "degraded", 2: "at its deadline"}
# Where the server's models have their shared memory anyway, so that a read-only root does no harm.
_MARKS = Path("/dev/shm")
STUB = "triton_python_backend_stub"
_POLL_S = 0.05
# A cascade looks for the mark at most this late; one that still answers after `_OBEYS_S` does not know it.
LOOK_S, _OBEYS_S = 0.2, 1.5


def probe(url: str, model: str, *, timeout_s: float = 5.0) -> tuple[int, str]:
    """Asks for the answer to one row of zeros, through all stages of a cascade.

    A raised threshold sends the row on to the last stage, so that a dead process of any member shows. Where that
    takes too long the cascade answers at a deadline with what it knows by then. A server that has no time for the
    row in `timeout_s` but answers others meanwhile is busy.

    Returns:
        ANSWERED, FAILED or BUSY, and one line about it.
    """
    until_s, answers = time.monotonic() + timeout_s, 0
    try:
        answers = _answers(url, model, timeout_s)
        metadata = _document(_ask(url, f"/v2/models/{model}", timeout_s=until_s - time.monotonic()))
        if unknown := {one["datatype"] for one in metadata["inputs"]} - set(_ZERO_BYTES):
            raise ValueError(f"got inputs of {', '.join(sorted(unknown))}, which it knows no zero of")
        began_s = time.monotonic()
        # What is left is for a look at other answers where this one is late.
        status, body = _ask_row(url, metadata, timeout_s=0.9 * (until_s - began_s))
        if status == 200:
            return ANSWERED, f"{model} answered in {1e3 * (time.monotonic() - began_s):.0f} ms{_said(body)}"
    except TimeoutError:
        return _why_late(url, model, answers, timeout_s, until_s)
    except (*_NO_ANSWER, *_NO_TRITON) as error:
        return FAILED, f"{model} does not answer at {url}: {_reason(error)}"
    text = _error_text(body)
    if any(words in text for words in LATE_WORDS):
        return _why_late(url, model, answers, timeout_s, until_s)
    is_busy = any(words in text for words in BUSY_WORDS)
    return (BUSY, f"{model} is alive: {text}") if is_busy else (FAILED, f"{model} fails: {text}")


def _why_late(url: str, model: str, answers: int, timeout_s: float, until_s: float) -> tuple[int, str]:
    try:
        left_s = max(until_s - time.monotonic(), min(timeout_s, _LOOK_AGAIN_S))
        more = _answers(url, model, left_s) - answers
    except (*_NO_ANSWER, *_NO_TRITON):
        more = 0
    if more > 0:
        return BUSY, f"{model} is alive: no time for the probe in {timeout_s:g} s, {more} other requests answered"
    return FAILED, f"{model} has not answered within {timeout_s:g} s, and no other request either"


def _answers(url: str, model: str, timeout_s: float) -> int:
    """How many requests the server has answered for a model."""
    document = _document(_ask(url, f"/v2/models/{model}/stats", timeout_s=timeout_s))
    return sum(int(one["inference_stats"]["success"]["count"]) for one in document["model_stats"])


def _reason(error: Exception) -> str:
    # Another protocol's answer, gRPC's say, stands in the error with its control characters.
    if isinstance(error, _NO_TRITON) or type(error) is http.client.BadStatusLine:
        return f"got no answer of Triton's HTTP protocol, expected its HTTP address, such as {HTTP_URL}"
    return _one_line(str(error)) or type(error).__name__


def _one_line(text: str) -> str:
    words = " ".join(text.split())[:300]
    return "".join(character if character.isprintable() else "?" for character in words)


def _ask_row(url: str, metadata: Mapping[str, Any], *, timeout_s: float, version: str = "") -> tuple[int, bytes]:
    inputs, data = [], b""
    for tensor in metadata["inputs"]:
        shape = [max(1, int(size)) for size in tensor["shape"]]
        count, one = _ZERO_BYTES[tensor["datatype"]], 1
        for size in shape:
            one *= size
            if len(data) + count * one > _MOST_ROW_BYTES:
                text = f"got a model whose row has more than {_MOST_ROW_BYTES >> 20} MiB"
                raise ValueError(f"{text}, which are too many for a probe")
        binary = {"binary_data_size": count * one}
        inputs.append({**tensor, "shape": shape, "parameters": binary})
        data += bytes(count * one)
    request: dict[str, Any] = {"inputs": inputs}
    if {"exit_stage", "status"} <= {tensor["name"] for tensor in metadata["outputs"]}:
        request["outputs"] = [{"name": "status"}]
        request["parameters"] = {"threshold_shift": 1.0, "deadline_us": max(1, int(0.8e6 * timeout_s))}
    head = json.dumps(request).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    path = f"/v2/models/{metadata['name']}{version}/infer"
    return _ask(url, path, body=head + data, headers=headers, timeout_s=timeout_s)


def _address_in(url: str) -> SplitResult:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise ValueError(f"got {url}, expected the server's HTTP address, such as {HTTP_URL}")
    return parts


def _ask(
    url: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None, timeout_s: float
) -> tuple[int, bytes]:
    parts, timeout_s = _address_in(url), min(max(timeout_s, 0.001), MOST_TIMEOUT_S)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    said = queue.SimpleQueue[tuple[int, bytes] | Exception]()

    def ask() -> None:
        try:
            connection.request("GET" if body is None else "POST", path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            said.put((response.status, response.read(_MOST_ANSWER_BYTES)))
        except Exception as error:  # raised by the thread that waits
            said.put(error)
        finally:
            connection.close()

    # A thread of its own, since the connection's limit begins anew with every byte that comes.
    threading.Thread(target=ask, name="committee-probe", daemon=True).start()
    try:
        answer = said.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _document(answer: tuple[int, bytes]) -> Any:
    status, body = answer
    if status != 200:
        raise ValueError(_error_text(body) or f"HTTP {status}")
    try:
        return json.loads(body)
    except ValueError as error:
        raise TypeError("no JSON") from error


def _error_text(body: bytes) -> str:
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, *_NO_TRITON):
        text = body.decode(errors="replace")
    return _one_line(text)


def _said(body: bytes) -> str:
    if len(body) > _MOST_READ_BYTES and _BEGINNING.match(body):
        return ""
    for output in _document((200, body)).get("outputs", ()):
        if output["name"] == "status":
            words = [word for bit, word in _STATUS_WORDS.items() if int(output["data"][0]) & bit]
            return f" ({', '.join(words)})" if words else ""
    return ""


# -- draining -------------------------------------------------------------------------------------


def mark_of(server: int | str) -> Path:
    """The file that tells the cascades of the server with this process id to drain."""
    return _MARKS / f"committee_drain_{server}"


def _stat_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()


def start_of(server: int) -> str:
    """When a process began, by which the mark of an earlier one with the same id is told apart."""
    return _stat_of(server)[19]


def namespace_of(process: int, kind: str) -> str:
    """The kernel's name of a process's namespace, such as of "pid"."""
    return str(Path(f"/proc/{process}/ns/{kind}").readlink())


def _has_ended(server: int) -> bool:
    try:
        return _stat_of(server)[0] in ("Z", "X")
    except OSError:
        return True


class DrainMark:
    """Looks in a thread whether a cascade was told to drain.

    Args:
        model: name of the cascade.
        server: process id of its Triton.

    Attributes:
        is_set: whether it has to refuse new requests.
    """

    def __init__(self, model: str, server: int) -> None:
        self.is_set = False
        self._model, self._server = model, server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="committee-drain", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.is_set = self._look()
            self._stop.wait(LOOK_S)

    def _look(self) -> bool:
        path = mark_of(self._server)
        try:
            # Anybody may write files there, and only the server's own user may stop it.
            if path.lstat().st_uid != os.getuid():
                return False
            start, *models = path.read_text().split()
            return start == start_of(self._server) and self._model in models
        except (OSError, ValueError, IndexError):
            return False


def draining_text(model: str, pending: int) -> str:
    """What a cascade that drains tells a client."""
    return f"cascade {model} {DRAINING}{pending}; try again with another server, or with this one when it is back"


def mark(servers: Iterable[int], models: Iterable[str]) -> None:
    """Tells cascades of servers to drain.

    Raises:
        OSError: a server has ended, or somebody else's file has the name of the mark.
    """
    for server in servers:
        path = mark_of(server)
        # Under a name that nobody can know before: anybody may put links there.
        new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            with new.open("x") as file:
                # The last word tells whoever removes old marks whether it can see the process.
                file.write(" ".join([start_of(server), *models, namespace_of(server, "pid")]))
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def wait_until_drained(
    url: str, repository: Path, models: Iterable[str], *, servers: Sequence[int], until_s: float
) -> list[str]:
    """Waits, at most `until_s` on the monotonic clock, until cascades that were told to drain have answered all.

    A version that is not loaded, or whose process is gone, has nothing to answer, and nor have `servers`, process
    ids, that have ended. An address where somebody else answers, or nobody, says nothing about it. Returns the
    names of those that did not finish, or do not know how to drain.
    """
    plans = [(name, path) for name in models for path in sorted(repository.glob(f"{name}/*/cascade.json"))]
    is_own = bool(_servers_at(url, servers))
    obeyed_by_s = min(until_s, time.monotonic() + _OBEYS_S)
    left = []
    for name, path in plans:
        while not all(map(_has_ended, servers)):
            asked_s = time.monotonic()
            pending = _pending(url, name, path.parent.name, is_own=is_own, timeout_s=until_s - asked_s)
            if pending == 0:
                break
            # Asked too early, it may have taken the row in, and answers it as late as its neighbours.
            if time.monotonic() >= until_s or (pending is None and asked_s >= obeyed_by_s):
                left.append(name)
                break
            time.sleep(_POLL_S)
    return list(dict.fromkeys(left))


def _pending(url: str, model: str, version: str, *, is_own: bool, timeout_s: float) -> int | None:
    # How many requests a version has to answer yet; 0 where there is none, None where it does not say. Only the
    # server's own address can say that there is no such version.
    limit_s = max(0.1, min(timeout_s, 5.0))
    path = f"/versions/{version}"
    try:
        status, body = _ask(url, f"/v2/models/{model}{path}", timeout_s=limit_s)
        if status == 200:
            status, body = _ask_row(url, _document((status, body)), timeout_s=limit_s, version=path)
    except (OSError, http.client.HTTPException):
        return 1  # as far as anybody knows
    except (ValueError, *_NO_TRITON):
        return None
    text = "" if status == 200 else _error_text(body)
    if (said := re.search(re.escape(DRAINING) + r"(\d+)", text)) is not None:
        return int(said[1])
    # Before it looks at the mark, a cascade may say the same of a member.
    is_away = " member " not in text and any(words in text for words in _AWAY_WORDS)
    return 0 if is_own and is_away else None


def servers_of(repository: Path) -> list[int]:
    """Process ids of this user's Tritons on this machine that have a Python model of a repository."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_text().split("\0") if entry.stat().st_uid == os.getuid() else [""]
            ours = [word for word in words if word.endswith(".py") and repository in Path(word).resolve().parents]
            if STUB in words[0] and ours:
                found.add(int(_stat_of(int(entry.name))[1]))
        except (OSError, ValueError, IndexError):  # it has ended meanwhile
            continue
    return sorted(found)


def _listens(server: int, hosts: set[str], port: int) -> bool:
    """Whether a process takes connections at a TCP port of one of these addresses."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{server}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            host, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port and host in hosts:
                sockets.add(f"socket:[{inode}]")
    for file in Path(f"/proc/{server}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if str(file.readlink()) in sockets:
                return True
    return False


def _listeners_for(host: str | None) -> set[str]:
    """Local addresses, as the kernel's tables write them, whose listeners take connections to a host."""
    found: set[bytes] = set()
    for family, *_, place in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as one:
            one.bind(place)  # only what is this machine's
            own = socket.inet_pton(family, str(place[0]).partition("%")[0])
            # Those of any address as well, and IPv6's for IPv4.
            found |= {own, bytes(len(own)), bytes(10) + b"\xff\xff" + own if len(own) == 4 else own, bytes(16)}
    # Words of four bytes, each in this machine's order.
    return {"".join(f"{word:08X}" for word in struct.unpack(f"={len(one) // 4}I", one)) for one in found}


def _servers_at(url: str, servers: Sequence[int]) -> list[int]:
    """Those of the servers that listen at the URL themselves."""
    found: list[int] = []
    # The URL is none, or its host unknown, which asking it says.
    with contextlib.suppress(OSError, ValueError):
        parts = _address_in(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        hosts = _listeners_for(parts.hostname)
        for server in servers:
            with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
                # Elsewhere the same address is another.
                here = namespace_of(server, "net") == namespace_of(os.getpid(), "net")
                if here and _listens(server, hosts, port):
                    found.append(server)
    return found


def _servers_behind(url: str, servers: Sequence[int]) -> list[int]:
    # A mark cannot be taken back, so of several servers of one repository only the one that was named gets it.
    return list(servers) if len(servers) < 2 else _servers_at(url, servers)


def cascades_in(repository: Path) -> list[str]:
    """Names of the cascades of a repository, each before those it asks."""
    plans = {path.parents[1].name: path for path in sorted(repository.glob("*/*/cascade.json"))}
    asked = {name: _members_in(json.loads(path.read_text())) for name, path in plans.items()}
    ordered: list[str] = []
    while len(ordered) < len(asked):
        rest = [name for name in asked if name not in ordered]
        outer = [name for name in rest if not any(name in asked[other] for other in rest if other != name)]
        ordered += outer or rest
    return ordered


def _members_in(plan: Mapping[str, Any]) -> set[str]:
    return {member["name"] for stage in plan["stages"] for member in stage["members"]}


def drain(url: str, repository: Path, *, timeout_s: float) -> list[str]:
    """Lets a server's cascades drain; returns names of those left, LookupError where there is no server."""
    until_s, told, left = time.monotonic() + timeout_s, list[str](), list[str]()
    if not (servers := _servers_behind(url, found := servers_of(repository))):
        what = f"none of the {len(found)} servers of {repository} listens there" if found else "no server runs"
        expected = f"the HTTP address of one of this user's with the Python models of {repository}"
        raise LookupError(f"not drained, no server was told: got {url}, {what}, expected {expected}")
    for name in cascades_in(repository):
        # One after another: a cascade that refuses would fail the rows of one that asks it.
        told.append(name)
        try:
            mark(servers, told)
        except OSError:
            left += [] if all(map(_has_ended, servers)) else [name]
        left += wait_until_drained(url, repository, [name], servers=servers, until_s=until_s)
    return list(dict.fromkeys(left))


def _drain_in_words(url: str, repository: Path, timeout_s: float) -> tuple[int, str]:
    try:
        left = drain(url, repository, timeout_s=timeout_s)
    except LookupError as error:
        return FAILED, str(error)
    if not left:
        return ANSWERED, "drained"
    why = ""
    try:
        _document(_ask(url, "/v2", timeout_s=_LOOK_AGAIN_S))
    except (*_NO_ANSWER, *_NO_TRITON) as error:
        why = f"; {url}: {_reason(error)}"
    return FAILED, f"not drained: {', '.join(left)}{why}"


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) <= MOST_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"got {text}, expected seconds above 0, at most {MOST_TIMEOUT_S:g}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the rendered file; returns its exit code."""
    parser = argparse.ArgumentParser(description="Asks a served cascade for an answer, or lets cascades drain.")
    here = Path(__file__).resolve().parent
    parser.add_argument("--url", default=HTTP_URL, help="HTTP address of the server (%(default)s)")
    parser.add_argument("--model", help="cascade or model to ask; without it all cascades beside this file")
    parser.add_argument("--timeout-s", type=_seconds, help="5 for an answer, 30 for draining")
    parser.add_argument("--alive", action="store_true", help="exit with 0 also where it is busy or draining")
    parser.add_argument("--drain", action="store_true", help="refuse new requests and wait for those accepted")
    options = parser.parse_args(arguments)
    if options.drain:
        code, text = _drain_in_words(options.url, here, options.timeout_s or 30.0)
        print(text)  # noqa: T201
        return code
    codes = []
    for name in [options.model] if options.model else cascades_in(here):
        code, text = probe(options.url, name, timeout_s=options.timeout_s or 5.0)
        codes.append(ANSWERED if options.alive and code == BUSY else code)
        print(text)  # noqa: T201
    return FAILED if FAILED in codes else max(codes, default=FAILED)


if __name__ == "__main__":
    sys.exit(main())
