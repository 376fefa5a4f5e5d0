"""The last step of a native ensemble: a small ONNX model that combines its members' outputs.

It computes what `orchestrator.decision` computes for a single stage. Members are stacked as (n, m, k), so
the number of nodes does not grow with m, save where the order of a sum decides ties.

A native ensemble cannot refuse one row. Where the cascade would answer UNAVAILABLE (a member gave NaN,
+inf or a row of -inf, and the stage does not say `on_failure: answer`) the row has label -1, NaN for
probabilities and confidence, and the degraded bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.repository.configs import OUTPUTS, averaging_name, scores_name
from orchestrator.spec import CascadeSpec, cascade_from_json, json_from_cascade

OPSET = 18
# What ONNX Runtime 1.18, the oldest in support, can read.
IR_VERSION = 10
PLAN_KEY = "cascade"
ONNX_TYPES = {
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
}
# The same constants as the decision core's: its header says why.
PROBABILITY_FLOOR = 1e-30
LOGIT_BOUND = 1e30
LARGEST = float(np.finfo(np.float32).max)


def averaging_model(spec: CascadeSpec, *, dtypes: Sequence[str] | None = None) -> onnx.ModelProto:
    """The averaging model of a single-stage spec, carrying the spec itself in its metadata.

    Args:
        spec: with exactly one stage.
        dtypes: of each member's output in plan order, "FP32", "FP16" or "FP64"; None means all FP32.

    Raises:
        RepositoryError: more than one stage, or a dtype that is no floating-point one.
    """
    if len(spec.stages) != 1:
        raise RepositoryError(
            f"ensemble {spec.name}", got=f"{len(spec.stages)} stages", expected="one stage of all members"
        )
    kinds = list(dtypes) if dtypes is not None else ["FP32"] * len(spec.members)
    for member, kind in zip(spec.members, kinds, strict=True):
        if kind not in ("FP16", "FP32", "FP64"):
            raise RepositoryError(
                f"member {member.name} output {member.output}", got=kind, expected="FP32, FP16 or FP64"
            )
    graph = _Graph()
    _Averaging(spec, kinds, graph).build()
    model = helper.make_model(
        graph.proto(averaging_name(spec.name), spec, kinds),
        producer_name="committee",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, {PLAN_KEY: json_from_cascade(spec)})
    onnx.checker.check_model(model, full_check=True)
    return model


def spec_from_averaging(model: onnx.ModelProto, *, subject: str) -> CascadeSpec | None:
    """The spec an averaging model was made from, or None for any other model.

    Raises:
        SpecError: it carries one that cannot be read.
    """
    # A damaged file can hold bytes that are no text, which protobuf hands over as bytes.
    texts = [str(entry.value) for entry in model.metadata_props if entry.key == PLAN_KEY]
    if not texts or model.producer_name != "committee":
        return None
    try:
        return cascade_from_json(texts[0], subject)
    except SpecError as error:
        raise SpecError(subject, error.faults, fix="render the ensemble again") from error


class _Graph:
    """Nodes and constants gathered in order, with names made up from their place."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def over(self, kind: str, value: str, axis: int, *, keep: bool = False) -> str:
        """A reduction over one axis."""
        return self.op(kind, value, self.constant([axis], np.int64), keepdims=int(keep))

    def proto(self, name: str, spec: CascadeSpec, dtypes: Sequence[str]) -> onnx.GraphProto:
        inputs = [
            helper.make_tensor_value_info(scores_name(i), ONNX_TYPES[dtype], ["n", spec.classes])
            for i, dtype in enumerate(dtypes)
        ]
        outputs = [
            helper.make_tensor_value_info(
                output, ONNX_TYPES[dtype], ["n", spec.classes if output == "probabilities" else 1]
            )
            for output, dtype in OUTPUTS
        ]
        return helper.make_graph(self.nodes, name, inputs, outputs, initializer=self.constants)


