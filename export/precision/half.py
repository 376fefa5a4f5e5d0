"""An fp32 graph in half precision, and the same graph as a GPU will compute it.

ONNX Runtime on a CPU has hardly any half-precision kernels: it computes such a graph in fp32 from end to end, and
even a value of 1e6 passes between two half-precision nodes unharmed. Comparing there would only show the rounding
of the weights, so `rounding_from` writes the rounding of every tensor into the graph.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from export.images.preprocess import PREFIX
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import full_check, named_copy, replace_nodes, sorted_nodes, without_lossy_casts

LARGEST = 65504.0
SMALLEST = 2.0**-24
# Their squares and sums leave half precision in deep transformers; TensorRT asks for the same.
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
    # Casts are appended at the end, and shapes are noted with types of before.
    sorted_nodes(half.graph)
    del half.graph.value_info[:]
    full_check(half, "fp16")
    return half


def _each_node_once(graph: onnx.GraphProto) -> None:
    """Drops the same cast made again: a weight that several fp32 nodes share is cast for each, under one name."""
    made: set[str] = set()
    nodes = []
    for node in graph.node:
        if not made.issuperset(node.output):
            nodes.append(node)
        made.update(node.output)
    replace_nodes(graph, nodes)


def rounding_from(half: onnx.ModelProto) -> onnx.ModelProto:
    """A half-precision graph in fp32, each tensor rounded to half precision where the original's is of that type.

    Sums inside an operator are fp32, as they are in tensor cores.

    Args:
        half: without graphs inside its nodes.
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
    """Turns what a node's attributes say of half precision into fp32."""
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
    """Gives tensors that stay fp32 their own names back; the converter gives those to their fp16 copies."""
    table = {}
    for node in graph.node:
        if node.op_type == "Cast" and node.name.endswith("_cast_to_fp16_node"):
            old, new = node.input[0], node.output[0]
            table[old], table[new] = new, _COPY + new
            node.name = _COPY + new
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [table.get(name, name) for name in names]
