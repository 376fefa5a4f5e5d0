"""A KServe-v2 server in this process: real sockets and real protocol messages, models that are functions.

`FakeKServe` holds the models and the misbehaviour a test asks for; `GrpcFront` and `HttpFront` put it on a
port. Error codes and their HTTP statuses are those that Triton 24.10 gives for the same mistakes.
"""

import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.decision import PARAMETERS

Rows = np.ndarray
Parameters = Mapping[str, Any]
DTYPES = {"FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}
DTYPES |= {"UINT8": np.uint8, "BYTES": np.object_}


class CodedError(Exception):
    """What a model raises to answer with a code; names as gRPC's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True)
class Slot:
    """A tensor: dims are those of one row."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class FakeModel:
    """A model.

    Args:
        answer: from rows (n, *dims), of several inputs by name, and the request's parameters to the outputs by
            name.
        max_batch_size: 0 for a model whose own first axis is the batch.
        output_kind: what its configuration says of its scores.
        settings: more of its configuration, as JSON has it.
    """

    name: str
    answer: Callable[[Any, Parameters], Mapping[str, Rows]]
    inputs: Sequence[Slot]
    outputs: Sequence[Slot]
    max_batch_size: int = 8
    platform: str = "python"
    output_kind: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"name": self.name, "max_batch_size": self.max_batch_size, **self.settings}
        if self.output_kind is not None:
            config["parameters"] = {"output_kind": {"string_value": self.output_kind}}
        return config

    def metadata(self) -> dict[str, Any]:
        def tensors(slots: Sequence[Slot]) -> list[dict[str, Any]]:
            return [{"name": s.name, "datatype": s.dtype, "shape": [-1, *s.dims]} for s in slots]

        return {
            "name": self.name,
            "versions": ["1"],
            "platform": self.platform,
            "inputs": tensors(self.inputs),
            "outputs": tensors(self.outputs),
        }


@dataclass(frozen=True)
class Call:
    """An inference request that reached the server."""

    model: str
    rows: Any
    parameters: dict[str, Any]
    outputs: tuple[str, ...]


@dataclass
class FakeKServe:
    """The models behind every front.

    Args:
        models: by any iterable.
        delay_s: time every inference takes.
        ready: what the readiness calls say.
    """

    models: Sequence[FakeModel]
    delay_s: float = 0.0
    ready: bool = True
    calls: list[Call] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    described: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: list[CodedError] = []
        self._at_once = 0

    def fail_next(self, count: int, code: str = "UNAVAILABLE", message: str = "asked to fail") -> None:
        """The next requests for inference fail with this code."""
        self._failures += [CodedError(code, message)] * count

    def model(self, name: str) -> FakeModel:
        found = next((model for model in self.models if model.name == name), None)
        if found is None:
            raise CodedError("NOT_FOUND", f"Request for unknown model: '{name}' is not found")
        return found

    def describe(self, name: str) -> dict[str, Any]:
        with self._lock:
            self.described += 1
        return self.model(name).metadata()

    def infer(
        self, name: str, tensors: Mapping[str, Rows], parameters: dict[str, Any], outputs: Sequence[str] = ()
    ) -> dict[str, Rows]:
        """Answers as the server would, misbehaviour included."""
        model = self.model(name)
        rows = self._checked(model, tensors, outputs)
        with self._lock:
            self.calls.append(Call(name, rows, parameters, tuple(outputs)))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            failure = self._failures.pop(0) if self._failures else None
        try:
            time.sleep(self.delay_s)
            if failure is not None:
                raise failure
            answer = model.answer(rows, parameters)
        finally:
            with self._lock:
                self._at_once -= 1
        return {name: np.ascontiguousarray(a) for name, a in answer.items() if not outputs or name in outputs}

    def _checked(self, model: FakeModel, tensors: Mapping[str, Rows], outputs: Sequence[str]) -> Any:
        optional = {one["name"] for one in model.settings.get("input", ()) if one.get("optional")}
        known = {slot.name: slot for slot in model.inputs if slot.name not in optional}
        _refuse_unknown("input", tensors, known, model=model)
        _refuse_unknown("output", outputs, [slot.name for slot in model.outputs], model=model)
        if len(tensors) != len(known):
            raise CodedError("INVALID_ARGUMENT", f"expected {len(known)} inputs but got {len(tensors)} inputs")
        for name, rows in tensors.items():
            self._check(model, name, rows, known[name])
        return dict(tensors) if len(tensors) > 1 else next(iter(tensors.values()))

    def _check(self, model: FakeModel, name: str, rows: Rows, slot: Slot) -> None:
        if rows.dtype != DTYPES[slot.dtype]:
            raise CodedError(
                "INVALID_ARGUMENT", f"inference input '{name}' data-type is '{rows.dtype}', expects '{slot.dtype}'"
            )
        free = rows.ndim == 1 + len(slot.dims) and all(
            want in (got, -1) for got, want in zip(rows.shape[1:], slot.dims, strict=True)
        )
        if not free or not len(rows):
            raise CodedError(
                "INVALID_ARGUMENT",
                f"[request id: <id_unknown>] unexpected shape for input '{name}' for model '{model.name}'. "
                f"Expected {[-1, *slot.dims]}, got {list(rows.shape)}.",
            )
        if 0 < model.max_batch_size < len(rows):
            raise CodedError(
                "INVALID_ARGUMENT",
                f"[request id: <id_unknown>] inference request batch-size must be <= {model.max_batch_size} "
                f"for '{model.name}'",
            )


