"""Pieces of ONNX graphs that compute what `orchestrator.decision` computes: combine modes and scores.

Members are stacked as (n, m, k), so that the number of nodes does not grow with m, save where the order of a
sum decides ties. Every piece adds its nodes to a `Graph` and returns the names of the tensors it made.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from orchestrator.graphs.editing import names_read
from orchestrator.spec import Member
from orchestrator.spec.answer import ANSWER_COLUMNS

# The highest opset that both ONNX Runtime of 2023 and TensorRT 10 read completely.
OPSET = 18
# The newest file version that ONNX Runtime 1.18, the oldest in support, opens.
IR_VERSION = 10
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}
# Equal to the decision core's constants, whose module explains them.
PROBABILITY_FLOOR = 1e-30
LOGIT_BOUND = 1e30
LARGEST = float(np.finfo(np.float32).max)


class GraphBuilder:
    """Nodes and constants gathered in order, with names made up from their place.

    Args:
        prefix: of every name made up; different for each graph of a model, since names reach into branches.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._made = 0

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node with one output; returns its name."""
        output = name or f"{self.prefix}{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        """An initialiser, float32 unless told."""
        name = f"{self.prefix}constant_{self._made}"
        self._made += 1
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def over(self, kind: str, value: str, axis: int, *, keep: bool = False) -> str:
        """A reduction over one axis."""
        return self.op(kind, value, self.constant([axis], np.int64), keepdims=int(keep))

    def filled(self, shape: str, value: np.generic, *, name: str | None = None) -> str:
        """One value in the shape that the tensor `shape` holds."""
        one = numpy_helper.from_array(np.array([value]), "value")
        return self.op("ConstantOfShape", shape, name=name, value=one)

    def proto(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """All of it as a graph, without constants that nothing reads: runtimes warn of them."""
        used = {value.name for value in outputs}.union(*map(names_read, self.nodes))
        constants = [one for one in self.constants if one.name in used]
        return helper.make_graph(self.nodes, name, inputs, outputs, initializer=constants)


def output_infos(classes: int, rows: str = "n") -> list[onnx.ValueInfoProto]:
    """The outputs of the served interface, as a graph declares them."""
    return [
        helper.make_tensor_value_info(name, ONNX_TYPES[column.triton_dtype], [rows, column.width(classes)])
        for name, column in ANSWER_COLUMNS.items()
    ]


def raw_logits(g: GraphBuilder, member: Member, scores: str, *, dtype: str) -> str:
    """A member's output as float32 logits (n, k), before its temperature."""
    z = scores if dtype == "FP32" else g.op("Cast", scores, to=TensorProto.FLOAT)
    if member.output_kind != "probabilities":
        return z
    floor = g.constant(PROBABILITY_FLOOR)
    # Where, not Max: a NaN compares false and so stays a NaN.
    return g.op("Log", g.op("Where", g.op("Less", z, floor), floor, z))


def usable_rows(g: GraphBuilder, z: str) -> str:
    """1 where a member's row is usable, else 0; float32 (n, m, 1). Comparisons with NaN are false."""
    below = g.op("Cast", g.op("LessOrEqual", z, g.constant(LARGEST)), to=TensorProto.FLOAT)
    above = g.op("Cast", g.op("GreaterOrEqual", z, g.constant(-LARGEST)), to=TensorProto.FLOAT)
    none_too_high = g.over("ReduceMin", below, 2, keep=True)
    some_finite = g.over("ReduceMax", above, 2, keep=True)
    return g.op("Mul", none_too_high, some_finite)


def cleaned(g: GraphBuilder, z: str, good: str) -> str:
    """Logits (n, m, k) with 0 in unusable rows, and bounded."""
    z = g.op("Where", g.op("Cast", good, to=TensorProto.BOOL), z, g.constant(0))
    # Bad rows are gone, so clipping meets no NaN, which not every kernel would hand on.
    return bounded(g, z)


def bounded(g: GraphBuilder, z: str) -> str:
    """Logits within the core's bound, so that no sum of them is infinite; they must not be NaN."""
    return g.op("Clip", z, g.constant(-LOGIT_BOUND), g.constant(LOGIT_BOUND))


