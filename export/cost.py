"""Multiply-accumulates per row of an ONNX graph, from inferred shapes: convolutions and matrix products.

Additions of biases, activations and normalisations are not counted, as is the custom for "MACs" of networks.
"""

from __future__ import annotations

import math

import onnx

from orchestrator.errors import ExportError

COUNTER = "committee onnx counter (Conv, ConvTranspose, Gemm, MatMul)"


def macs_per_row(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of one row.

    Args:
        model: with a batch axis first in its input; it is set to 1 in a copy.

    Raises:
        ExportError: the shape of an operand cannot be inferred.
    """
    single = onnx.ModelProto()
    single.CopyFrom(model)
    del single.graph.value_info[:]
    for value in (*single.graph.input, *single.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        batch.ClearField("dim_param")
        batch.dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True)
    graph = inferred.graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes.update({weight.name: list(weight.dims) for weight in graph.initializer})
    return sum(_macs(node, shapes) for node in graph.node)


def parameters_of(model: onnx.ModelProto) -> int:
    """Number of values in the floating-point initialisers."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return sum(math.prod(weight.dims) for weight in model.graph.initializer if weight.data_type in kinds)


def _macs(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0

    def shape(name: str) -> list[int]:
        found = shapes.get(name, [])
        if not found or any(size <= 0 for size in found):
            raise ExportError(
                f"cost of {node.name or node.op_type}", got=f"{name} has no fixed shape", fix="infer it"
            )
        return found

    if node.op_type == "Conv":
        # weight is (out, in / groups, *kernel)
        return math.prod(shape(node.output[0])) * math.prod(shape(node.input[1])[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])
    if node.op_type == "Gemm":
        flipped = any(part.name == "transA" and part.i for part in node.attribute)
        return math.prod(shape(node.output[0])) * shape(node.input[0])[0 if flipped else 1]
    return math.prod(shape(node.output[0])) * shape(node.input[0])[-1]
