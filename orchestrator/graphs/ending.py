"""What the last operators of an ONNX graph say of its scores: a softmax, sigmoids, or a layer without bounds.

Only certain endings are named. For any other (a branch, a function of the model's own, a sum of two softmaxes) the
values of the scores have to tell.
"""

from collections.abc import Iterable
from functools import cached_property

import onnx

from orchestrator.graphs.editing import fed_names, graphs_inside

PROBABILITIES, SIGMOID, LOGITS = "probabilities", "sigmoid", "logits"
# Operators that keep their values, in another shape or type.
_SAME = {
    "Cast", "CastLike", "DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear", "Reshape",
    "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
# Those with weights of their own, whose outputs have no bounds.
_LAYERS = {"Conv", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "QGemm"}
# Those that keep values without bounds unbounded; of a product or quotient, one side has to be constant.
_UNBOUNDED = _LAYERS | {
    "Add", "AveragePool", "BatchNormalization", "Concat", "Div", "Elu", "Gather", "GlobalAveragePool", "LeakyRelu",
    "Mean", "Mul", "Neg", "PRelu", "ReduceMean", "ReduceSum", "Relu", "Selu", "Slice", "Softplus", "Sub", "Sum",
}  # fmt: skip
# Their other inputs are indices.
_FIRST_ONLY = {"Gather", "ReduceMean", "ReduceSum", "Slice"}
_PRODUCTS = _LAYERS | {"Div", "Mul"}
_SOFTMAX = {"Softmax", "QLinearSoftmax"}
_SIGMOIDS = {"Sigmoid", "HardSigmoid", "QLinearSigmoid"}
_SUMS = {"ReduceSum", "ReduceL1"}


def ending_of(graph: onnx.GraphProto, output: str) -> tuple[str, str] | None:
    """PROBABILITIES, SIGMOID or LOGITS (a layer with weights, or log-probabilities) and its operator.

    None where the graph, whose weights may lie in other files, does not say.
    """
    ends = _Ends(graph)
    node = ends.maker(output)
    if node is None:
        return None
    bounded = ends.bounded(node)
    if bounded is not None:
        return bounded, node.op_type
    if node.op_type == "LogSoftmax" or (node.op_type == "Log" and ends.is_of(node, PROBABILITIES)):
        return LOGITS, node.op_type
    return (LOGITS, node.op_type) if ends.is_layer(node) else None


class _Ends:
    """The graph, read from its outputs backwards."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph

    @cached_property
    def _makers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self._graph.node for name in node.output}

    @cached_property
    def _constants(self) -> set[str]:
        found = fed_names(self._graph)
        for node in self._graph.node:
            if not list(graphs_inside(node)) and all(not name or name in found for name in node.input):
                found.update(node.output)
        return found

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a tensor's values, past those that hand them on; None for an input or weight."""
        node = self._makers.get(name)
        while node is not None and node.op_type in _SAME:
            node = self._makers.get(node.input[0])
        return node

    def bounded(self, node: onnx.NodeProto) -> str | None:
        """PROBABILITIES or SIGMOID where a node gives those, whole or taken apart, or logarithms of sigmoids."""
        kind = node.op_type
        if kind in _SOFTMAX or self._is_normalised(node):
            return PROBABILITIES
        if kind in _SIGMOIDS or self._is_logistic(node):
            return SIGMOID
        before = self.maker(node.input[0]) if kind == "Exp" else None
        if before is not None and before.op_type == "LogSoftmax":
            return PROBABILITIES
        return SIGMOID if kind == "Log" and self.is_of(node, SIGMOID) else None

    def is_of(self, node: onnx.NodeProto, kind: str) -> bool:
        """Whether a node's first input is of that kind."""
        before = self.maker(node.input[0])
        return before is not None and before.op_type != "Log" and self.bounded(before) == kind

    def _is_normalised(self, node: onnx.NodeProto) -> bool:
        """Quotient of values and their sum, as a softmax taken apart ends."""
        if node.op_type != "Div":
            return False
        over, under = self.maker(node.input[0]), self.maker(node.input[1])
        if over is None or under is None or under.op_type not in _SUMS:
            return False
        summed = self.maker(under.input[0])
        return summed is not None and summed.output[0] == over.output[0]

    def _is_logistic(self, node: onnx.NodeProto) -> bool:
        """1 / (1 + exp(-x)), a sigmoid taken apart."""
        if node.op_type not in ("Div", "Reciprocal"):
            return False
        under, over = self.maker(node.input[-1]), node.input[:-1]
        if under is None or under.op_type != "Add" or not self._constants.issuperset(over):
            return False
        return [part.op_type for part in self._varying_makers(under.input)] == ["Exp"]

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether every way back from a node meets a layer with weights before it meets anything with bounds.

        The last layer's input may not be bounded either: a fixed mixture of softmaxes is still a distribution.
        """
        waiting, seen, found = [(node, 0)], set[tuple[str, int]](), False
        while waiting:
            one, layers = waiting.pop()
            if layers > 1 or (one.output[0], layers) in seen:
                continue
            seen.add((one.output[0], layers))
            unbounded = self._is_unbounded(one)
            if self.bounded(one) is not None or not (unbounded or layers):
                return False
            if unbounded:
                layers += one.op_type in _LAYERS
                found = found or layers > 0
                read = one.input[:1] if one.op_type in _FIRST_ONLY else one.input
                waiting += [(other, layers) for other in self._varying_makers(read)]
        return found

    def _varying_makers(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        makers = (self.maker(name) for name in names if name and name not in self._constants)
        return [maker for maker in makers if maker is not None]

    def _is_unbounded(self, node: onnx.NodeProto) -> bool:
        varying = [name for name in node.input if name and name not in self._constants]
        return node.op_type in _UNBOUNDED and (node.op_type not in _PRODUCTS or len(varying) == 1)
