"""Multiply-accumulates of a whole graph, node by node, the graphs inside If, Loop and Scan included."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, numpy_helper

from export.cost.rules import NodeView, Shape, is_preprocess, macs_of, operator_of
from export.cost.shapes import GraphPath, Shapes, graphs_of, shapes_of
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import all_graphs, inlined

COUNTER = "committee onnx counter (convolutions, matrix products, attention, recurrences)"
LARGER_BRANCH = "of an If the larger branch counts: an upper bound"
EARLY_END = "a Loop that may end early counts in full: an upper bound"


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """Multiply-accumulates of one node, of the network or of the image processing, for all rows counted."""

    name: str
    operator: str
    macs: int
    preprocess: bool


@dataclass(frozen=True, kw_only=True)
class GraphCost:
    """What a graph costs: parameters, and each node that multiplies and accumulates, at a batch of rows.

    Nodes of a graph inside another are named "outer > inner". The notes say what the numbers assume, if anything.
    """

    rows: int
    parameters: int
    nodes: tuple[NodeCost, ...]
    notes: tuple[str, ...]

    @property
    def macs_per_row(self) -> int:
        """Of the network."""
        return self.per_row(node for node in self.nodes if not node.preprocess)

    @property
    def preprocess_macs_per_row(self) -> int:
        """Of the image processing in front of it."""
        return self.per_row(node for node in self.nodes if node.preprocess)

    def per_row(self, nodes: Iterable[NodeCost]) -> int:
        """Sum over some of the nodes, rounded up to whole multiply-accumulates per row."""
        return -(-sum(node.macs for node in nodes) // self.rows)


def cost_of(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> GraphCost:
    """Counts a graph; its weights may be missing, their shapes suffice.

    A free batch axis is taken as 1 and a fixed one as it is; `shapes` are those of inputs, batch first, where the
    model leaves more than the batch open.

    Raises:
        ExportError: a shape that matters cannot be inferred, or an operator's work is not known.
    """
    whole = inlined(model)
    found = shapes_of(whole, shapes or {})
    counter = _Counter(found)
    nodes = counter.count(whole.graph, (), {}, {})
    notes = (*found.notes, *sorted(counter.notes))
    return GraphCost(rows=found.rows, parameters=parameters_of(whole), nodes=tuple(nodes), notes=notes)


def macs_per_row(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of the network, one row, image processing left out; raises as `cost_of`."""
    return cost_of(model).macs_per_row


