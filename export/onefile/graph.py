"""A cascade as one graph: each later stage lies in a branch that runs for the rows that go on, or not at all.

members of stage 0 -> decision -> rows that go on? -- none --> the answers
                                       `-- some --> gather rows -> members of stage 1 -> decision -> ...
                                                    scatter the answers of those rows over the others'
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.onefile.members import MemberGraph
from export.onefile.stages import CarriedTensors, EarlyDecision, GraphDecision, add_stage_decision
from orchestrator.graphs.pieces import ONNX_TYPES, GraphBuilder
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import ANSWER_COLUMNS

# output name -> tensor of a graph
Tensors = dict[str, str]
_OUTERMOST = "stage/0/"


def whole_graph(spec: CascadeSpec, parts: Mapping[str, MemberGraph]) -> onnx.GraphProto:
    """The graph of a whole cascade, with the served interface, from its members by name, all at one opset."""
    return _Whole(spec, parts, len(spec.stages)).graph()


def prefix_graph(spec: CascadeSpec, parts: Mapping[str, MemberGraph], *, stages: int) -> onnx.GraphProto:
    """The graph of the leading stages, which gives the raw output of each of their members.

    One float32 (n, k) per member, named by the member, NaN in rows that it was not asked for.
    """
    return _FusedPrefix(spec, parts, stages).graph()


class _Nested(ABC):
    """A cascade as nested branches: each later stage lies in a branch of the stage before."""

    def __init__(self, spec: CascadeSpec, parts: Mapping[str, MemberGraph], stages: int) -> None:
        self.spec = spec
        self.parts = parts
        self.last = stages - 1

    def graph(self) -> onnx.GraphProto:
        g = GraphBuilder(_OUTERMOST)
        source = self.spec.input
        given = self._stage(g, 0, source.name, before=CarriedTensors())
        for name, tensor in given.items():
            if tensor != name:
                g.op("Identity", tensor, name=name)
        inputs = [helper.make_tensor_value_info(source.name, ONNX_TYPES[source.dtype], ["batch", *source.dims])]
        return g.proto("onefile", inputs, [self._info(name, "batch") for name in given])

    def _stage(self, g: GraphBuilder, stage: int, rows: str, *, before: CarriedTensors) -> Tensors:
        """Adds a stage and all later ones; returns the outputs of this graph's rows."""
        parts = [self.parts[member.name] for member in self.spec.stages[stage].members]
        outputs = {part.member.name: part.put_into(g, rows) for part in parts}
        return self._outputs(g, stage, rows, outputs=outputs, before=before)

    @abstractmethod
    def _outputs(
        self, g: GraphBuilder, stage: int, rows: str, *, outputs: Tensors, before: CarriedTensors
    ) -> Tensors:
        """This stage's outputs merged with those of later stages; `outputs` are its members' outputs."""

    def _decision(
        self, g: GraphBuilder, stage: int, *, outputs: Tensors, before: CarriedTensors
    ) -> GraphDecision | EarlyDecision:
        logits = [self.parts[name].logits(g, tensor) for name, tensor in outputs.items()]
        return add_stage_decision(g, self.spec, stage=stage, logits=logits, before=before)

    @abstractmethod
    def _without(self, g: GraphBuilder, stage: int, decision: GraphDecision | EarlyDecision) -> Tensors:
        """The outputs in a branch without later stages."""

    @abstractmethod
    def _names(self, after: int) -> list[str]:
        """The outputs that stages after the given one change."""

    @abstractmethod
    def _info(self, name: str, rows: str | None) -> onnx.ValueInfoProto:
        """An output as a graph declares it."""

    def _merged(
        self, g: GraphBuilder, stage: int, rows: str, *, decision: GraphDecision | EarlyDecision
    ) -> Tensors:
        """The outputs, with those of later stages for the deferred rows."""
        if isinstance(decision, EarlyDecision):
            rest = GraphBuilder(f"stage/{stage}/closer/")
            given = self._merged(rest, stage, rows, decision=decision.rest(rest))
            infos = [self._info_of(name, tensor) for name, tensor in given.items()]
            some_unsure = rest.proto(f"unsure_{stage}", [], infos)
            return self._if(g, stage, decision.all_sure, yes=self._left(stage, decision), no=some_unsure)
        assert decision.deferred is not None
        found = g.op("NonZero", decision.deferred)
        some = g.op("Cast", g.op("Size", found), to=TensorProto.BOOL)
        asked = self._asked(stage, rows, decision, found)
        return self._if(g, stage, some, yes=asked, no=self._left(stage, decision))

    def _if(
        self, g: GraphBuilder, stage: int, condition: str, *, yes: onnx.GraphProto, no: onnx.GraphProto
    ) -> Tensors:
        names = self._names(stage)
        given = {name: name if g.prefix == _OUTERMOST else f"{g.prefix}{name}" for name in names}
        node = helper.make_node("If", [condition], list(given.values()), then_branch=yes, else_branch=no)
        g.nodes.append(node)
        return given

    def _left(self, stage: int, decision: GraphDecision | EarlyDecision) -> onnx.GraphProto:
        """The branch in which no row is deferred."""
        g = GraphBuilder(f"stage/{stage}/{'sure' if isinstance(decision, EarlyDecision) else 'left'}/")
        # A branch cannot return an outer tensor itself.
        kept = {name: g.op("Identity", value) for name, value in self._without(g, stage, decision).items()}
        return g.proto(f"left_{stage}", [], [self._info_of(name, tensor) for name, tensor in kept.items()])

    def _asked(self, stage: int, rows: str, decision: GraphDecision, found: str) -> onnx.GraphProto:
        """The branch that asks the next stage about the deferred rows."""
        g = GraphBuilder(f"stage/{stage + 1}/")
        at = g.op("Gather", found, g.constant(0, np.int64), axis=0)
        some = g.op("Gather", rows, at, axis=0)
        inner = self._stage(g, stage + 1, some, before=decision.carried.rows(g, at))
        under = self._without(g, stage, decision)
        places = g.op("Unsqueeze", at, g.constant([1], np.int64))
        given = {
            name: g.op("ScatterND", under[name], places, inner[name], name=f"{g.prefix}all/{name}")
            for name in inner
        }
        return g.proto(f"asked_{stage + 1}", [], [self._info_of(name, given[name]) for name in given])

    def _info_of(self, name: str, tensor: str) -> onnx.ValueInfoProto:
        """What a branch declares for the tensor that becomes an output."""
        info = self._info(name, None)
        info.name = tensor
        return info


