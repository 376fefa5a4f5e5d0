"""ONNX models in a few lines: nodes, and tensors by name."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
node = helper.make_node


def value(name: str, dims: Any, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def array(value: Any, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def model_of(
    nodes: Iterable[onnx.NodeProto],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    weights: dict[str, Any] | Iterable[onnx.TensorProto] = (),
    *,
    opset: int = 18,
    ir: int = 10,
) -> onnx.ModelProto:
    """A model of these nodes, unchecked.

    Args:
        inputs: name -> dims of float32, or (element type, dims) of another one; `outputs` likewise.
        weights: name -> array, or tensors.
    """
    ends = [
        [value(name, *(side[::-1] if isinstance(side, tuple) else (side,))) for name, side in sides.items()]
        for sides in (inputs, outputs)
    ]
    if isinstance(weights, dict):
        weights = [array(one, name) for name, one in weights.items()]
    graph = helper.make_graph(list(nodes), "graph", *ends, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
