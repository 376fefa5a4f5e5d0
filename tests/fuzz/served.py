"""Raw requests to the embedded server that serves the digits cascade: HTTP bodies and protobuf messages.

What a request does to our own code is a finding: an error that names the cascade's insides, no answer, or a
server that no longer answers a good row. Triton's frontend has faults of its own; where it ends, the server is
started again and the ending counted apart.
"""

import contextlib
import http.client
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from orchestrator.decision.policy import PARAMETERS, PROTOCOL
from orchestrator.errors import InputError
from orchestrator.probe import LATE_WORDS
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from perf.load.poisson import METHOD
from tests.fuzz.documents import changed_bytes, changed_json
from tests.fuzz.readers import CORPUS, Reader

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
PATH = "/v2/models/digits_cascade/infer"
# Header of an HTTP document: how long the JSON is, before raw tensors; empty for a body of JSON alone.
LENGTH = "Inference-Header-Content-Length"
_LIMIT_S = 10.0
# A good row is asked about after so many documents.
_EVERY = 50
# What our own code says where it puts the blame on the server or on a member.
_OURS = re.compile(r"cascade failed|answer could not be built|stage \d member")
# Numbers in a tensor beyond which Triton 24.10 may end for want of memory, as SECURITY.md says.
_MOST_NUMBERS = 10**7


class ServerFaultFound(AssertionError):  # noqa: N818 - the name of a finding
    """What a request did to our own code."""