class _Whole(_Nested):
    """Every stage, with the answer as it is served."""

    def _outputs(
        self, g: GraphBuilder, stage: int, rows: str, *, outputs: Tensors, before: CarriedTensors
    ) -> Tensors:
        decision = self._decision(g, stage, outputs=outputs, before=before)
        if stage == self.last:
            return self._without(g, stage, decision)
        return self._merged(g, stage, rows, decision=decision)

    def _without(self, g: GraphBuilder, stage: int, decision: GraphDecision | EarlyDecision) -> Tensors:
        # Sums in float32, stage after stage, as the decision core charges rows.
        cost = np.float32(0)
        for one in self.spec.stages[: stage + 1]:
            cost = np.float32(cost + np.float32(one.cost))
        answer = dict(decision.answer)
        shape = g.op("Shape", answer["label"])
        for name, value in (("exit_stage", np.int32(stage)), ("status", np.int32(0)), ("cost", cost)):
            if name not in answer:
                answer[name] = g.filled(shape, value)
        return {name: answer[name] for name in ANSWER_COLUMNS}

    def _names(self, after: int) -> list[str]:  # noqa: ARG002 - every stage has a say in all of them
        return list(ANSWER_COLUMNS)

    def _info(self, name: str, rows: str | None) -> onnx.ValueInfoProto:
        column = ANSWER_COLUMNS[name]
        return helper.make_tensor_value_info(
            name, ONNX_TYPES[column.triton_dtype], [rows, column.width(self.spec.classes)]
        )


class _FusedPrefix(_Nested):
    """The leading stages, with the raw outputs of their members."""

    def _outputs(
        self, g: GraphBuilder, stage: int, rows: str, *, outputs: Tensors, before: CarriedTensors
    ) -> Tensors:
        own = {name: self._float(g, name, tensor) for name, tensor in outputs.items()}
        if stage == self.last:
            return own
        decision = self._decision(g, stage, outputs=outputs, before=before)
        return {**own, **self._merged(g, stage, rows, decision=decision)}

    def _float(self, g: GraphBuilder, member: str, tensor: str) -> str:
        return tensor if self.parts[member].dtype == "FP32" else g.op("Cast", tensor, to=TensorProto.FLOAT)

    def _without(self, g: GraphBuilder, stage: int, decision: GraphDecision | EarlyDecision) -> Tensors:
        shape = g.op("Shape", decision.answer["probabilities"])
        return {name: g.filled(shape, np.float32(math.nan)) for name in self._names(stage)}

    def _names(self, after: int) -> list[str]:
        later = self.spec.stages[after + 1 : self.last + 1]
        return [member.name for one in later for member in one.members]

    def _info(self, name: str, rows: str | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, self.spec.classes])
