"""Number of trained values in a graph, whatever they are stored as."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto

from export.cost.rules import is_preprocess, operator_of

_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16))
# Inputs of quantised operators that hold weights or biases; their other inputs are scales and zero points.
_QUANTISED: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (0,),
    "DequantizeLinear": (0,),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3, 8),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3, 6),
    "QAttention": (0, 1, 2),
    "QLinearAdd": (0, 3),
    "QLinearMul": (0, 3),
    "MatMulIntegerToFloat": (0, 1, 6),
    "DynamicQuantizeMatMul": (0, 1, 4),
    "DynamicQuantizeLSTM": (0, 1, 2, 3),
    "MatMulNBits": (5,),
}


def parameters_of(model: onnx.ModelProto) -> int:
    """Trained values of the network: floats, and the integers that quantised operators take as weights.

    Scales and zero points are not counted, nor are constants of the image processing in front ("preprocess/...").
    Graphs inside If, Loop and Scan are.

    Args:
        model: its weights may be missing, their shapes suffice.
    """
    graphs = list(_graphs(model.graph))
    nodes = [node for graph in graphs for node in graph.node]
    weights, settings = _roles(nodes)
    total = sum(math.prod(part.i for part in node.attribute if part.name in "KN") for node in _packed(nodes))
    for name, kind, size in _tensors(graphs):
        trained = name in weights or (kind in _FLOATS and name not in settings)
        total += size if trained and not is_preprocess(name) else 0
    return total


def _roles(nodes: Iterable[onnx.NodeProto]) -> tuple[set[str], set[str]]:
    """Names that are weights of quantised operators, and names that only tell how they are stored."""
    weights, settings, others = set[str](), set[str](), set[str]()
    for node in nodes:
        operator = operator_of(node).rpartition("::")[2]
        known = _QUANTISED.get(operator, () if operator.startswith("QLinear") else None)
        for index, name in enumerate(node.input):
            target = others if known is None else weights if index in known else settings
            target.add(name)
    return weights, settings - weights - others


def _packed(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes whose weight holds several values in a byte, its size in attributes."""
    return (node for node in nodes if node.op_type == "MatMulNBits")


def _tensors(graphs: Iterable[onnx.GraphProto]) -> Iterator[tuple[str, int, int]]:
    """Name, kind and size of every constant; a lone number in a Constant node is none that was trained."""
    for graph in graphs:
        for weight in graph.initializer:
            yield weight.name, weight.data_type, math.prod(weight.dims)
        for sparse in graph.sparse_initializer:
            yield sparse.values.name, sparse.values.data_type, math.prod(sparse.values.dims)
        for node in graph.node:
            for part in node.attribute:
                if node.op_type == "Constant" and part.name == "value" and part.t.dims:
                    yield node.output[0], part.t.data_type, math.prod(part.t.dims)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for part in node.attribute:
            if part.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(part.g)
