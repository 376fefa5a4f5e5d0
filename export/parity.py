"""Does an exported model say what the original says? Names, then shapes, then values; all faults together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from orchestrator.errors import ExportError

BATCHES = (1, 2, 7, 33)
MAX_ABS_ERROR = 1e-3
MIN_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences between two runs of the same rows.

    Args:
        rows: rows compared.
        batches: batch sizes they were sent in.
        max_abs: largest absolute difference of an output.
        max_rel: largest difference relative to the largest output.
        same_top1: share of rows with the same top-1.
    """

    rows: int
    batches: tuple[int, ...]
    max_abs: float
    max_rel: float
    same_top1: float


def parity_of(
    model: bytes,
    reference: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]],
    rows: npt.NDArray[Any],
    *,
    input_name: str = "image",
    output_name: str = "logits",
) -> Parity:
    """Compares an ONNX model in ONNX Runtime with its original.

    Args:
        model: a serialised ONNX model.
        reference: (n, *dims) -> float32 (n, k), the original.
        rows: (n, *dims), at least 64 rows that differ.
        input_name: name the input should have.
        output_name: name the output should have.

    Raises:
        ExportError: with every disagreement.
    """
    if len(rows) < MIN_ROWS:
        raise ExportError("parity", got=f"{len(rows)} rows", expected=f"at least {MIN_ROWS}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    if names != ([input_name], [output_name]):
        raise ExportError("parity", got=f"tensors {names}", expected=f"{[input_name]} and {[output_name]}")
    expected = reference(rows)
    faults, worst, same = [], 0.0, []
    for batch in BATCHES:
        parts = [
            session.run([output_name], {input_name: rows[start : start + batch]})[0]
            for start in range(0, len(rows), batch)
        ]
        got = np.concatenate(parts)
        if got.shape != expected.shape:
            faults.append(f"batch {batch}: shape {got.shape} for {expected.shape}")
            continue
        error = float(np.abs(got - expected).max())
        worst = max(worst, error)
        same.append(float((got.argmax(axis=1) == expected.argmax(axis=1)).mean()))
        if not error <= MAX_ABS_ERROR:
            faults.append(f"batch {batch}: differs by {error:g}")
    if faults:
        raise ExportError("parity", got="; ".join(faults), expected=f"at most {MAX_ABS_ERROR:g}")
    return Parity(
        rows=len(rows),
        batches=BATCHES,
        max_abs=worst,
        max_rel=worst / float(np.abs(expected).max()),
        same_top1=min(same),
    )