class Target:
    """The server, started again where it ends."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.asked = 0
        self.server = self._started()

    def _started(self) -> EmbeddedServer:
        server = EmbeddedServer(ServeOptions(repository=REPOSITORY, http_port=0, grpc_port=0, metrics_port=0))
        server.start()
        self.channel = grpc.insecure_channel(server.grpc_address)
        return server

    def close(self) -> None:
        """Ends the server."""
        self.channel.close()
        self.server.kill()

    def over_http(self, data: bytes) -> None:
        """Posts a document: the header's value in its first line, then the body."""
        head, _, body = data.partition(b"\n")
        with self._frontend():
            code, text = self._post(body, head.strip())
            self._judge(f"HTTP {code}", text, is_good=code == 200, is_refusal=400 <= code < 500)

    def over_grpc(self, data: bytes) -> None:
        """Sends a message as it is."""
        with self._frontend():
            try:
                self.channel.unary_unary(METHOD)(data, timeout=_LIMIT_S)
            except grpc.RpcError as error:
                code, text = error.code().name, str(error.details())  # type: ignore[attr-defined]
                if code == "UNAVAILABLE" and not _OURS.search(text) and not text.startswith(LATE_WORDS):
                    raise ConnectionError(text) from error
                self._judge(code, text, is_refusal=code in ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"))

    @contextlib.contextmanager
    def _frontend(self) -> Iterator[None]:
        self.asked += 1
        try:
            yield
            if self.asked % _EVERY == 0:
                self.require_good()
        except (ConnectionError, http.client.HTTPException) as error:
            if self.server.wait(timeout_s=2) is None:
                # It closed a connection, as it may, and lives on.
                self.seen["connections closed"] += 1
                self.require_good()
                raise InputError("connection", got=type(error).__name__) from error
            self.seen["endings of the frontend"] += 1
            self.close()
            self.server = self._started()

    def require_good(self) -> None:
        """Asks about a good row."""
        head, _, body = (CORPUS / "http" / "good").read_bytes().partition(b"\n")
        code, text = self._post(body, head.strip())
        if code != 200 or '"label"' not in text:
            raise ServerFaultFound(f"a good row is answered by {code} {text[:200]}")

    def _post(self, body: bytes, length: bytes) -> tuple[int, str]:
        # The client itself refuses line ends in a header.
        length = length.translate(None, b"\r\n\0")
        headers = {LENGTH: length.decode("latin-1")} if length else {}
        with contextlib.closing(
            http.client.HTTPConnection(self.server.http_address, timeout=_LIMIT_S)
        ) as connection:
            connection.request("POST", PATH, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")

    def _judge(self, code: str, text: str, *, is_good: bool = False, is_refusal: bool = False) -> None:
        self.seen[code] += 1
        if is_good:
            return
        if not is_refusal and _OURS.search(text):
            raise ServerFaultFound(f"{code}: {text[:300]}")
        raise InputError("request", got=code)

    def notes(self) -> str:
        """Answers by code, and endings."""
        return ", ".join(f"{name} {count}" for name, count in sorted(self.seen.items()))


def is_bearable(data: bytes) -> bool:
    """Whether no tensor is so large that Triton itself may end, which is known."""
    try:
        document: Any = json.loads(data.partition(b"\n")[2])
        shapes = [one.get("shape", []) for one in document.get("inputs", [])]
        # Texts and lists times a number would be long ones.
        whole = [shape for shape in shapes if all(isinstance(size, int | float) for size in shape)]
        return all(math.prod(shape) <= _MOST_NUMBERS for shape in whole)
    except (ValueError, TypeError, AttributeError):
        return True
    except OverflowError:
        return False


def _http_documents(corpus: list[bytes]) -> st.SearchStrategy[bytes]:
    bodies = [data[1:] for data in corpus if data.startswith(b"\n")]
    return (changed_json(bodies).map(b"\n".__add__) | changed_bytes(corpus)).filter(is_bearable)


_NUMBERS = st.sampled_from([0, 1, -1, 2, 8, 64, 1 << 31, (1 << 63) - 1, -(1 << 63)])
_REALS = st.floats() | st.sampled_from([float("nan"), float("inf"), 1e308, 0.5])
_USUAL = ["", "image", "label", "digits_cascade", "digits_small", "\0", "a" * 300]
_WORDS = st.sampled_from(_USUAL) | st.text(max_size=9)
_KINDS = {"int64_param": _NUMBERS, "double_param": _REALS, "string_param": _WORDS, "bool_param": st.booleans()}
_NAMES = st.sampled_from(sorted({*PARAMETERS, *PROTOCOL, "binary_data_size", "classification"})) | _WORDS


@st.composite
def changed_message(draw: st.DrawFn, corpus: list[bytes]) -> bytes:
    """A message of which some fields say something else."""
    message = service_pb2.ModelInferRequest.FromString(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(1, 4))):
        change = draw(st.sampled_from(["parameter", "parameter", "parameter", "shape", "type", "bytes", "field"]))
        tensor = message.inputs[0] if message.inputs else message.inputs.add()
        if change == "parameter":
            holder = draw(st.sampled_from([message, message, message, tensor]))
            kind = draw(st.sampled_from(sorted(_KINDS)))
            setattr(holder.parameters[draw(_NAMES)], kind, draw(_KINDS[kind]))
        elif change == "shape":
            shape = draw(st.lists(_NUMBERS, max_size=5))
            tensor.shape[:] = shape if 0 <= math.prod(shape) <= _MOST_NUMBERS else [1, 1, 8, 8]
        elif change == "type":
            tensor.datatype = draw(st.sampled_from(["FP32", "FP64", "FP16", "INT64", "BYTES", "BOOL", "", "x"]))
        elif change == "bytes":
            message.raw_input_contents[:] = draw(st.lists(st.binary(max_size=300), max_size=2))
        else:
            setattr(message, draw(st.sampled_from(["model_name", "model_version", "id"])), draw(_WORDS))
    return bytes(message.SerializeToString())


def _grpc_documents(corpus: list[bytes]) -> st.SearchStrategy[bytes]:
    return changed_message(corpus) | changed_message(corpus) | changed_bytes(corpus)


@contextlib.contextmanager
def served_reader(name: str) -> Iterator[Reader]:
    """The reader `http` or `grpc`, with a server of its own."""
    target = Target()
    ways: dict[str, tuple[Callable[[bytes], None], Any]] = {
        "http": (target.over_http, _http_documents),
        "grpc": (target.over_grpc, _grpc_documents),
    }
    read, documents = ways[name]
    try:
        yield Reader(name=name, read=read, documents=documents, notes=target.notes)
    finally:
        target.close()
