"""The weighted average of an ensemble stage's members as nodes of a graph.

The same pieces as the native ensemble's averaging model; a row that any member fails comes out as NaN, which the
decision core takes for a failure of the fused member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto

from export.fusing.merge import AVERAGE
from orchestrator.graphs.pieces import Graph, cleaned, good_rows, raw_logits
from orchestrator.spec import Member


def add_average(
    scores: Sequence[tuple[Member, str, str]], *, combine: str, output: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants that average members.

    Args:
        scores: per member in plan order: how it is asked, the tensor (n, k) it makes, and that one's dtype.
        combine: "mean_logit", whose output is logits, or "mean_prob", whose output is probabilities.
        output: name of the tensor float32 (n, k) to make.
    """
    g = Graph(AVERAGE)
    members = [member for member, _, _ in scores]
    axis = g.constant([1], np.int64)
    stacked = [
        g.op("Unsqueeze", raw_logits(g, member, tensor, dtype=dtype), axis) for member, tensor, dtype in scores
    ]
    z = g.op("Concat", *stacked, axis=1)
    if any(member.temperature != 1 for member in members):
        z = g.op("Div", z, g.constant([[[member.temperature] for member in members]]))
    good = good_rows(g, z)
    z = cleaned(g, z, good)
    total = sum(member.weight for member in members)
    shares = g.constant([[[member.weight / total] for member in members]])
    each = z if combine == "mean_logit" else g.op("Softmax", z, axis=2)
    mean = g.over("ReduceSum", g.op("Mul", each, shares), 1)
    all_good = g.op("Cast", g.over("ReduceMin", good, 1), to=TensorProto.BOOL)
    g.op("Where", all_good, mean, g.constant(math.nan), name=output)
    for node in g.nodes:
        node.name = AVERAGE + node.output[0].removeprefix(AVERAGE)
    return g.nodes, g.constants
