"""An fp32 graph as one of lower precision, and how often both give a row the same top-1.

fp16: weights and network in half precision; inputs and outputs keep their types. int8: symmetric QDQ, so that
ONNX Runtime and TensorRT's parser both take it. In both, the image processing ("preprocess/") stays fp32: pixels
up to 255 and sums over them are more than half precision or a byte can hold exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from export.packing import EXTERNAL_OVER_BYTES
from export.parity import session_of
from export.precision.half import half_from
from export.precision.quantize import WEIGHT_BITS, quantized
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import full_check, named_copy
from orchestrator.spec.shares import wilson_ci95

_CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close a model of lower precision is to its original.

    Args:
        rows: rows compared.
        same_top1: share of them with the same top-1.
        same_top1_ci95: 95 % interval of it (Wilson).
        max_abs, mean_abs: differences of the outputs.
    """

    rows: int
    same_top1: float
    same_top1_ci95: tuple[float, float]
    max_abs: float
    mean_abs: float


def agreement_of(model: bytes | Path, original: bytes | Path, rows: npt.NDArray[Any]) -> Agreement:
    """Compares two models in ONNX Runtime, row by row.

    Args:
        model: a serialised ONNX model, or its path.
        original: what it was made from.
        rows: (n, *dims) in their input's dtype.

    Raises:
        ExportError: one of them cannot be run, or the model gives NaN or infinity where the original does not.
    """
    got, expected = _answers(model, rows), _answers(original, rows)
    if got.shape != expected.shape:
        raise ExportError("agreement", got=f"outputs of shape {got.shape}", expected=f"{expected.shape}")
    broken = int((np.isfinite(expected) & ~np.isfinite(got)).any(axis=1).sum())
    if broken:
        raise ExportError(
            "agreement",
            got=f"NaN or infinity on {broken} of {len(rows)} rows",
            expected="finite scores, as the original gives",
            fix="values inside the network leave the range of this precision: keep it in fp32",
        )
    same = int((got.argmax(axis=1) == expected.argmax(axis=1)).sum())
    difference = np.abs(got - expected, where=np.isfinite(expected), out=np.zeros_like(expected))
    return Agreement(
        rows=len(rows),
        same_top1=same / len(rows),
        same_top1_ci95=wilson_ci95(same, len(rows)),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
    )


def fp16_from(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its network in half precision.

    What stays fp32: "preprocess/" nodes, nodes with a lone constant that half precision cannot hold (a bound of
    1e30, an epsilon of 1e-12), layer normalisation, and operators the converter knows to be unfit. The last layer
    goes to half precision too: kept in fp32 it changed little (mean difference of a small transformer's logits
    0.0012, else 0.0013; digits_medium 0.0009, else 0.0010).

    Args:
        model: an fp32 model, weights loaded; left as it is.

    Raises:
        ExportError: it is not fp32, or has weights beyond half precision.
    """
    _require_fp32(model, "fp16")
    return half_from(model)


def int8_from(
    model: onnx.ModelProto, rows: npt.NDArray[Any], *, weight_bits: int = WEIGHT_BITS
) -> onnx.ModelProto:
    """The model with its convolutions and dense layers in int8 (symmetric QDQ, weights per channel).

    Args:
        model: an fp32 model, weights loaded; left as it is.
        rows: (n, *dims), rows like those it will be asked; ranges of activations are taken from them.
        weight_bits: 7, which every processor adds up exactly, or 8 to measure what the one bit costs.

    Raises:
        ExportError: it is not fp32, has nothing to quantise, or the rows do not run.
    """
    _require_fp32(model, "int8")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ExportError("calibration rows", got="NaN or infinity", expected="finite values")
    made = quantized(named_copy(model), rows, weight_bits=weight_bits)
    full_check(made, "int8")
    return made


def _require_fp32(model: onnx.ModelProto, target: str) -> None:
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    if size > EXTERNAL_OVER_BYTES:
        raise ExportError(
            f"{target} of this model",
            got=f"{size / 1e9:.1f} GB of weights",
            expected=f"at most {EXTERNAL_OVER_BYTES / 1e9:.1f} GB, which the tools can hold in one piece",
            fix="convert it where it was trained and export that",
        )
    lower = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    if any(weight.data_type in lower for weight in model.graph.initializer):
        raise ExportError(f"{target} of this model", got="half-precision weights", expected="an fp32 model")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for node in model.graph.node):
        raise ExportError(f"{target} of this model", got="a quantised model", expected="an fp32 model")


def _answers(model: bytes | Path, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    session = session_of(model)
    name = session.get_inputs()[0].name
    parts: Sequence[Any] = [
        session.run(None, {name: rows[start : start + _CHUNK]})[0] for start in range(0, len(rows), _CHUNK)
    ]
    return np.asarray(np.concatenate(parts), np.float32)
