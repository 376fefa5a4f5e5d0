"""Reading a request's rows and building its response tensors."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision import AnsweredRows
from orchestrator.errors import InputError
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import ANSWER_COLUMNS

Rows = npt.NDArray[Any]
Columns = dict[str, npt.NDArray[Any]]


class InputReader:
    """Checks and reads the input tensor of requests.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
    """

    def __init__(self, pb_utils: Any, spec: CascadeSpec) -> None:
        self._pb = pb_utils
        self._input = spec.input
        self._dtype = np.dtype(spec.input.numpy_dtype)
        self._guard = spec.input.non_finite == "reject" and self._dtype.kind == "f"

    def read(self, request: Any) -> tuple[Any, Rows]:
        """The request's tensor as it came, and a view of it as an array (n, *dims).

        The tensor is kept beside the array because forwarding it untouched saves a copy.

        Raises:
            InputError: the tensor is missing, empty or of another dtype or shape.
        """
        name, dims = self._input.name, self._input.dims
        tensor = self._pb.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise InputError(f"input {name}", got="no such tensor in the request", expected=f"{name} {dims}")
        rows = tensor.as_numpy()
        if rows.dtype != self._dtype:
            raise InputError(f"input {name}", got=f"dtype {rows.dtype}", expected=self._input.dtype)
        if rows.shape[1:] != dims:
            expected = f"[n, {', '.join(map(str, dims))}]"
            raise InputError(f"input {name}", got=f"shape {list(rows.shape)}", expected=expected)
        if len(rows) == 0:
            raise InputError(f"input {name}", got="an empty batch", expected="at least one row")
        return tensor, rows

    def count(self, request: Any) -> int:
        """Rows of a request, whatever is wrong with it; 0 where that cannot be told."""
        try:
            tensor = self._pb.get_input_tensor_by_name(request, self._input.name)
            shape = () if tensor is None else tensor.as_numpy().shape
        except Exception:  # a tensor of text, say, that is no UTF-8
            return 0
        return int(shape[0]) if shape else 0

    def is_finite(self, rows: Rows) -> bool:
        """Whether rows (n, *dims) hold nothing that is to be refused; one look at a merged batch is enough."""
        # Two reductions and no temporary: NaN wins a maximum, and each infinity is one of the extremes.
        return not self._guard or (
            math.isfinite(np.maximum.reduce(rows, axis=None)) and math.isfinite(np.minimum.reduce(rows, axis=None))
        )

    def require_finite(self, rows: Rows) -> None:
        """Names the rows (n, *dims) that are not.

        Raises:
            InputError: there are some.
        """
        if self.is_finite(rows):
            return
        bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
        raise InputError(
            f"input {self._input.name}",
            got=f"NaN or infinity in {len(bad)} of {len(rows)} rows, first row {bad[0]}",
            expected="finite numbers",
            fix="mend or leave out those rows, or plan with non_finite set to pass",
        )


def columns_of(answers: AnsweredRows) -> Columns:
    """Every output of answers, (n, k) or (n, 1)."""
    columns = {}
    for name, (_, dtype, is_vector) in ANSWER_COLUMNS.items():
        values = getattr(answers, name)
        if values.dtype != dtype:
            values = values.astype(dtype)
        columns[name] = values if is_vector else values[:, None]
    return columns


def blank_sheet(rows: int, like: Columns) -> Columns:
    """Outputs of so many rows, to be filled in, shaped as others."""
    return {name: np.empty((rows, column.shape[1]), column.dtype) for name, column in like.items()}


def response_tensors(pb_utils: Any, columns: Columns, wanted: Collection[str]) -> list[Any]:
    """Tensors of the outputs a request wants; columns are (n, k) or (n, 1) and contiguous."""
    return [pb_utils.Tensor(name, column) for name, column in columns.items() if name in wanted]
