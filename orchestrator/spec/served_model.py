"""A model as a server describes it: which rows fit, how they are split into requests, which outputs to ask for."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import InputError, ServerFaultError
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.cascade import PLAN_SHA256
from orchestrator.spec.output_kind import OUTPUT_KINDS, PARAMETER, SCORE_DTYPES
from orchestrator.spec.triton import ONNX_RUNTIME, backend_of, stated_instances


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor as served: Triton dtype, and shape with the batch axis, -1 where a size is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_c_string: bool = False  # whether ONNX Runtime reads its text, which is UTF-8 without zeros then

    @property
    def is_text(self) -> bool:
        """Whether its elements are text, which requests and graphs call BYTES, and configurations STRING."""
        return self.dtype in ("BYTES", "STRING")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model as served."""

    name: str  # Triton model name
    platform: str  # "ensemble", or the server's word for the backend
    versions: tuple[str, ...]  # the served ones
    max_batch_size: int  # most rows of one request; 0 where the model itself sets no limit
    inputs: tuple[TensorInfo, ...]  # its tensors
    outputs: tuple[TensorInfo, ...]  # its tensors
    # "logits" or "probabilities", from a parameter of its configuration; None without one
    output_kind: str | None = None
    # how many requests it runs at once; None where its configuration leaves that to the server
    instances: int | None = None
    # name of the output that holds a score per class; None where that follows from the outputs
    scores: str | None = None
    # hash of a cascade's plan, from a parameter of its configuration; None without one
    plan_sha256: str | None = None

    @property
    def answers_itself(self) -> bool:
        """Whether it is one of our cascades or ensembles, which give whole answers and not just scores.

        It has every column of `ANSWER_COLUMNS`: a column added there makes cascades rendered before look like
        plain models until they are rendered again.
        """
        return {tensor.name for tensor in self.outputs} >= set(ANSWER_COLUMNS)

    @property
    def has_stages(self) -> bool:
        """Whether its answers say an exit stage; other models ignore the parameters of a request."""
        return any(tensor.name == "exit_stage" for tensor in self.outputs)

    @property
    def version(self) -> int | None:
        """The newest served version, which answers requests that name none; None where the server lists none."""
        return max((int(version) for version in self.versions if version.isdecimal()), default=None)

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of one row of its single input, -1 where the size is free; InputError as for `input_tensor`."""
        return input_tensor(self).shape[1:]


def model_from_json(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> ModelInfo:
    """A model from the server's two JSON documents about it, in which whole numbers may be strings."""
    name = str(metadata.get("name", config.get("name", "")))
    try:
        # A request need not have them.
        optional = {str(one["name"]) for one in config.get("input", ()) if one.get("optional")}
        inputs = [_tensor(one) for one in metadata.get("inputs", ())]
        if backend_of(str(config.get("backend", "")), str(metadata.get("platform", ""))) == ONNX_RUNTIME:
            inputs = [dataclasses.replace(one, is_c_string=one.is_text) for one in inputs]
        return ModelInfo(
            name=name,
            platform=str(metadata.get("platform", "")),
            versions=tuple(map(str, metadata.get("versions", ()))),
            max_batch_size=int(config.get("max_batch_size", 0)),
            inputs=tuple(tensor for tensor in inputs if tensor.name not in optional),
            outputs=tuple(map(_tensor, metadata.get("outputs", ()))),
            output_kind=_output_kind(config),
            instances=stated_instances(config),
            plan_sha256=config.get("parameters", {}).get(PLAN_SHA256, {}).get("string_value"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        got = f"a document that cannot be read ({error!r})"
        raise ServerFaultError(f"metadata of model {name}", got=got) from error


def identity_from_config(config: Mapping[str, Any]) -> str:
    """What servers that answer alike have in common: the plan of a cascade, else the tensors; in words.

    Cascades that were rendered before configurations had the plan's hash count as models without a plan.
    """
    plan = config.get("parameters", {}).get(PLAN_SHA256)
    if plan is not None:
        return f"plan {plan['string_value'][:12]}"
    listed = [
        listed_tensors(
            (str(one["name"]), str(one["data_type"]).removeprefix("TYPE_"), [int(size) for size in one["dims"]])
            for one in side
        )
        for side in (config.get("input", ()), config.get("output", ()))
    ]
    return " -> ".join(listed)


def _output_kind(config: Mapping[str, Any]) -> str | None:
    value = config.get("parameters", {}).get(PARAMETER)
    if value is None:
        return None
    kind = str(value["string_value"])
    if kind not in OUTPUT_KINDS:
        raise ValueError(f"parameter {PARAMETER} {kind!r}, not {' or '.join(OUTPUT_KINDS)}")
    return kind


def _tensor(value: Mapping[str, Any]) -> TensorInfo:
    shape = tuple(int(size) for size in value.get("shape", ()))
    return TensorInfo(name=str(value["name"]), dtype=str(value["datatype"]), shape=shape)


def input_tensor(info: ModelInfo) -> TensorInfo:
    """The one input of a model that takes batches; InputError where it has several inputs, or no batch axis."""
    if len(info.inputs) != 1:
        names = ", ".join(tensor.name for tensor in info.inputs) or "none"
        raise InputError(f"model {info.name}", got=f"{len(info.inputs)} inputs ({names})", expected="one input")
    tensor = info.inputs[0]
    if tensor.shape[:1] != (-1,):
        what = f"model {info.name} input {tensor.name}"
        raise InputError(what, got=f"shape {list(tensor.shape)}", expected="a free batch axis")
    return tensor


def possible_scores(info: ModelInfo) -> list[str]:
    """Names of the outputs that may hold a score per class: floating-point, (n, k).

    Where there are several, those with a single column are left out.
    """
    floats = [t for t in info.outputs if t.dtype in SCORE_DTYPES and len(t.shape) == 2]
    return [t.name for t in floats if len(floats) == 1 or t.shape[1] != 1]


def scores_output(info: ModelInfo) -> str:
    """The output that holds a score per class.

    It is the one that was named, else "probabilities", else the only one of `possible_scores`.

    Raises:
        InputError: there is none, or several.
    """
    if info.scores is not None:
        return info.scores
    names = possible_scores(info)
    if "probabilities" in names:
        return "probabilities"
    if len(names) != 1:
        raise no_single_scores(info)
    return names[0]


def class_count(info: ModelInfo) -> int | None:
    """How many classes a model has; None where its configuration leaves that free. See `scores_output`."""
    size = next(t.shape[-1] for t in info.outputs if t.name == scores_output(info))
    return size if size > 0 else None


def no_single_scores(info: ModelInfo, *, fix: str | None = None) -> InputError:
    """The error for a model that has no output that may hold its scores, or several."""
    listed = listed_tensors((t.name, t.dtype, t.shape) for t in info.outputs)
    return InputError(
        f"model {info.name}", got=f"outputs {listed}", expected="one floating-point [n, classes]", fix=fix
    )


def listed_tensors(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    """Names, dtypes and shapes of tensors, for an error."""
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, dtype, shape in tensors) or "none"


def wanted_outputs(info: ModelInfo) -> tuple[str, ...] | None:
    """The outputs that a `ServedAnswers` is made of, or None for all the model has.

    Naming outputs costs bytes and time per request, so they are named only where others would be sent, too.
    """
    scores = scores_output(info)
    rest = ANSWER_COLUMNS if scores == "probabilities" else ()
    wanted = tuple(t.name for t in info.outputs if t.name == scores or t.name in rest)
    return None if len(wanted) == len(info.outputs) else wanted


def chunks(rows: int, limit: int) -> list[slice]:
    """Parts of nearly equal size, in order, none larger than the limit (0 means no limit)."""
    if limit <= 0 or rows <= limit:
        return [slice(0, rows)]
    # Equal parts finish together; full parts and a small rest would not.
    size = math.ceil(rows / math.ceil(rows / limit))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
