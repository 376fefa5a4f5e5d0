"""The fake server on a port, over gRPC and over HTTP."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from tests.fakes.kserve import DTYPES, CodedError, FakeKServe

# As Triton 24.10 maps them; what is not here answers 400.
HTTP_STATUS = {"INTERNAL": 500, "NOT_FOUND": 404, "UNAVAILABLE": 503, "UNIMPLEMENTED": 501}


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, fake: FakeKServe) -> None:
        self.fake = fake

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's own spelling
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=self.fake.ready)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = [model.name for model in self.fake.models]
        return service_pb2.ModelReadyResponse(ready=self.fake.ready and request.name in names)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        with _codes(context):
            return ParseDict(self.fake.describe(request.name), service_pb2.ModelMetadataResponse())

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        with _codes(context):
            model = self.fake.model(request.name)
            return ParseDict({"config": model.config()}, service_pb2.ModelConfigResponse())

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        with _codes(context):
            self.fake.headers.append(dict(context.invocation_metadata()))
            tensors = {
                slot.name: _array_of(raw, slot.datatype).reshape(tuple(slot.shape))
                for slot, raw in zip(request.inputs, request.raw_input_contents, strict=True)
            }
            parameters = {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in request.parameters.items()}
            wanted = [output.name for output in request.outputs]
            answer = self.fake.infer(request.model_name, tensors, parameters, wanted)
            response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
            for name, array in answer.items():
                response.outputs.add(name=name, datatype=_triton_dtype(array), shape=array.shape)
                response.raw_output_contents.append(array.tobytes())
            return response


@contextmanager
def _codes(context: Any) -> Iterator[None]:
    try:
        yield
    except CodedError as refusal:
        context.abort(grpc.StatusCode[refusal.code], refusal.message)


def _array_of(raw: bytes, dtype: str) -> np.ndarray:
    if dtype == "BYTES":
        return deserialize_bytes_tensor(raw)
    return np.frombuffer(raw, DTYPES[dtype])


def _triton_dtype(array: np.ndarray) -> str:
    return next(name for name, dtype in DTYPES.items() if array.dtype == dtype)


class GrpcFront:
    """The fake over gRPC on a free port while the block runs.

    Args:
        fake: what is served.
        port: to come back on a known one.
        tls: certificates to speak TLS with.
    """

    def __init__(self, fake: FakeKServe, port: int = 0, *, tls: grpc.ServerCredentials | None = None) -> None:
        self.fake = fake
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(fake), self._server)
        place = f"127.0.0.1:{port}"
        self.port = (
            self._server.add_insecure_port(place) if tls is None else self._server.add_secure_port(place, tls)
        )
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> "GrpcFront":
        self._server.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def stop(self, *, wait: bool = True) -> None:
        """Goes away at once, cutting off requests under way; with wait=False it may be called from one."""
        stopped = self._server.stop(grace=None)
        if wait:
            stopped.wait()


class HttpFront:
    """The fake over HTTP with the binary tensor extension, on a free port while the block runs."""

    def __init__(self, fake: FakeKServe) -> None:
        self.fake = fake
        handler = type("Handler", (_Handler,), {"fake": fake})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "HttpFront":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _array_of_json(slot: Any) -> np.ndarray:
    """A tensor whose data are JSON, text among them."""
    data = slot["data"]
    if slot["datatype"] == "BYTES":
        data = [text.encode() for text in data]
    return np.array(data, DTYPES[slot["datatype"]]).reshape(slot["shape"])


class _Handler(BaseHTTPRequestHandler):
    fake: FakeKServe
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes, between which the other side's acknowledgement takes 40 ms.
    disable_nagle_algorithm = True

    def log_message(self, *details: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._infer)

    def _answer(self, action: Any) -> None:
        try:
            body, headers = action()
            status = 200
        except CodedError as refusal:
            body, headers = json.dumps({"error": refusal.message}).encode(), {}
            status = HTTP_STATUS.get(refusal.code, 400)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _get(self) -> tuple[bytes, dict[str, str]]:
        if self.path == "/v2/health/live":
            return b"", {}
        if self.path == "/v2/health/ready":
            return self._ready(self.fake.ready)
        match = re.fullmatch(r"/v2/models/([^/]+)(?:/versions/1)?(/ready|/config)?", self.path)
        if match is None:
            raise CodedError("NOT_FOUND", "Not Found")
        name, part = match.groups()
        if part == "/ready":
            return self._ready(self.fake.ready and name in [model.name for model in self.fake.models])
        if part == "/config":
            return json.dumps(self.fake.model(name).config()).encode(), {}
        return json.dumps(self.fake.describe(name)).encode(), {}

    def _ready(self, ready: bool) -> tuple[bytes, dict[str, str]]:
        if not ready:
            raise CodedError("INVALID_ARGUMENT", "not ready")
        return b"", {}

    def _infer(self) -> tuple[bytes, dict[str, str]]:
        self.fake.headers.append(dict(self.headers))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match = re.fullmatch(r"/v2/models/([^/]+)(?:/versions/1)?/infer", self.path)
        if match is None:
            raise CodedError("NOT_FOUND", "Not Found")
        size = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        request = json.loads(body[:size])
        tensors, start = {}, size
        for slot in request["inputs"]:
            if "data" in slot:
                tensors[slot["name"]] = _array_of_json(slot)
                continue
            end = start + slot["parameters"]["binary_data_size"]
            raw = _array_of(body[start:end], slot["datatype"])
            tensors[slot["name"]], start = raw.reshape(slot["shape"]), end
        parameters = request.get("parameters", {})
        is_binary = parameters.pop("binary_data_output", False) or any(
            output.get("parameters", {}).get("binary_data") for output in request.get("outputs", [])
        )
        wanted = [output["name"] for output in request.get("outputs", [])]
        answer = self.fake.infer(match.group(1), tensors, parameters, wanted)
        if not is_binary:
            told = [
                {"name": name, "datatype": _triton_dtype(a), "shape": list(a.shape), "data": a.ravel().tolist()}
                for name, a in answer.items()
            ]
            return json.dumps({"model_name": match.group(1), "model_version": "1", "outputs": told}).encode(), {}
        described = [
            {
                "name": name,
                "datatype": _triton_dtype(array),
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in answer.items()
        ]
        header = json.dumps({"model_name": match.group(1), "model_version": "1", "outputs": described}).encode()
        raw = b"".join(array.tobytes() for array in answer.values())
        return header + raw, {"Inference-Header-Content-Length": str(len(header))}
