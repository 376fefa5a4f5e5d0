"""Writes the `--input-data` file of perf_analyzer."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def next_prime(number: int) -> int:
    """The smallest prime that is not below a number.

    A file with a prime row count falls into step with no concurrency and no batch: otherwise the same rows would
    meet in the same batches over and over.
    """
    candidate = max(number, 2)
    while any(candidate % divisor == 0 for divisor in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate


def write_input_data(path: Path, rows: npt.NDArray[Any], *, input_name: str) -> None:
    """One step per row, as raw bytes in base64: a tenth of the size of numbers, and exact.

    Args:
        path: of the file to write.
        rows: (n, *dims), n prime.
        input_name: of the tensor.
    """
    steps = [
        {input_name: {"b64": base64.b64encode(np.ascontiguousarray(row).tobytes()).decode("ascii")}}
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": steps}), encoding="ascii")
