"""The last step of a native ensemble: a small ONNX model that combines its members' outputs.

It computes what `orchestrator.decision` computes for a single stage.

A native ensemble cannot refuse one row. Where the cascade would answer UNAVAILABLE (a member gave NaN,
+inf or a row of -inf, and the stage does not say `on_failure: answer`) the row has label -1, NaN for
probabilities and confidence, and the degraded bit.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.pieces import (
    IR_VERSION,
    ONNX_TYPES,
    OPSET,
    CombineNodes,
    GraphBuilder,
    cleaned,
    output_infos,
    raw_logits,
    usable_rows,
)
from orchestrator.spec import CascadeSpec, cascade_from_json, json_from_cascade

PLAN_KEY = "cascade"


def averaging_name(ensemble: str) -> str:
    """Name of the model that averages for an ensemble."""
    return f"{ensemble}_mean"


def scores_name(index: int) -> str:
    """Name of the averaging model's input that takes a member's output."""
    return f"scores_{index}"


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
    graph = GraphBuilder()
    _Averaging(spec, kinds, graph).build()
    inputs = [
        helper.make_tensor_value_info(scores_name(i), ONNX_TYPES[dtype], ["n", spec.classes])
        for i, dtype in enumerate(kinds)
    ]
    model = helper.make_model(
        graph.proto(averaging_name(spec.name), inputs, output_infos(spec.classes)),
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


class _Averaging:
    """One spec's graph, built step by step."""

    def __init__(self, spec: CascadeSpec, dtypes: Sequence[str], graph: GraphBuilder) -> None:
        self.spec = spec
        self.dtypes = dtypes
        self.g = graph

    def build(self) -> None:
        g, spec = self.g, self.spec
        z = self._stacked()
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
        self._outputs(p, label, score, good)

    def _stacked(self) -> str:
        """Logits over temperature, float32 (n, m, k)."""
        g = self.g
        axis = g.constant([1], np.int64)
        parts = []
        for index, (member, dtype) in enumerate(zip(self.spec.members, self.dtypes, strict=True)):
            parts.append(g.op("Unsqueeze", raw_logits(g, member, scores_name(index), dtype=dtype), axis))
        z = g.op("Concat", *parts, axis=1)
        return g.op("Div", z, g.constant([[[m.temperature] for m in self.spec.members]]))

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
        g.filled(shape, np.int32(0), name="exit_stage")
        g.filled(shape, np.float32(stage.cost), name="cost")
        g.op("Cast", g.op("Sub", g.constant(1), all_good), to=TensorProto.INT32, name="status")
