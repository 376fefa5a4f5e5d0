"""Rows as a model takes them: one tensor or several, numbers or text, of one shape or of lengths that vary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InputError
from orchestrator.spec.request import INPUT_DTYPES
from orchestrator.spec.served_model import ModelInfo, TensorInfo, input_tensor

Array = npt.NDArray[Any]
# Rows of one tensor, of several by their names, or texts. Where lengths differ (n,) objects, each a row (*dims).
AnyRows = Array | Mapping[str, Array] | Sequence[str]
# Numbers of rows.
Places = npt.NDArray[np.int64]


def ready_rows(info: ModelInfo, rows: AnyRows) -> dict[str, Array]:
    """The tensors of some rows as requests carry them, by name in the model's order; text as UTF-8 bytes.

    Args:
        info: the model that is asked.
        rows: of a model with one input (n, *dims); of text also (n,) or a list of texts; of rows whose lengths
            differ a list of arrays (*dims), or an array (n,) of them. Of several inputs a mapping from the name of
            each to such rows.

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
    if tensor.is_text:
        array = text_rows(what, rows)
        if array.ndim == 1 and tensor.shape[1:] in ((1,), (-1,)):
            array = array[:, None]
        if tensor.is_c_string:
            check_c_strings(what, array)
    else:
        array = stacked([np.asarray(row) for row in rows]) if isinstance(rows, (list, tuple)) else np.asarray(rows)
        if is_ragged(array):
            # One row at a time, so that a fault is told with its row.
            return stacked([_row(info, tensor, row, place) for place, row in enumerate(array)])
    _check_array(what, tensor, array)
    return array


def _check_array(what: str, tensor: TensorInfo, array: Array) -> None:
    dtype = numpy_dtype(tensor, what)
    expected = f"[n, {', '.join('any' if size < 0 else str(size) for size in tensor.shape[1:])}]"
    if array.dtype != dtype:
        expected = f"{dtype} ({tensor.dtype})"
        raise InputError(
            what, got=f"dtype {array.dtype}", expected=expected, fix=f"convert with .astype('{dtype}')"
        )
    if array.ndim != len(tensor.shape):
        fix = "add the batch axis with rows[None]" if array.ndim == len(tensor.shape) - 1 else None
        raise InputError(what, got=f"rank {array.ndim}, shape {list(array.shape)}", expected=expected, fix=fix)
    pairs = zip(array.shape[1:], tensor.shape[1:], strict=True)
    if any(size not in (got, -1) for got, size in pairs):
        raise InputError(what, got=f"shape {list(array.shape)}", expected=expected)
    if len(array) == 0:
        raise InputError(what, got="an empty batch", expected="at least one row")


def _row(info: ModelInfo, tensor: TensorInfo, row: Any, place: int) -> Array:
    try:
        return np.asarray(_ready(info, tensor, np.asarray(row)[None])[0])
    except InputError as error:
        raise InputError(f"{error.what} row {place}", got=error.got, expected=error.expected) from error


def stacked(rows: Sequence[Array]) -> Array:
    """Rows (*dims) as one array (n, *dims); where their shapes differ as (n,) objects, each an array."""
    if not rows:
        return np.zeros((0,))
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    ragged = np.empty(len(rows), object)
    ragged[:] = rows
    return ragged


def groups_of_one_shape(tensors: Mapping[str, Array]) -> list[tuple[Places | None, dict[str, Array]]]:
    """Rows that are one array (n, *dims) of each tensor, and where they stood; None where these are all rows.

    Rows of different lengths are not padded: what pads them must know how, and a member may read what is padded.
    """
    ragged = [name for name, array in tensors.items() if is_ragged(array)]
    if not ragged:
        return [(None, dict(tensors))]
    places: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for place in range(len(tensors[ragged[0]])):
        places.setdefault(tuple(tensors[name][place].shape for name in ragged), []).append(place)
    groups: list[tuple[Places | None, dict[str, Array]]] = []
    for listed in places.values():
        at = np.array(listed)
        rows = {name: array[at] for name, array in tensors.items()}
        groups.append((at, rows | {name: np.stack(list(rows[name])) for name in ragged}))
    return groups


def is_ragged(array: Array) -> bool:
    """Whether an array holds rows of different lengths, and no text."""
    return array.dtype == object and array.ndim == 1 and len(array) > 0 and isinstance(array[0], np.ndarray)


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


def c_string_fault(name: str, text: object) -> InputError | None:
    """Why ONNX Runtime would not read a text as it is; None where it does. `name` says which text.

    Triton's backend hands texts on as C strings: it would read one up to its first zero, and say nothing.
    """
    expected = "UTF-8 without zeros"
    if not isinstance(text, bytes):
        return InputError(name, got=type(text).__name__, expected=expected)
    if (zero := text.find(0)) >= 0:
        fix = "take it out: what follows a zero would not be read"
        return InputError(name, got=f"a zero byte (NUL) at {zero}", expected=expected, fix=fix)
    try:
        text.decode()
    except UnicodeDecodeError as error:
        got = f"byte 0x{text[error.start]:02x} at {error.start}, which is not UTF-8"
        return InputError(name, got=got, expected=expected, fix="send text in UTF-8")
    return None


def check_c_strings(name: str, texts: Array) -> None:
    """Raises InputError, with the row, where ONNX Runtime would not read one of the texts (n, ...) as it is."""
    for place, text in enumerate(texts.ravel().tolist()):
        if fault := c_string_fault(f"{name} row {place * len(texts) // texts.size}", text):
            raise fault


def rows_at(rows: AnyRows, where: Any) -> Any:
    """The rows at some places, an index or a slice, of every tensor."""
    if isinstance(rows, Mapping):
        return {name: array[where] for name, array in rows.items()}
    return np.asarray(rows)[where]