def _refuse_unknown(kind: str, names: Iterable[str], known: Container[str], *, model: FakeModel) -> None:
    for name in names:
        if name not in known:
            raise CodedError("INVALID_ARGUMENT", f"unexpected inference {kind} '{name}' for model '{model.name}'")


# -- models to serve --------------------------------------------------------------------------------

CLASSES, STAGES = 10, 3
IMAGE = Slot("image", "FP32", (1, 8, 8))
CASCADE_OUTPUTS = (
    Slot("probabilities", "FP32", (CLASSES,)),
    Slot("label", "INT64", (1,)),
    Slot("confidence", "FP32", (1,)),
    Slot("exit_stage", "INT32", (1,)),
    Slot("cost", "FP32", (1,)),
    Slot("status", "INT32", (1,)),
)


def images(keys: Sequence[int]) -> Rows:
    """float32 (n, 1, 8, 8) whose first pixel is the key that the fake models answer by."""
    rows = np.zeros((len(keys), 1, 8, 8), np.float32)
    rows[:, 0, 0, 0] = keys
    return rows


def logits_of(rows: Rows) -> Rows:
    """float32 (n, k), largest at key mod k."""
    logits = np.zeros((len(rows), CLASSES), np.float32)
    logits[np.arange(len(rows)), rows[:, 0, 0, 0].astype(int) % CLASSES] = 4
    return logits


def cascade_answer(rows: Rows, parameters: Parameters) -> dict[str, Rows]:
    """Label key mod k, exit stage (key div k) mod s within min_stage and max_stage; NaN and -1 are refused."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2, 3)))
    if len(bad):
        raise CodedError(
            "INVALID_ARGUMENT",
            f"input image: got NaN or infinity in {len(bad)} of {len(rows)} rows, first {bad[0]}",
        )
    unknown = set(parameters) - set(PARAMETERS)
    if unknown:
        raise CodedError("INVALID_ARGUMENT", f"request parameters: got {', '.join(sorted(unknown))}")
    keys = rows[:, 0, 0, 0].astype(int)
    p = np.exp(logits_of(rows))
    p /= p.sum(axis=1, keepdims=True)
    wanted = (keys // CLASSES) % STAGES
    stage = np.clip(wanted, parameters.get("min_stage", 0), parameters.get("max_stage", STAGES - 1))
    return {
        "probabilities": p.astype(np.float32),
        "label": (keys % CLASSES)[:, None].astype(np.int64),
        "confidence": p.max(axis=1, keepdims=True).astype(np.float32),
        "exit_stage": stage[:, None].astype(np.int32),
        "cost": (1000.0 * (stage + 1))[:, None].astype(np.float32),
        "status": np.where(wanted > stage, 8, 0)[:, None].astype(np.int32),
    }


def cascade(name: str = "digits_cascade", **changes: Any) -> FakeModel:
    """A cascade of digits that answers by the first pixel."""
    made: dict[str, Any] = {"answer": cascade_answer, "inputs": (IMAGE,), "outputs": CASCADE_OUTPUTS, **changes}
    return FakeModel(name, **made)


TEXT = Slot("text", "BYTES", (1,))


def texts_of(rows: Rows) -> list[bytes]:
    """The texts of rows (n, 1)."""
    return rows[:, 0].tolist()


def text_answer(rows: Rows, parameters: Parameters) -> dict[str, Rows]:
    """Label number of bytes mod k; what is no UTF-8 is refused."""
    for row, text in enumerate(texts_of(rows)):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise CodedError("INVALID_ARGUMENT", f"input text: row {row} is no UTF-8") from error
    return cascade_answer(images([len(text) % CLASSES for text in texts_of(rows)]), parameters)


def text_cascade(name: str = "reviews", **changes: Any) -> FakeModel:
    """A cascade of text that answers by the number of bytes."""
    return cascade(name, **{"answer": text_answer, "inputs": (TEXT,), **changes})


def member(name: str = "digits_small", **changes: Any) -> FakeModel:
    """A plain member with logits."""
    made: dict[str, Any] = {
        "answer": lambda rows, parameters: {"logits": logits_of(rows)},
        "inputs": (IMAGE,),
        "outputs": (Slot("logits", "FP32", (CLASSES,)),),
        "platform": "onnxruntime_onnx",
        **changes,
    }
    return FakeModel(name, **made)
