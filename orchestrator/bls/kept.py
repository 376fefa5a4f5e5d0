"""The inputs of deferred rows, by their slot in the run's table: the only copies the runtime makes of requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.tensors import Rows
from orchestrator.spec import InputSpec


class InputBuffer:
    """Grows with the table and never shrinks, as the table does; the caller holds the lock.

    Args:
        spec: the cascade's input.
    """

    def __init__(self, spec: InputSpec) -> None:
        self._rows: npt.NDArray[Any] = np.zeros((0, *spec.dims), spec.numpy_dtype)

    def put(self, slots: npt.NDArray[np.intp], rows: Rows, *, capacity_rows: int) -> None:
        """Copies rows (n, *dims) into their slots, intp (n,); capacity_rows is how many slots there are."""
        if capacity_rows > len(self._rows):
            grown = np.zeros((capacity_rows, *self._rows.shape[1:]), self._rows.dtype)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[slots] = rows

    def take(self, slots: npt.NDArray[np.intp]) -> Rows:
        """The rows of slots, copied, (n, *dims)."""
        return self._rows[slots]