def preprocess_macs_per_row(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of the image processing ("preprocess/..."), one row; raises as `cost_of`."""
    return cost_of(model).preprocess_macs_per_row


class _Counter:
    def __init__(self, shapes: Shapes) -> None:
        self.notes: set[str] = set()
        self._scopes = shapes.scopes

    def count(
        self,
        graph: onnx.GraphProto,
        path: GraphPath,
        outer: Mapping[str, Shape],
        constants: Mapping[str, onnx.TensorProto],
    ) -> list[NodeCost]:
        """Costs of a graph's nodes and of the nodes in inner graphs, times how often each runs."""
        shapes = {**outer, **self._scopes[path]}
        values = {**constants, **_constants(graph)}
        found: list[NodeCost] = []
        for node in graph.node:
            name = node.name or f"{node.op_type} of {node.output[0] if node.output else '?'}"
            view = NodeView(node, name, shapes)
            inside = {
                attribute: self.count(inner, key, shapes, values)
                for attribute, key, inner in graphs_of(node, path)
            }
            if not inside:
                preprocess = is_preprocess(node.name)
                cost = NodeCost(name=name, operator=operator_of(node), macs=macs_of(view), preprocess=preprocess)
                found += [cost] if cost.macs else []
                continue
            found += [
                replace(cost, name=f"{name} > {cost.name}", macs=cost.macs * times)
                for costs, times in self._runs(view, inside, values)
                for cost in costs
            ]
        return found

    def _runs(
        self, view: NodeView, inside: Mapping[str, list[NodeCost]], constants: Mapping[str, onnx.TensorProto]
    ) -> list[tuple[list[NodeCost], int]]:
        """The inner graphs that a node runs, and how often it runs each."""
        if not any(inside.values()):
            return []
        operator = view.node.op_type
        if operator == "If":
            totals = {name: sum(cost.macs for cost in costs) for name, costs in inside.items()}
            if len(set(totals.values())) > 1:
                self.notes.add(LARGER_BRANCH)
            return [(inside[max(totals, key=lambda name: totals[name])], 1)]
        if operator == "Scan":
            first = len(view.node.input) - view.attribute("num_scan_inputs", 1)
            axis = (view.attribute("scan_input_axes", None) or [0])[0]
            return [(inside["body"], view.shape(first)[axis])]
        trips = constants.get(view.node.input[0]) if operator == "Loop" else None
        if trips is None:
            got = f"{operator} that runs an unknown number of times"
            fix = "unroll it, or count its body alone"
            raise ExportError(f"cost of {view.subject}", got=got, expected="a constant number", fix=fix)
        if not _runs_to_the_end(view.attribute("body", None)):
            self.notes.add(EARLY_END)
        return [(inside["body"], int(numpy_helper.to_array(trips).item()))]


def _runs_to_the_end(body: onnx.GraphProto) -> bool:
    """Whether a loop's body returns the condition it got, or a constant."""
    made = {output: node for node in body.node for output in node.output}
    name = body.output[0].name
    while name in made and made[name].op_type == "Identity":
        name = made[name].input[0]
    constant = _constants(body)
    if name in constant:
        return bool(numpy_helper.to_array(constant[name]).item())
    return name == body.input[1].name


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initialisers and the tensors of Constant nodes, by name."""
    return {weight.name: weight for weight in graph.initializer} | {
        node.output[0]: part.t
        for node in graph.node
        if node.op_type == "Constant"
        for part in node.attribute
        if part.name == "value"
    }


_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16))
# Inputs of quantised operators that hold weights or biases; their other inputs are scales and zero points.
_QUANTISED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (0,)),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("QLinearMatMul", "QLinearAdd", "QLinearMul"), (0, 3)),
    "QLinearConv": (0, 3, 8),
    "QGemm": (0, 3, 6),
    "QAttention": (0, 1, 2),
    "MatMulIntegerToFloat": (0, 1, 6),
    "DynamicQuantizeMatMul": (0, 1, 4),
    "DynamicQuantizeLSTM": (0, 1, 2, 3),
    "MatMulNBits": (5,),
}


def parameters_of(model: onnx.ModelProto) -> int:
    """Trained values of the network: floats, and the integers that quantised operators take as weights.

    Scales and zero points are not counted, nor are constants of the image processing in front ("preprocess/...").
    Graphs inside If, Loop and Scan are.
    """
    graphs = [model.graph, *all_graphs(model.graph.node)]
    nodes = [node for graph in graphs for node in graph.node]
    weights, settings = _roles(nodes)
    # This one's weight packs several values into a byte; attributes have its size.
    packed = [node for node in nodes if node.op_type == "MatMulNBits"]
    total = sum(math.prod(part.i for part in node.attribute if part.name in "KN") for node in packed)
    for name, kind, size in (found for graph in graphs for found in _tensors(graph)):
        trained = name in weights or (kind in _FLOATS and name not in settings)
        total += size if trained and not is_preprocess(name) else 0
    return total


def _roles(nodes: Iterable[onnx.NodeProto]) -> tuple[set[str], set[str]]:
    """Names of quantised operators' weights, and names of their scales and zero points."""
    weights, settings, others = set[str](), set[str](), set[str]()
    for node in nodes:
        operator = operator_of(node).rpartition("::")[2]
        known = _QUANTISED.get(operator, () if operator.startswith("QLinear") else None)
        for index, name in enumerate(node.input):
            target = others if known is None else weights if index in known else settings
            target.add(name)
    return weights, settings - weights - others


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, int, int]]:
    """Name, type and size of every constant; a scalar in a Constant node is not a trained value."""
    weights = {weight.name for weight in graph.initializer}
    for name, tensor in _constants(graph).items():
        if tensor.dims or name in weights:
            yield name, tensor.data_type, math.prod(tensor.dims)
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, sparse.values.data_type, math.prod(sparse.values.dims)
