"""Rows of several tensors, of text, or of lengths that vary; rows of one tensor of numbers are a plain array.

Both are counted, cut, copied and put together in one way, so that what hands rows on need not tell them apart.
A tensor whose rows differ in length, or that is derived, is kept as an array of objects: for each row an array of
its own, without padding, or None where it has not been derived.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InputError
from orchestrator.spec import CascadeSpec, InputSpec, RowTensor

Rows = npt.NDArray[Any]


class RowTensors:
    """The tensors of n rows, by the cascade's names for them: (n, *dims), or (n,) objects."""

    __slots__ = ("columns",)

    def __init__(self, columns: Mapping[str, Rows]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: Any) -> "RowTensors":
        return RowTensors({name: column[index] for name, column in self.columns.items()})

    def copy(self) -> "RowTensors":
        """The same rows in memory of their own."""
        return RowTensors({name: _copied(column) for name, column in self.columns.items()})

    def with_columns(self, columns: Mapping[str, Rows]) -> "RowTensors":
        """The same rows with further tensors, or others in their place."""
        return RowTensors({**self.columns, **columns})

    def missing(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which of n rows lack one of the tensors, bool (n,)."""
        found = np.zeros(len(self), np.bool_)
        for name in names:
            column = self.columns.get(name)
            if column is None:
                found[:] = True
            elif column.dtype == object and column.ndim == 1:
                found |= np.array([row is None for row in column], np.bool_)
        return found

    def sizes_bytes(self) -> npt.NDArray[np.int64]:
        """Bytes that each of n rows holds, int64 (n,)."""
        total = np.zeros(len(self), np.int64)
        for column in self.columns.values():
            if column.dtype != object:
                total += column.nbytes // max(1, len(column))
            elif column.ndim == 1:
                total += [0 if row is None else _size_bytes(row) for row in column]
            else:
                total += [_size_bytes(row) for row in column]
        return total


# What is handed on as rows.
AnyRows = Rows | RowTensors


def _size_bytes(row: Rows) -> int:
    return sum(map(len, row.ravel().tolist())) if row.dtype == object else row.nbytes


def _copied(column: Rows) -> Rows:
    if column.dtype != object or column.ndim > 1:  # texts are never changed
        return column.copy()
    return objects([None if row is None else row.copy() for row in column])


def objects(rows: Sequence[Any]) -> Rows:
    """An array of objects (n,); numpy itself would make one of more axes from arrays of one shape."""
    made = np.empty(len(rows), object)
    for place, row in enumerate(rows):
        made[place] = row
    return made


def merged(parts: Sequence[AnyRows]) -> AnyRows:
    """One batch of several requests' rows."""
    first = parts[0]  # requests of one cascade have rows of one kind
    if len(parts) == 1:
        return first
    if not isinstance(first, RowTensors):
        return np.concatenate(cast(Sequence[Rows], parts))
    every = [part.columns for part in cast(Sequence[RowTensors], parts)]
    return RowTensors({name: np.concatenate([columns[name] for columns in every]) for name in first.columns})


def padded(column: Rows, tensor: RowTensor) -> tuple[Rows, int]:
    """A tensor of n rows as a model gets it, (n, *dims), as long as the longest; and how many values fill up."""
    if column.ndim > 1 or column.dtype != object:
        return column, 0
    axis = tensor.length_axis
    lengths = [0 if axis is None else row.shape[axis] for row in column]
    longest = max(lengths)
    if min(lengths) == longest:
        return np.stack(column.tolist()), 0
    shape = [longest if size < 0 else size for size in tensor.dims]
    made = np.full((len(column), *shape), tensor.pad, tensor.numpy_dtype)
    for place, (row, length) in enumerate(zip(column, lengths, strict=True)):
        made[place][(slice(None),) * (axis or 0) + (slice(length),)] = row
    return made, int(made.size - sum(row.size for row in column))


def unpadded(outputs: Mapping[str, Rows], tensors: Mapping[str, RowTensor]) -> dict[str, Rows]:
    """Outputs (n, *dims) of a deriving model as arrays of objects, without the padding at the end of rows.

    A model's tensors of one length keep one length: a mask of ones ends where its ids do, whatever the ids are.
    """
    lengths: npt.NDArray[np.int64] | None = None
    for name, output in outputs.items():
        axis, tensor = tensors[name].length_axis, tensors[name]
        if axis is not None:
            differs = output != np.asarray(tensor.pad, output.dtype)
            other = tuple(at for at in range(1, output.ndim) if at != axis + 1)
            used = differs.any(axis=other) if other else differs
            # A row of padding alone keeps one value, as no model takes rows without any.
            ends = np.where(used, np.arange(1, used.shape[1] + 1), min(1, used.shape[1])).max(axis=1, initial=0)
            lengths = ends if lengths is None else np.maximum(lengths, ends)
    return {name: _rows_of(output, tensors[name].length_axis, lengths) for name, output in outputs.items()}


def _rows_of(output: Rows, axis: int | None, lengths: npt.NDArray[np.int64] | None) -> Rows:
    if axis is None or lengths is None:
        return objects(list(output))
    parts = [(*(slice(None),) * axis, slice(int(length))) for length in lengths]
    return objects([row[part] for row, part in zip(output, parts, strict=True)])


def plain_row(spec: CascadeSpec) -> AnyRows:
    """A row (1, *dims) that most models take: zeros, lengths of one, and a letter for text."""
    columns: dict[str, Rows] = {}
    for tensor in spec.inputs:
        row = np.full([max(1, size) for size in tensor.dims], b"a" if tensor.is_text else 0, tensor.numpy_dtype)
        columns[tensor.name] = row[None] if tensor.length_axis is None else objects([row])
    return columns[spec.input.name] if spec.has_one_tensor else RowTensors(columns)


class OneTensor:
    """Reads the requests of a cascade whose rows are one tensor of numbers of fixed shape."""

    def __init__(self, pb_utils: Any, spec: InputSpec) -> None:
        self._pb = pb_utils
        self._input = spec
        self._dtype = np.dtype(spec.numpy_dtype)
        self._rejects_non_finite = spec.non_finite == "reject" and self._dtype.kind == "f"

    def read(self, request: Any) -> tuple[Any, Rows]:
        """The request's tensor as it came, which is forwarded without a copy, and a view of it, (n, *dims)."""
        tensor = self._pb.get_input_tensor_by_name(request, self._input.name)
        if tensor is not None:
            rows: Rows = tensor.as_numpy()
            if rows.dtype == self._dtype and rows.shape[1:] == self._input.dims and len(rows):
                return tensor, rows
        return tensor, checked_rows(tensor, self._input)

    def is_finite(self, rows: Any) -> bool:
        """Whether all numbers are finite, or none need be."""
        # Two reductions and no temporary: NaN wins a maximum, and each infinity is one of the extremes.
        return not self._rejects_non_finite or (
            math.isfinite(np.maximum.reduce(rows, axis=None)) and math.isfinite(np.minimum.reduce(rows, axis=None))
        )


def checked_rows(tensor: Any, spec: InputSpec) -> Rows:
    """A tensor's rows, (n, *dims); `tensor` is the server's, None where the request has none of that name.

    Raises:
        InputError: they are not what the plan has, or longer than its last bucket.
    """
    what, dims = f"input {spec.name}", ", ".join("any" if size < 0 else str(size) for size in spec.dims)
    if tensor is None:
        raise InputError(what, got="no such tensor in the request", expected=f"{spec.name} [n, {dims}]")
    rows: Rows = tensor.as_numpy()
    # Text may come as bytes of one length.
    if rows.dtype != spec.numpy_dtype and not (spec.is_text and rows.dtype.kind == "S"):
        raise InputError(what, got=f"dtype {rows.dtype}", expected=spec.dtype)
    good = rows.ndim == 1 + len(spec.dims) and all(
        size in (got, -1) for got, size in zip(rows.shape[1:], spec.dims, strict=True)
    )
    if not good or 0 in rows.shape[1:]:
        raise InputError(what, got=f"shape {list(rows.shape)}", expected=f"[n, {dims}]")
    if len(rows) == 0:
        raise InputError(what, got="an empty batch", expected="at least one row")
    if text := over_last_bucket(spec, rows.shape[1:]):
        raise InputError(f"{what}: {text}")
    if spec.is_mask and not (shows := rows.any(axis=tuple(range(1, rows.ndim)))).all():
        # A network that sees nothing looks at everything, padding too, of which other requests decide.
        got = f"nothing but zeros in row {int(shows.argmin())}"
        raise InputError(what, got=got, expected="a mask that shows a part of every row")
    return rows.astype(object) if spec.is_text else rows


def over_last_bucket(tensor: RowTensor, shape: Sequence[int]) -> str | None:
    """What is wrong with a row of that shape where it is longer than any bucket; None where it is not."""
    axis = tensor.length_axis
    if axis is None or not tensor.buckets or shape[axis] <= tensor.buckets[-1]:
        return None
    return f"got length {shape[axis]}, expected at most {tensor.buckets[-1]}, the last of its buckets"


def non_finite_fault(name: str, rows: Rows) -> InputError:
    """The error for a request's rows (n, *dims) of which some are not finite."""
    bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    got = f"NaN or infinity in {len(bad)} of {len(rows)} rows, first row {bad[0]}"
    fix = "mend or leave out those rows, or plan with --non-finite pass"
    return InputError(f"input {name}", got=got, expected="finite numbers", fix=fix)
