"""A cascade as one graph: each later stage lies in a branch that runs for the rows that go on, or not at all.

members of stage 0 -> decision -> rows that go on? -- none --> the answers
                                       `-- some --> gather rows -> members of stage 1 -> decision -> ...
                                                    scatter the answers of those rows over the others'
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model

from export.compat import at_opset
from export.onefile.stages import CarriedTensors, EarlyDecision, GraphDecision, add_stage_decision
from orchestrator.errors import ExportError
from orchestrator.graphs.combining import ONNX_TYPES, OPSET, GraphBuilder, raw_logits
from orchestrator.graphs.editing import (
    DEFAULT_DOMAINS,
    all_graphs,
    inlined,
    names_read,
    needed_nodes,
    opset_of,
    rename_node,
)
from orchestrator.repository.files import sha256_of_path
from orchestrator.repository.index import config_of, model_file, onnx_from_path, plan_path
from orchestrator.repository.members import fits, planned_version, tensors_from_graph
from orchestrator.spec import CascadeSpec, Member
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.output_kind import SCORE_DTYPES


@dataclass(frozen=True)
class MemberGraph:
    """A member's graph, ready to be put into another.

    Args:
        member: as the plan names it.
        model: its ONNX model, weights loaded.
        sha256: of its file.
        input: name of its input tensor.
        dtype: of its output, "FP16", "FP32" or "FP64".
    """

    member: Member
    model: onnx.ModelProto
    sha256: str
    input: str
    dtype: str

    def put_into(self, g: GraphBuilder, rows: str) -> str:
        """Adds the member's nodes and weights; returns its output (n, k) as the member gives it.

        The weights become initialisers of `g` itself: in the graph around a branch, ONNX Runtime would neither
        pack nor fuse them, and the branch ran 1.25 times slower.

        Args:
            g: the graph it becomes a part of.
            rows: tensor (n, *dims) in `g` that it reads.
        """
        graph, output = self.model.graph, self.member.output
        needed = needed_nodes(graph, {output})
        used = {output}.union(*map(names_read, needed))
        for node in needed:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            rename_node(copy, tensor=lambda old: self._name(old, rows), name=self._node_name)
            _drop_notes(copy)
            g.nodes.append(copy)
        for weight in graph.initializer:
            if weight.name in used:
                moved = onnx.TensorProto()
                moved.CopyFrom(weight)
                moved.name, moved.doc_string = self._name(weight.name, rows), ""
                g.constants.append(moved)
        return self._name(output, rows)

    def _name(self, old: str, rows: str) -> str:
        """The new name of a tensor; the input is a tensor that is there already."""
        return rows if old == self.input else f"member/{self.member.name}/{old}"

    def _node_name(self, node: onnx.NodeProto) -> str:
        # Two nodes of one name are an error; nodes without a name are allowed.
        return f"member/{self.member.name}/{node.name}" if node.name else ""

    def logits(self, g: GraphBuilder, scores: str) -> str:
        """The member's output as float32 logits, before the temperature."""
        return raw_logits(g, self.member, scores, dtype=self.dtype)


def read_members(spec: CascadeSpec, members: Iterable[Member], *, repository: Path) -> dict[str, MemberGraph]:
    """The graphs of those members of a cascade that are wanted, by name.

    Raises:
        ExportError: a member is no ONNX model, does not fit the plan, or is another file than it was made with.
        RepositoryError: a member's files cannot be read.
    """
    return {member.name: _read(spec, member, repository) for member in members}


def weight_bytes(part: MemberGraph) -> int:
    """Bytes of a member's weights."""
    return sum(len(weight.raw_data) or weight.ByteSize() for weight in part.model.graph.initializer)


def common_opsets(parts: Iterable[MemberGraph]) -> dict[str, int]:
    """The opset of each domain that all members are brought to.

    Raises:
        ExportError: they need different versions of an operator set that cannot be converted.
    """
    found: dict[str, int] = {"": OPSET}
    for part in parts:
        for one in part.model.opset_import:
            domain = "" if one.domain in DEFAULT_DOMAINS else one.domain
            if domain and found.get(domain, one.version) != one.version:
                raise ExportError(
                    f"member {part.member.name} operators of {domain}",
                    got=f"version {one.version}",
                    expected=f"{found[domain]} as in the members before it",
                    fix="export the members with the same tools",
                )
            found[domain] = max(found.get(domain, 0), one.version)
    return found


