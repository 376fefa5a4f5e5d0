"""A cascade as one graph: each later stage lies in a branch that runs for the rows that go on, or not at all.

members of stage 0 -> decision -> rows that go on? -- none --> the answers
                                       `-- some --> gather rows -> members of stage 1 -> decision -> ...
                                                    scatter the answers of those rows over the others'
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model

from export.compat import at_opset
from export.onefile.stages import CarriedTensors, EarlyDecision, GraphDecision, StageDecision, add_stage_decision
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
    """A member's graph, weights loaded, ready to be put into another; `dtype` is that of its output."""

    member: Member
    model: onnx.ModelProto
    sha256: str
    input: str
    dtype: str

    def put_into(self, g: GraphBuilder, rows: str) -> str:
        """Adds the member's nodes and weights, which read `rows` (n, *dims); returns its output (n, k) as it is.

        The weights become initialisers of `g` itself: in the graph around a branch, ONNX Runtime would neither
        pack nor fuse them, and the branch ran 1.25 times slower.
        """
        graph, output, prefix = self.model.graph, self.member.output, f"member/{self.member.name}/"

        def new(old: str) -> str:
            # The input is a tensor that is there already.
            return rows if old == self.input else prefix + old

        needed = needed_nodes(graph, {output})
        used = {output}.union(*map(names_read, needed))
        for node in needed:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            # Two nodes of one name are an error; nodes without a name are allowed.
            rename_node(copy, tensor=new, name=lambda one: prefix + one.name if one.name else "")
            _drop_notes(copy)
            g.nodes.append(copy)
        for weight in graph.initializer:
            if weight.name in used:
                moved = onnx.TensorProto()
                moved.CopyFrom(weight)
                moved.name, moved.doc_string = new(weight.name), ""
                g.constants.append(moved)
        return new(output)


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
                    f"member {part.member.name} operators of {domain}", got=f"version {one.version}",
                    expected=f"{found[domain]} as in the members before it",
                    fix="export the members with the same tools",
                )  # fmt: skip
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


def read_member(spec: CascadeSpec, member: Member, repository: Path) -> MemberGraph:
    """The graph of a member of a cascade.

    Raises:
        ExportError: it is no ONNX model, does not fit the plan, or is another file than it was made with.
        RepositoryError: its files cannot be read.
    """
    path = _onnx_file(repository / member.name, member)
    digest = sha256_of_path(path)
    if member.sha256 is not None and digest != member.sha256:
        expected = f"{member.sha256[:12]}..., which the thresholds were fitted on"
        got = f"{path} with hash {digest[:12]}..."
        raise ExportError(f"member {member.name}", got=got, expected=expected, fix="plan again")
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
    if path is not None and path.suffix == ".onnx":
        return path
    raise ExportError(
        what,
        got=kind or (path.name if path is not None else "no model file"),
        expected="an ONNX model: one file holds nothing else",
        fix="plan with the member's ONNX original, or serve the cascade by `committee serve`",
    )


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
            f"member {member.name}", got="; ".join(faults), expected="what the plan says of it",
            fix="plan again, or export the member again",
        )  # fmt: skip
    return source, scores.dtype


# output name -> tensor of a graph
Tensors = dict[str, str]
_OUTERMOST = "stage/0/"


def nested_graph(spec: CascadeSpec, parts: Mapping[str, MemberGraph], *, stages: int | None) -> onnx.GraphProto:
    """The graph of a cascade, with the served interface, from its members by name, all at one opset.

    That of some leading stages gives the raw output of each of their members instead: float32 (n, k), named by the
    member, NaN in rows that it was not asked for.
    """
    if stages is None:
        return _NestedStages(spec, parts, len(spec.stages)).graph()
    return _NestedPrefix(spec, parts, stages).graph()


