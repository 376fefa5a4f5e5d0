"""A stand-in for the server's Python module: members are Python functions, senders remember what they sent."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

Rows = npt.NDArray[Any]
MemberFunction = Callable[[Any], Rows | dict[str, Rows]]


class TritonError:
    """An error with a code, as the server's."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class TritonModelError(Exception):
    """What a model raises that does not load; the server calls it TritonModelException."""


class Tensor:
    """A named array; like the server's it keeps what it was given."""

    def __init__(self, name: str, array: Rows) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Rows:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def column(self, name: str) -> Rows:
        """The output's array."""
        return next(t.as_numpy() for t in self._tensors if t.name() == name)


class LentResponse(InferenceResponse):
    """A member's response: like the server's, its memory is somebody else's once it is let go."""

    def __del__(self) -> None:
        for tensor in self.output_tensors():
            array = tensor.as_numpy()
            if array.dtype.kind == "f":
                array.fill(float("nan"))


class Sender:
    """Takes exactly one final response."""

    def __init__(self) -> None:
        self.response: InferenceResponse | None = None
        self.done = threading.Event()

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        if self.response is not None:
            raise RuntimeError("response sender has been closed")
        if flags != 1:
            raise RuntimeError("a default-mode model must send its response with the final flag")
        self.response = response
        self.done.set()


class Request:
    """A request as `execute` receives it."""

    def __init__(
        self,
        tensors: Mapping[str, Rows],
        *,
        parameters: Mapping[str, Any] | None = None,
        wanted: Sequence[str] = (),
    ) -> None:
        self.tensors = {name: Tensor(name, array) for name, array in tensors.items()}
        self._parameters, self._wanted = dict(parameters or {}), list(wanted)
        self.sender = Sender()
        self.cancelled = False

    def parameters(self) -> str:
        return json.dumps(self._parameters) if self._parameters else ""

    def inputs(self) -> list[Tensor]:
        return list(self.tensors.values())

    def requested_output_names(self) -> list[str]:
        return self._wanted

    def get_response_sender(self) -> Sender:
        return self.sender

    def is_cancelled(self) -> bool:
        return self.cancelled


class Metric:
    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels, self.value = dict(labels), 0.0

    def increment(self, value: float) -> None:
        if value < 0:
            raise ValueError("a counter cannot decrease")
        self.value += value

    def set(self, value: float) -> None:
        self.value = value


class FakeTriton:
    """The module `triton_python_backend_utils` with members that are functions.

    Args:
        members: model name -> function from rows (n, *dims) to its output, or to all of them by name; an
            exception becomes its error.
        input_name: of every member; None where they have several, and get all of them by name.
        output_name: of members with one output.
    """

    TRITONSERVER_MEMORY_CPU = 0
    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    TritonError = TritonError
    TritonModelException = TritonModelError
    Tensor = Tensor
    InferenceResponse = InferenceResponse

    def __init__(
        self, members: Mapping[str, MemberFunction], *, input_name: str | None = "x", output_name: str = "logits"
    ) -> None:
        self.members = dict(members)
        self.input_name, self.output_name = input_name, output_name
        self.asked: list[tuple[str, int]] = []
        self.asked_versions: list[tuple[str, int]] = []
        # model name -> versions that are loaded; models not named here have version 1.
        self.versions: dict[str, set[int]] = {}
        self.forwarded: list[Tensor] = []
        self.log: list[str] = []
        self.metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Metric] = {}
        self._lock = threading.Lock()
        fake = self

        class InferenceRequest:
            def __init__(
                self,
                *,
                model_name: str,
                model_version: int = -1,
                requested_output_names: list[str],
                inputs: list[Tensor],
                preferred_memory: object,
            ) -> None:
                self.model, self.inputs, self.wanted = model_name, inputs, requested_output_names
                self.version = model_version
                assert input_name is None or [one.name() for one in inputs] == [input_name]
                assert len({len(one.as_numpy()) for one in inputs}) == 1

            def exec(self) -> InferenceResponse:
                return fake._exec(self.model, self.version, self.inputs, self.wanted)

        class MetricFamily:
            COUNTER, GAUGE = 0, 1

            def __init__(self, *, name: str, description: str, kind: int) -> None:
                assert description
                assert kind in (MetricFamily.COUNTER, MetricFamily.GAUGE)
                self.name = name

            def Metric(self, labels: Mapping[str, str]) -> Metric:  # noqa: N802 - the server's own spelling
                return fake.metrics.setdefault((self.name, tuple(sorted(labels.items()))), Metric(labels))

        class Logger:
            log_info = log_warn = log_error = staticmethod(lambda text: fake.log.append(text))

        self.InferenceRequest, self.MetricFamily, self.Logger = InferenceRequest, MetricFamily, Logger

    def _exec(self, model: str, version: int, inputs: list[Tensor], wanted: list[str]) -> InferenceResponse:
        tensor, by_name = inputs[0], {one.name(): one.as_numpy() for one in inputs}
        rows = tensor.as_numpy()
        with self._lock:
            self.asked.append((model, len(rows)))
            self.asked_versions.append((model, version))
            self.forwarded.append(tensor)
        if not self.is_model_ready(model, "" if version < 0 else str(version)):
            return InferenceResponse(
                error=TritonError(f"Failed for execute the inference request. Model '{model}' is not ready.")
            )
        try:
            said = self.members[model](rows if self.input_name is not None else by_name)
            outputs = said if isinstance(said, dict) else {self.output_name: said}
            assert set(wanted) <= set(outputs), f"{model} has no output {wanted}"
            return LentResponse([Tensor(name, outputs[name].copy()) for name in wanted])
        except Exception as error:
            return InferenceResponse(error=TritonError(str(error)))

    def PreferredMemory(self, memory: int, device: int) -> tuple[int, int]:  # noqa: N802 - the server's own spelling
        return memory, device

    def get_input_tensor_by_name(self, request: Request, name: str) -> Tensor | None:
        return request.tensors.get(name)

    def get_output_tensor_by_name(self, response: InferenceResponse, name: str) -> Tensor | None:
        return next((t for t in response.output_tensors() if t.name() == name), None)

    def is_model_ready(self, name: str, version: str = "") -> bool:
        loaded = self.versions.get(name, {1}) if name in self.members else set()
        return bool(loaded) if not version else int(version) in loaded

    def total(self, name: str, **labels: str) -> float:
        """Sum of a counter over the series that carry these labels."""
        return sum(
            metric.value
            for (family, _), metric in self.metrics.items()
            if family == name and all(metric.labels.get(k) == v for k, v in labels.items())
        )