class _Averaging:
    """One spec's graph, built step by step."""

    def __init__(self, spec: CascadeSpec, dtypes: Sequence[str], graph: _Graph) -> None:
        self.spec = spec
        self.dtypes = dtypes
        self.g = graph

    def build(self) -> None:
        g = self.g
        z = self._stacked()
        good = self._good(z)
        zero = g.constant(0)
        z = g.op("Where", g.op("Cast", good, to=TensorProto.BOOL), z, zero)
        # Bad rows are gone, so clipping meets no NaN, which not every kernel would hand on.
        z = g.op("Clip", z, g.constant(-LOGIT_BOUND), g.constant(LOGIT_BOUND))
        weights = g.op("Mul", good, g.constant([[[m.weight] for m in self.spec.members]]))
        asked = g.over("ReduceSum", weights, 1)
        p, ranking = self._combined(z, weights, asked)
        label = g.op("ArgMax", ranking, axis=1, keepdims=1)
        score = self._score(p, label, z, weights, asked)
        self._outputs(p, label, score, good)

    def _stacked(self) -> str:
        """Logits over temperature, float32 (n, m, k)."""
        g = self.g
        axis = g.constant([1], np.int64)
        parts = []
        for index, (member, dtype) in enumerate(zip(self.spec.members, self.dtypes, strict=True)):
            z = scores_name(index)
            if dtype != "FP32":
                z = g.op("Cast", z, to=TensorProto.FLOAT)
            if member.output_kind == "probabilities":
                floor = g.constant(PROBABILITY_FLOOR)
                # Where, not Max: a NaN compares false and so stays a NaN.
                z = g.op("Log", g.op("Where", g.op("Less", z, floor), floor, z))
            parts.append(g.op("Unsqueeze", z, axis))
        z = g.op("Concat", *parts, axis=1)
        return g.op("Div", z, g.constant([[[m.temperature] for m in self.spec.members]]))

    def _good(self, z: str) -> str:
        """1 where the member's row is usable, else 0; float32 (n, m, 1). Comparisons with NaN are false."""
        g = self.g
        below = g.op("Cast", g.op("LessOrEqual", z, g.constant(LARGEST)), to=TensorProto.FLOAT)
        above = g.op("Cast", g.op("GreaterOrEqual", z, g.constant(-LARGEST)), to=TensorProto.FLOAT)
        none_too_high = g.over("ReduceMin", below, 2, keep=True)
        some_finite = g.over("ReduceMax", above, 2, keep=True)
        return g.op("Mul", none_too_high, some_finite)

    def _combined(self, z: str, weights: str, asked: str) -> tuple[str, str]:
        """Probabilities and what the label is the largest of, each float32 (n, k)."""
        g = self.g
        if self.spec.combine == "mean_logit":
            total = g.over("ReduceSum", g.op("Mul", z, weights), 1)
            p = g.op("Softmax", g.op("Div", total, asked), axis=1)
            return p, p
        each = g.op("Mul", g.op("Softmax", z, axis=2), weights)
        mean = g.op("Div", g.over("ReduceSum", each, 1), asked)
        if self.spec.combine != "vote":
            # With a single stage the newest stage is all of it, so "last" is the mean too.
            return mean, mean
        votes = self._votes(z, weights)
        most = g.over("ReduceMax", votes, 1, keep=True)
        ranking = g.op("Where", g.op("Equal", votes, most), mean, g.constant(-1))
        return g.op("Div", votes, asked), ranking

    def _votes(self, z: str, weights: str) -> str:
        """Weight of the members that put each class first, float32 (n, k), added in plan order."""
        g = self.g
        tops = g.op("ArgMax", z, axis=2, keepdims=0)
        depth = g.constant(self.spec.classes, np.int64)
        each = g.op("Mul", g.op("OneHot", tops, depth, g.constant([0, 1]), axis=-1), weights)
        total = None
        for index in range(len(self.spec.members)):
            # One Add after another: a reduction may add in any order, and then equal votes are not equal.
            part = g.op("Gather", each, g.constant(index, np.int64), axis=1)
            total = part if total is None else g.op("Add", total, part)
        assert total is not None
        return total

    def _score(self, p: str, label: str, z: str, weights: str, asked: str) -> str:
        """The plan's score, float32 (n, 1)."""
        g = self.g
        if self.spec.score == "max_prob":
            return g.op("GatherElements", p, label, axis=1)
        if self.spec.score == "top2_gap":
            g.nodes.append(helper.make_node("TopK", [p, g.constant([2], np.int64)], ["two", "two_at"], axis=1))
            return g.over("ReduceSum", g.op("Mul", "two", g.constant([[1, -1]])), 1, keep=True)
        if self.spec.score == "neg_entropy":
            plogp = g.op("Mul", p, g.op("Log", g.op("Max", p, g.constant(1.2e-38))))
            ratio = g.op("Div", g.over("ReduceSum", plogp, 1, keep=True), g.constant(math.log(self.spec.classes)))
            return g.op("Clip", g.op("Add", ratio, g.constant(1)), g.constant(0), g.constant(1))
        same = g.op("Equal", g.op("ArgMax", z, axis=2, keepdims=1), g.op("Unsqueeze", label, self._axis(2)))
        agreed = g.op("Mul", g.op("Cast", same, to=TensorProto.FLOAT), weights)
        return g.op("Div", g.over("ReduceSum", agreed, 1), asked)

    def _axis(self, axis: int) -> str:
        return self.g.constant([axis], np.int64)

    def _outputs(self, p: str, label: str, score: str, good: str) -> None:
        g = self.g
        stage = self.spec.stages[0]
        all_good = g.over("ReduceMin", good, 1)
        usable = all_good if stage.on_failure == "error" else g.over("ReduceMax", good, 1)
        answered = g.op("Cast", usable, to=TensorProto.BOOL)
        nan = g.constant(math.nan)
        g.op("Where", answered, p, nan, name="probabilities")
        g.op("Where", answered, label, g.constant(-1, np.int64), name="label")
        g.op("Where", answered, score, nan, name="confidence")
        shape = g.op("Shape", label)
        for name, value in (("exit_stage", np.int32(0)), ("cost", np.float32(stage.cost))):
            filled = numpy_helper.from_array(np.array([value]), "value")
            g.op("ConstantOfShape", shape, name=name, value=filled)
        g.op("Cast", g.op("Sub", g.constant(1), all_good), to=TensorProto.INT32, name="status")
