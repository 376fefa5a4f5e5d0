"""Members as parts of a larger graph: read from a repository, then put in with names of their own."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model

from export.compat import at_opset
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import DEFAULT_DOMAINS, all_graphs, inlined, names_read, needed_nodes, opset_of
from orchestrator.graphs.pieces import OPSET, GraphBuilder, raw_logits
from orchestrator.graphs.renaming import rename_node
from orchestrator.repository.completion import planned_version
from orchestrator.repository.files import sha256_of_path
from orchestrator.repository.index import config_of, model_file, onnx_from_path, plan_path
from orchestrator.repository.member_facts import fits, tensors_from_graph
from orchestrator.spec import CascadeSpec, Member
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
