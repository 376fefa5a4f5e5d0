"""An fp32 graph as one of lower precision, and how often both give a row the same top-1.

fp16: weights and network in half precision; inputs and outputs keep their types. int8: symmetric QDQ, so that
ONNX Runtime and TensorRT's parser both take it. In both, the image processing ("preprocess/") stays fp32: pixels
up to 255 and sums over them are more than half precision or a byte can hold exactly.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from export.images.preprocess import PREFIX
from export.packing import EXTERNAL_OVER_BYTES
from export.parity import answers_of, session_of
from export.precision.quantize import WEIGHT_BITS, quantized
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import full_check, named_copy, replace_nodes, sorted_nodes, without_lossy_casts
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
    got, expected = (
        np.asarray(answers_of(session_of(one), rows, batch=_CHUNK), np.float32) for one in (model, original)
    )
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


LARGEST = 65504.0
SMALLEST = 2.0**-24
# In deep transformers their squares and sums exceed half precision; TensorRT recommends fp32 for them too.
_FP32_OPERATORS = ("LayerNormalization",)
# Names of fp16 copies of tensors that stay fp32.
_COPY = "fp16/"


def half_from(model: onnx.ModelProto) -> onnx.ModelProto:
    """See `export.precision.fp16_from`."""
    # The converter in ONNX Runtime rather than onnxconverter-common, which it comes from: it is a dependency
    # already, and keeps the constants of nodes that stay fp32 as they are.
    copy = named_copy(model)
    kept = _fp32_nodes(copy.graph)
    _require_range(copy.graph, kept)
    half: onnx.ModelProto = convert_float_to_float16(
        copy,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32_OPERATORS],
        node_block_list=sorted(kept),
    )
    _each_node_once(half.graph)
    without_lossy_casts(half.graph)
    _give_back_names(half.graph)
    # The converter appends casts at the end, and keeps shapes with their old types.
    sorted_nodes(half.graph)
    del half.graph.value_info[:]
    full_check(half, "fp16")
    return half


def _each_node_once(graph: onnx.GraphProto) -> None:
    """Drops repeated casts: the converter casts a weight once per fp32 node that reads it, under one name."""
    made: set[str] = set()
    nodes = []
    for node in graph.node:
        if not made.issuperset(node.output):
            nodes.append(node)
        made.update(node.output)
    replace_nodes(graph, nodes)


def rounding_from(half: onnx.ModelProto) -> onnx.ModelProto:
    """A half-precision graph in fp32 that rounds each tensor which is half precision in the original.

    Sums inside an operator are fp32, as they are in tensor cores.

    The graph must have no graphs inside its nodes.
    """
    copy = onnx.shape_inference.infer_shapes(half)
    graph = copy.graph
    halves = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            value = numpy_helper.to_array(weight).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    nodes = []
    for node in graph.node:
        _in_fp32(node)
        nodes.append(node)
        for index, output in enumerate(node.output):
            if output in halves:
                node.output[index] = f"{output}/exact"
                half_name = f"{output}/half"
                nodes.append(helper.make_node("Cast", [node.output[index]], [half_name], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [half_name], [output], to=TensorProto.FLOAT))
    replace_nodes(graph, nodes)
    del graph.value_info[:]
    full_check(copy, "fp16")
    return copy


def _in_fp32(node: onnx.NodeProto) -> None:
    """Turns half-precision types and constants in a node's attributes into fp32."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        if attribute.t.data_type == TensorProto.FLOAT16:
            value = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))


def tiny_weights_of(model: onnx.ModelProto) -> int:
    """Weights that are not zero, but too small for half precision; they get its smallest value."""
    count = 0
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and not weight.name.startswith(PREFIX):
            size = np.abs(numpy_helper.to_array(weight))
            count += int(((size > 0) & (size < SMALLEST)).sum())
    return count


def _fp32_nodes(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that stay fp32."""
    outside = set()
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT and math.prod(weight.dims) == 1:
            size = float(np.abs(numpy_helper.to_array(weight)).item())
            if size > LARGEST or 0 < size < SMALLEST:
                outside.add(weight.name)
    return {node.name for node in graph.node if node.name.startswith(PREFIX) or outside.intersection(node.input)}


def _require_range(graph: onnx.GraphProto, kept: set[str]) -> None:
    used = {name for node in graph.node if node.name not in kept for name in node.input}
    beyond = []
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT and weight.name in used:
            value = numpy_helper.to_array(weight)
            finite = np.abs(value[np.isfinite(value)])
            if finite.size and finite.max() > LARGEST:
                beyond.append(f"{weight.name} up to {finite.max():g}")
    if beyond:
        raise ExportError(
            "fp16",
            got=f"weights beyond its range: {', '.join(beyond[:3])}",
            expected=f"at most {LARGEST:g}",
            fix="keep this member in fp32",
        )


def _give_back_names(graph: onnx.GraphProto) -> None:
    """Gives fp32 tensors their names back, which the converter gave to their fp16 copies."""
    table = {}
    for node in graph.node:
        if node.op_type == "Cast" and node.name.endswith("_cast_to_fp16_node"):
            old, new = node.input[0], node.output[0]
            table[old], table[new] = new, _COPY + new
            node.name = _COPY + new
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [table.get(name, name) for name in names]