class CombineNodes:
    """Combine mode and score of one plan.

    Args:
        g: where the nodes go.
        combine: one of `orchestrator.spec.COMBINES`.
        score: one of `orchestrator.spec.SCORES`.
        classes: k.

    In its methods z is float32 (n, m, k) of m `members`, cleaned logits over their temperatures; weights is
    (n, m, 1) or (1, m, 1), 0 for members that do not count; asked, their sum, is (n, 1) or (1, 1).
    """

    def __init__(self, g: GraphBuilder, *, combine: str, score: str, classes: int) -> None:
        self.g = g
        self._combine = combine
        self._score = score
        self._classes = classes

    def combined(self, z: str, *, members: int, weights: str, asked: str) -> tuple[str, str]:
        """Probabilities and what the label is the largest of, each float32 (n, k)."""
        g = self.g
        if self._combine == "mean_logit":
            total = g.over("ReduceSum", g.op("Mul", z, weights), 1)
            p = g.op("Softmax", g.op("Div", total, asked), axis=1)
            return p, p
        each = g.op("Mul", g.op("Softmax", z, axis=2), weights)
        mean = g.op("Div", g.over("ReduceSum", each, 1), asked)
        if self._combine != "vote":
            # For "last" the caller gives the members of the newest stage alone.
            return mean, mean
        votes = self._votes(z, weights, members)
        most = g.over("ReduceMax", votes, 1, keep=True)
        ranking = g.op("Where", g.op("Equal", votes, most), mean, g.constant(-1))
        return g.op("Div", votes, asked), ranking

    def label(self, ranking: str) -> str:
        """int64 (n, 1); the lowest class of several."""
        return self.g.op("ArgMax", ranking, axis=1, keepdims=1)

    def agreement(self, label: str, *, z: str, weights: str, asked: str) -> str:
        """Weighted share of the members whose own top-1 is the label, float32 (n, 1)."""
        g = self.g
        tops = g.op("ArgMax", z, axis=2, keepdims=1)
        same = g.op("Equal", tops, g.op("Unsqueeze", label, g.constant([2], np.int64)))
        agreed = g.op("Mul", g.op("Cast", same, to=TensorProto.FLOAT), weights)
        return g.op("Div", g.over("ReduceSum", agreed, 1), asked)

    def score_of_probabilities(self, p: str, label: str) -> str:
        """The plan's score, unless that is "agreement"; float32 (n, 1)."""
        g = self.g
        if self._score == "max_prob":
            return g.op("GatherElements", p, label, axis=1)
        if self._score == "top2_gap":
            two, at = f"{g.prefix}two", f"{g.prefix}two_at"
            g.nodes.append(helper.make_node("TopK", [p, g.constant([2], np.int64)], [two, at], axis=1))
            return g.over("ReduceSum", g.op("Mul", two, g.constant([[1, -1]])), 1, keep=True)
        if self._score != "neg_entropy":
            raise ValueError(f"no graph computes the score {self._score}")
        plogp = g.op("Mul", p, g.op("Log", g.op("Max", p, g.constant(1.2e-38))))
        ratio = g.op("Div", g.over("ReduceSum", plogp, 1, keep=True), g.constant(math.log(self._classes)))
        return g.op("Clip", g.op("Add", ratio, g.constant(1)), g.constant(0), g.constant(1))

    def _votes(self, z: str, weights: str, members: int) -> str:
        """Weight of the members that put each class first, float32 (n, k), added in plan order."""
        g = self.g
        tops = g.op("ArgMax", z, axis=2, keepdims=0)
        depth = g.constant(self._classes, np.int64)
        each = g.op("Mul", g.op("OneHot", tops, depth, g.constant([0, 1]), axis=-1), weights)
        total = ""
        for index in range(members):
            # One Add after another: a reduction may add in any order, and then equal votes are not equal.
            part = g.op("Gather", each, g.constant(index, np.int64), axis=1)
            total = g.op("Add", total, part) if total else part
        return total
