"""Layers of a quantised graph that come out differently on processors without dot-product instructions.

`orchestrator/spec/processor.py` says why. Which weights are safe was tried on forms of quantised members, QDQ
and operators, static and dynamic, on an emulated x86 processor without VNNI: signed weights beyond 64 overflow,
unsigned ones do not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from orchestrator.spec.processor import DOT_PRODUCT_FLAGS, LARGEST_SAFE_WEIGHT

# Layers between QuantizeLinear and DequantizeLinear: data first, weights second.
_QDQ_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators that take bytes themselves -> places of their weights.
_BYTE_OPERATORS = {
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
    "QGemm": (3,),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
    "MatMulIntegerToFloat": (1,),
    "DynamicQuantizeMatMul": (1,),
    "QAttention": (1,),
    "DynamicQuantizeLSTM": (1, 2),
}
# What may stand between a layer and the DequantizeLinear of its weights.
_SAME_VALUES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")


def processor_flags_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """A manifest's `processor_flags`: of which a processor needs one to add up this graph's bytes exactly."""
    return DOT_PRODUCT_FLAGS if overflowing_layers(model) else ()


def overflowing_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Layers of which two products of bytes may not fit 16 bits, by name or else by operator.

    Args:
        model: weights loaded; graphs inside nodes are looked at too.
    """
    return tuple(found for graph in _graphs(model.graph) for found in _Graph(graph).overflowing())


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


class _Graph:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = graph.node
        self._makers = {output: node for node in graph.node for output in node.output}
        self._constants = {weight.name: weight for weight in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self._constants[node.output[0]] = node.attribute[0].t

    def overflowing(self) -> list[str]:
        return [
            node.name or node.op_type
            for node in self._nodes
            if any(self._overflows(name) for name in self._byte_weights(node))
        ]

    def _byte_weights(self, node: onnx.NodeProto) -> list[str]:
        """Names of the bytes that a node multiplies its data by; none where it works on floats."""
        if node.op_type in _BYTE_OPERATORS:
            places = _BYTE_OPERATORS[node.op_type]
            return [node.input[place] for place in places if place < len(node.input)]
        if node.op_type not in _QDQ_LAYERS or len(node.input) < 2:
            return []
        # With weights alone quantised, the layer itself is computed in floats.
        bytes_in = [self._quantised(name) for name in node.input[:2]]
        return [] if bytes_in[0] is None or bytes_in[1] is None else [bytes_in[1]]

    def _quantised(self, name: str) -> str | None:
        """The bytes that a tensor was dequantised from, None where it was not."""
        node = self._makers.get(name)
        while node is not None and node.op_type in _SAME_VALUES:
            node = self._makers.get(node.input[0])
        return node.input[0] if node is not None and node.op_type == "DequantizeLinear" else None

    def _overflows(self, name: str) -> bool:
        tensor = self._constants.get(name)
        if tensor is None:
            return self._is_signed(name)
        if tensor.data_type != TensorProto.INT8:
            return False
        # As int16, for the absolute value of -128 does not fit a byte.
        sizes = np.abs(numpy_helper.to_array(tensor).astype(np.int16))
        return bool(sizes.size and sizes.max() > LARGEST_SAFE_WEIGHT)

    def _is_signed(self, name: str) -> bool:
        """Whether bytes that are computed, not stored, are signed ones; those of an unknown maker may be."""
        node = self._makers.get(name)
        if node is None or node.op_type != "QuantizeLinear":
            return node is None or node.op_type != "DynamicQuantizeLinear"
        zero = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None:
            dtype = next((part.i for part in node.attribute if part.name == "output_dtype"), TensorProto.UINT8)
            return bool(dtype == TensorProto.INT8)
        return bool(zero.data_type == TensorProto.INT8)
