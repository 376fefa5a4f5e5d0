"""A model as a server describes it: which rows fit, how they are split into requests, which outputs to ask for."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InputError, ServerFaultError
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.output_kind import OUTPUT_KINDS, PARAMETER, SCORE_DTYPES
from orchestrator.spec.request import INPUT_DTYPES
from orchestrator.spec.triton import stated_instances

Array = npt.NDArray[Any]
# Rows of one tensor, of several by their names, or texts.
AnyRows = Array | Mapping[str, Array] | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor as served: Triton dtype, and shape with the batch axis, -1 where a size is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]

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
        inputs = map(_tensor, metadata.get("inputs", ()))
        return ModelInfo(
            name=name,
            platform=str(metadata.get("platform", "")),
            versions=tuple(map(str, metadata.get("versions", ()))),
            max_batch_size=int(config.get("max_batch_size", 0)),
            inputs=tuple(tensor for tensor in inputs if tensor.name not in optional),
            outputs=tuple(map(_tensor, metadata.get("outputs", ()))),
            output_kind=_output_kind(config),
            instances=stated_instances(config),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        got = f"a document that cannot be read ({error!r})"
        raise ServerFaultError(f"metadata of model {name}", got=got) from error


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


def ready_rows(info: ModelInfo, rows: AnyRows) -> dict[str, Array]:
    """The tensors of some rows as requests carry them, by name in the model's order; text as UTF-8 bytes.

    Args:
        info: the model that is asked.
        rows: of a model with one input (n, *dims), of one that takes a text per row also (n,) or a list of texts;
            else a mapping from the name of each input to such an array.

    Raises:
        InputError: a tensor is missing or not the model's, is of another dtype, rank or size, holds no text where
            it should, has another number of rows than the first, or none.
    """
    given = rows if isinstance(rows, Mapping) else {input_tensor(info).name: rows}
    names = [tensor.name for tensor in info.inputs]
    if sorted(given) != sorted(names):
        got, expected = f"tensors {', '.join(given) or 'none'}", ", ".join(names) or "none"
        raise InputError(f"inputs of model {info.name}", got=got, expected=expected)
    ready = {tensor.name: _ready(info, tensor, given[tensor.name]) for tensor in info.inputs}
    counts = {name: len(array) for name, array in ready.items()}
    if len(set(counts.values())) > 1:
        got = ", ".join(f"{count} rows in {name}" for name, count in counts.items())
        raise InputError(f"inputs of model {info.name}", got=got, expected="the same number in each")
    return ready


def _ready(info: ModelInfo, tensor: TensorInfo, rows: Any) -> Array:
    what = f"input {tensor.name} of model {info.name}"
    if tensor.shape[:1] != (-1,):
        what = f"model {info.name} input {tensor.name}"
        raise InputError(what, got=f"shape {list(tensor.shape)}", expected="a free batch axis")
    array = text_rows(what, rows) if tensor.is_text else np.asarray(rows)
    dtype = numpy_dtype(tensor, what)
    expected = f"[n, {', '.join('any' if size < 0 else str(size) for size in tensor.shape[1:])}]"
    if array.dtype != dtype:
        expected = f"{dtype} ({tensor.dtype})"
        raise InputError(
            what, got=f"dtype {array.dtype}", expected=expected, fix=f"convert with .astype('{dtype}')"
        )
    if tensor.is_text and array.ndim == 1 and tensor.shape[1:] in ((1,), (-1,)):
        array = array[:, None]
    if array.ndim != len(tensor.shape):
        fix = "add the batch axis with rows[None]" if array.ndim == len(tensor.shape) - 1 else None
        raise InputError(what, got=f"rank {array.ndim}, shape {list(array.shape)}", expected=expected, fix=fix)
    pairs = zip(array.shape[1:], tensor.shape[1:], strict=True)
    if any(size not in (got, -1) for got, size in pairs):
        raise InputError(what, got=f"shape {list(array.shape)}", expected=expected)
    if len(array) == 0:
        raise InputError(what, got="an empty batch", expected="at least one row")
    return array


def numpy_dtype(tensor: TensorInfo, what: str) -> np.dtype[Any]:
    """The dtype of a tensor's arrays, object for text; InputError, naming it, where numpy has none."""
    name = "object" if tensor.is_text else INPUT_DTYPES.get(tensor.dtype)
    if name is None:
        raise InputError(what, got=f"dtype {tensor.dtype}", expected="a model input of numbers or text")
    return np.dtype(name)


def text_rows(what: str, rows: Any) -> Array:
    """Text as object array of bytes, from text or bytes of any shape; bytes stay as they are.

    Raises InputError, naming what is read and the first row, for a value that is neither, or half a character.
    """
    if isinstance(rows, np.ndarray):
        shape, values = rows.shape, rows.ravel().tolist()
    else:
        # numpy would cut zeros off the end of each text.
        shape, values = (len(rows),), list(rows)
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        try:
            array[index] = value if type(value) is bytes else str.encode(value)
        except (TypeError, UnicodeEncodeError) as error:
            is_text = isinstance(error, UnicodeEncodeError)
            got = "half a character (a lone surrogate)" if is_text else type(value).__name__
            row = index * shape[0] // len(values)
            raise InputError(f"{what} row {row}", got=got, expected="text") from error
    return array.reshape(shape)


def rows_at(rows: AnyRows, where: Any) -> Any:
    """The rows at some places, an index or a slice, of every tensor."""
    if isinstance(rows, Mapping):
        return {name: array[where] for name, array in rows.items()}
    return np.asarray(rows)[where]


def chunks(rows: int, limit: int) -> list[slice]:
    """Parts of nearly equal size, in order, none larger than the limit (0 means no limit)."""
    if limit <= 0 or rows <= limit:
        return [slice(0, rows)]
    # Equal parts finish together; full parts and a small rest would not.
    size = math.ceil(rows / math.ceil(rows / limit))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
