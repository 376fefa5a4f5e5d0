"""ONNX graphs that compute what `orchestrator.decision` computes: combine modes, scores, a native ensemble's mean.

Members are stacked as (n, m, k), so that the number of nodes does not grow with m, save where the order of a
sum decides ties. Every piece adds its nodes to a `GraphBuilder` and returns the names of the tensors it made.

The averaging model is the last step of a native ensemble, for a plan of a single stage. An ensemble cannot refuse
one row. Where the cascade would answer UNAVAILABLE (a member gave NaN, +inf or a row of -inf, and the stage does
not say `on_failure: answer`) the row has label -1, NaN for probabilities and confidence, and the degraded bit.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.editing import PRODUCER, names_read, own_metadata
from orchestrator.spec import CascadeSpec, Member, cascade_from_json, json_from_cascade
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.output_kind import SCORE_DTYPES
from orchestrator.spec.request import INPUT_DTYPES

# The highest opset that both ONNX Runtime of 2023 and TensorRT 10 read completely.
OPSET = 18
# The newest file version that ONNX Runtime 1.18, the oldest in support, opens.
IR_VERSION = 10
# Triton dtype -> ONNX's number for it
ONNX_TYPES = {dtype: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for dtype, name in INPUT_DTYPES.items()}
# Equal to the decision core's constants, whose module explains them.
PROBABILITY_FLOOR = 1e-30
LOGIT_BOUND = 1e30
LARGEST = float(np.finfo(np.float32).max)


class GraphBuilder:
    """Nodes and constants gathered in order, with names made up from their place.

    The prefix of those names differs for each graph of a model, since names reach into branches.
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
    """Combine mode and score of one plan of k classes: one of COMBINES, one of SCORES.

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


PLAN_KEY = "cascade"


def averaging_name(ensemble: str) -> str:
    """Name of the model that averages for an ensemble."""
    return f"{ensemble}_mean"


def scores_name(index: int) -> str:
    """Name of the averaging model's input that takes a member's output."""
    return f"scores_{index}"


def averaging_model(spec: CascadeSpec, *, dtypes: Sequence[str] | None = None) -> onnx.ModelProto:
    """The averaging model of a single-stage spec, carrying the spec itself in its metadata.

    `dtypes` has each member's output's in plan order, of SCORE_DTYPES; None means all FP32.

    Raises:
        RepositoryError: more than one stage, or a dtype that is no floating-point one.
    """
    if len(spec.stages) != 1:
        got = f"{len(spec.stages)} stages"
        raise RepositoryError(f"ensemble {spec.name}", got=got, expected="one stage of all members")
    kinds = list(dtypes) if dtypes is not None else ["FP32"] * len(spec.members)
    for member, kind in zip(spec.members, kinds, strict=True):
        if kind not in SCORE_DTYPES:
            what = f"member {member.name} output {member.output}"
            raise RepositoryError(what, got=kind, expected="FP32, FP16 or FP64")
    graph = GraphBuilder()
    _add_average(graph, spec, kinds)
    inputs = [
        helper.make_tensor_value_info(scores_name(i), ONNX_TYPES[dtype], ["n", spec.classes])
        for i, dtype in enumerate(kinds)
    ]
    outputs = [
        helper.make_tensor_value_info(name, ONNX_TYPES[column.triton_dtype], ["n", column.width(spec.classes)])
        for name, column in ANSWER_COLUMNS.items()
    ]
    model = helper.make_model(
        graph.proto(averaging_name(spec.name), inputs, outputs),
        producer_name=PRODUCER,
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
    text = own_metadata(model).get(PLAN_KEY)
    try:
        return None if text is None else cascade_from_json(text, subject)
    except SpecError as error:
        raise SpecError(subject, error.faults, fix="render the ensemble again") from error


def _add_average(g: GraphBuilder, spec: CascadeSpec, dtypes: Sequence[str]) -> None:
    stage, axis = spec.stages[0], g.constant([1], np.int64)
    logits = [
        g.op("Unsqueeze", raw_logits(g, member, scores_name(index), dtype=dtype), axis)
        for index, (member, dtype) in enumerate(zip(spec.members, dtypes, strict=True))
    ]
    z = g.op("Concat", *logits, axis=1)
    z = g.op("Div", z, g.constant([[[m.temperature] for m in spec.members]]))
    good = usable_rows(g, z)
    z = cleaned(g, z, good)
    weights = g.op("Mul", good, g.constant([[[m.weight] for m in spec.members]]))
    asked = g.over("ReduceSum", weights, 1)
    combine = CombineNodes(g, combine=spec.combine, score=spec.score, classes=spec.classes)
    p, ranking = combine.combined(z, members=len(spec.members), weights=weights, asked=asked)
    label = combine.label(ranking)
    if spec.score == "agreement":
        score = combine.agreement(label, z=z, weights=weights, asked=asked)
    else:
        score = combine.score_of_probabilities(p, label)
    all_good = g.over("ReduceMin", good, 1)
    usable = all_good if stage.on_failure == "error" else g.over("ReduceMax", good, 1)
    answered = g.op("Cast", usable, to=TensorProto.BOOL)
    nan = g.constant(math.nan)
    g.op("Where", answered, p, nan, name="probabilities")
    g.op("Where", answered, label, g.constant(-1, np.int64), name="label")
    g.op("Where", answered, score, nan, name="confidence")
    shape = g.op("Shape", label)
    g.filled(shape, np.int32(0), name="exit_stage")
    g.filled(shape, np.float32(stage.cost), name="cost")
    g.op("Cast", g.op("Sub", g.constant(1), all_good), to=TensorProto.INT32, name="status")