def converted(part: MemberGraph, opset: int) -> MemberGraph:
    """The member with its graph brought to an opset of ONNX's own operators.

    Raises:
        ExportError: it cannot be converted.
    """
    found = opset_of(part.model) or opset
    try:
        return dataclasses.replace(part, model=at_opset(part.model, opset)) if found != opset else part
    # The converter raises whatever its C++ side threw.
    except Exception as error:
        raise ExportError(
            f"member {part.member.name}", got=f"opset {found} that cannot be converted ({error})",
            expected=f"opset {opset}", fix="export the member again",
        ) from error  # fmt: skip


def _drop_notes(node: onnx.NodeProto) -> None:
    """Drops the notes of the machine that made a member, and shapes inside, which no reader of the graph needs."""
    inside = list(all_graphs([node]))
    for one in (node, *(inner for graph in inside for inner in graph.node)):
        one.doc_string = ""
        del one.metadata_props[:]
    for graph in inside:
        del graph.value_info[:]
        for weight in graph.initializer:
            weight.doc_string = ""


def _read(spec: CascadeSpec, member: Member, repository: Path) -> MemberGraph:
    path = _onnx_file(repository / member.name, member)
    digest = sha256_of_path(path)
    if member.sha256 is not None and digest != member.sha256:
        raise ExportError(
            f"member {member.name}",
            got=f"{path} with hash {digest[:12]}...",
            expected=f"{member.sha256[:12]}..., which the thresholds were fitted on",
            fix="plan again",
        )
    model = onnx_from_path(path)
    try:
        load_external_data_for_model(model, str(path.parent))
        model = inlined(model)
    # Files outside the folder, cut short or missing each raise another exception.
    except Exception as error:
        raise ExportError(
            f"member {member.name}", got=f"weights of {path} that cannot be read ({error})",
            expected="a complete model", fix="export the member again",
        ) from error  # fmt: skip
    source, dtype = _tensors(spec, member, model)
    return MemberGraph(member, model, digest, source, dtype)


def _onnx_file(folder: Path, member: Member) -> Path:
    what = f"member {folder.name}"
    if not folder.is_dir():
        raise ExportError(what, got=f"no folder {folder}", fix="name the repository that holds it: `repository`")
    config = config_of(folder)
    path = model_file(folder, config, version=planned_version(member, folder, config=config))
    kind = "" if config is None else config.backend or config.platform
    if plan_path(folder) is not None:
        kind = "a cascade itself"
    if path is None or path.suffix != ".onnx":
        got = kind or (path.name if path is not None else "no model file")
        raise ExportError(
            what,
            got=got,
            expected="an ONNX model: one file holds nothing else",
            fix="plan with the member's ONNX original, or serve the cascade by `committee serve`",
        )
    return path


def _tensors(spec: CascadeSpec, member: Member, model: onnx.ModelProto) -> tuple[str, str]:
    """The name of the member's input and the dtype of its output."""
    inputs, outputs = tensors_from_graph(model.graph)
    source = member.input or spec.input.name
    faults = []
    if list(inputs) != [source]:
        faults.append(f"inputs {', '.join(inputs)} for {source} alone")
    elif inputs[source].dtype != spec.input.dtype or not fits(inputs[source].dims, (-1, *spec.input.dims)):
        got = f"{inputs[source].dtype} {list(inputs[source].dims)}"
        faults.append(f"input {source} {got} for {spec.input.dtype} {[-1, *spec.input.dims]}")
    elif inputs[source].dims[0] != -1:
        faults.append(f"a batch fixed at {inputs[source].dims[0]}")
    scores = outputs.get(member.output)
    if scores is None:
        faults.append(f"outputs {', '.join(outputs)} without {member.output}")
    elif scores.dtype not in SCORE_DTYPES or not fits(scores.dims, (-1, spec.classes)):
        faults.append(f"output {member.output} {scores.dtype} {list(scores.dims)} for {spec.classes} classes")
    if model.graph.sparse_initializer:
        faults.append("sparse weights, which cannot be moved into a branch")
    if faults or scores is None:
        raise ExportError(
            f"member {member.name}",
            got="; ".join(faults),
            expected="what the plan says of it",
            fix="plan again, or export the member again",
        )
    return source, scores.dtype


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