class _NestedStages:
    """A cascade as nested branches, with the answer as it is served: each lies in the stage before."""

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
        own = self._own(g, outputs)
        if own and stage == self.last:
            return own
        logits = [raw_logits(g, part.member, outputs[part.member.name], dtype=part.dtype) for part in parts]
        decision = add_stage_decision(g, self.spec, stage=stage, logits=logits, before=before)
        if stage == self.last:
            return self._without(g, stage, decision)
        return {**own, **self._merged(g, stage, rows, decision=decision)}

    def _merged(self, g: GraphBuilder, stage: int, rows: str, *, decision: StageDecision) -> Tensors:
        """The outputs, with those of later stages for the deferred rows."""
        if isinstance(decision, EarlyDecision):
            rest = GraphBuilder(f"stage/{stage}/closer/")
            given = self._merged(rest, stage, rows, decision=decision.rest(rest))
            some_unsure = self._branch(rest, f"unsure_{stage}", given)
            return self._if(g, stage, decision.all_sure, yes=self._left(stage, decision), no=some_unsure)
        assert decision.deferred is not None
        found = g.op("NonZero", decision.deferred)
        some = g.op("Cast", g.op("Size", found), to=TensorProto.BOOL)
        asked = self._asked(stage, rows, decision, found)
        return self._if(g, stage, some, yes=asked, no=self._left(stage, decision))

    def _if(
        self, g: GraphBuilder, stage: int, condition: str, *, yes: onnx.GraphProto, no: onnx.GraphProto
    ) -> Tensors:
        given = {name: name if g.prefix == _OUTERMOST else f"{g.prefix}{name}" for name in self._names(stage)}
        g.nodes.append(helper.make_node("If", [condition], list(given.values()), then_branch=yes, else_branch=no))
        return given

    def _left(self, stage: int, decision: StageDecision) -> onnx.GraphProto:
        """The branch in which no row is deferred."""
        g = GraphBuilder(f"stage/{stage}/{'sure' if isinstance(decision, EarlyDecision) else 'left'}/")
        # A branch cannot return an outer tensor itself.
        kept = {name: g.op("Identity", value) for name, value in self._without(g, stage, decision).items()}
        return self._branch(g, f"left_{stage}", kept)

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
        return self._branch(g, f"asked_{stage + 1}", given)

    def _branch(self, g: GraphBuilder, name: str, given: Tensors) -> onnx.GraphProto:
        infos = []
        for output, tensor in given.items():
            infos.append(self._info(output, None))
            infos[-1].name = tensor
        return g.proto(name, [], infos)

    def _own(self, g: GraphBuilder, outputs: Tensors) -> Tensors:  # noqa: ARG002 - a whole cascade has none
        """Outputs that a stage gives itself, whatever later stages say."""
        return {}

    def _without(self, g: GraphBuilder, stage: int, decision: StageDecision) -> Tensors:
        """The outputs in a branch without later stages."""
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
        """The outputs that stages after the given one change."""
        return list(ANSWER_COLUMNS)

    def _info(self, name: str, rows: str | None) -> onnx.ValueInfoProto:
        """An output as a graph declares it."""
        column = ANSWER_COLUMNS[name]
        kind = ONNX_TYPES[column.triton_dtype]
        return helper.make_tensor_value_info(name, kind, [rows, column.width(self.spec.classes)])


class _NestedPrefix(_NestedStages):
    """The leading stages, with the raw outputs of their members."""

    def _own(self, g: GraphBuilder, outputs: Tensors) -> Tensors:
        return {
            name: tensor if self.parts[name].dtype == "FP32" else g.op("Cast", tensor, to=TensorProto.FLOAT)
            for name, tensor in outputs.items()
        }

    def _without(self, g: GraphBuilder, stage: int, decision: StageDecision) -> Tensors:
        shape = g.op("Shape", decision.answer["probabilities"])
        return {name: g.filled(shape, np.float32(math.nan)) for name in self._names(stage)}

    def _names(self, after: int) -> list[str]:
        later = self.spec.stages[after + 1 : self.last + 1]
        return [member.name for one in later for member in one.members]

    def _info(self, name: str, rows: str | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, self.spec.classes])
