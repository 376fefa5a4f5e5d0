"""Members as parts of a larger graph: read from a repository, then put in with names of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import version_converter
from onnx.external_data_helper import load_external_data_for_model

from orchestrator.errors import ExportError
from orchestrator.graphs.editing import inlined
from orchestrator.graphs.pieces import OPSET, GraphBuilder, raw_logits
from orchestrator.repository.completion import planned_version
from orchestrator.repository.files import sha256_of_path
from orchestrator.repository.index import config_of, model_file, onnx_from_path, plan_path
from orchestrator.repository.member_facts import fits, tensors_from_graph
from orchestrator.spec import CascadeSpec, Member
from orchestrator.spec.output_kind import SCORE_DTYPES

_DEFAULT_DOMAINS = ("", "ai.onnx")


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
        names = _Names(f"member/{self.member.name}/", self.input, rows)
        graph = self.model.graph
        needed = _needed_nodes(graph, self.member.output)
        used = {one for node in needed for one in _names_read(node)} | {self.member.output}
        g.nodes.extend(_renamed_node(node, names) for node in needed)
        g.constants.extend(_renamed_weight(one, names) for one in graph.initializer if one.name in used)
        return names.of_tensor(self.member.output)

    def logits(self, g: GraphBuilder, scores: str) -> str:
        """Its output as float32 logits, before the temperature."""
        return raw_logits(g, self.member, scores, dtype=self.dtype)


def read_members(spec: CascadeSpec, members: Iterable[Member], *, repository: Path) -> dict[str, MemberGraph]:
    """The graphs of members, by name.

    Args:
        spec: the cascade.
        members: those of its members that are wanted.
        repository: where they are.

    Raises:
        ExportError: a member is no ONNX model, does not fit the plan, or is another file than it was made with.
        RepositoryError: a member's files cannot be read.
    """
    return {member.name: _read(spec, member, repository) for member in members}


def weight_bytes(part: MemberGraph) -> int:
    """Bytes of a part's weights."""
    return sum(len(weight.raw_data) or weight.ByteSize() for weight in part.model.graph.initializer)


def common_opsets(parts: Iterable[MemberGraph]) -> dict[str, int]:
    """The opset of each domain that all the parts are brought to.

    Raises:
        ExportError: they need different versions of an operator set that cannot be converted.
    """
    found: dict[str, int] = {"": OPSET}
    for part in parts:
        for one in part.model.opset_import:
            domain = "" if one.domain in _DEFAULT_DOMAINS else one.domain
            if domain and found.get(domain, one.version) != one.version:
                raise ExportError(
                    f"member {part.member.name} operators of {domain}",
                    got=f"version {one.version}",
                    expected=f"{found[domain]} as in the members before it",
                    fix="export the members with the same tools",
                )
            found[domain] = max(found.get(domain, 0), one.version)
    return found


def at_opset(part: MemberGraph, opset: int) -> MemberGraph:
    """The part with its graph brought to an opset of ONNX's own operators.

    Raises:
        ExportError: it cannot be converted.
    """
    found = max((o.version for o in part.model.opset_import if o.domain in _DEFAULT_DOMAINS), default=opset)
    if found == opset:
        return part
    try:
        model = version_converter.convert_version(part.model, opset)
    # The converter raises whatever its C++ side threw.
    except Exception as error:
        raise ExportError(
            f"member {part.member.name}", got=f"opset {found} that cannot be converted ({error})",
            expected=f"opset {opset}", fix="export the member again",
        ) from error  # fmt: skip
    return MemberGraph(part.member, model, part.sha256, part.input, part.dtype)


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
    # Files that lie outside the folder, are cut short or are not there: each has an exception of its own.
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
        raise ExportError(what, got=f"no folder {folder}", fix="name the repository that holds it: --repository")
    config = config_of(folder)
    path = model_file(folder, config, version=planned_version(member, folder, config))
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


def _needed_nodes(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """The nodes one output depends on, in order."""
    wanted = {output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= _names_read(node)
            kept.append(node)
    return kept[::-1]


def _names_read(node: onnx.NodeProto) -> set[str]:
    """What a node and the graphs inside it read; names made inside them are among it and do no harm."""
    names = set(node.input)
    for graph in _graphs_of(node):
        names.update(*(_names_read(inner) for inner in graph.node), (value.name for value in graph.output))
    return names


def _graphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


@dataclass(frozen=True)
class _Names:
    """New names for old: everything gets the prefix, save the input, which is a tensor that is there already."""

    prefix: str
    source: str
    rows: str

    def of_tensor(self, old: str) -> str:
        # An input left out is an empty name, and stays one.
        return self.rows if old == self.source else f"{self.prefix}{old}" if old else old


def _renamed_node(node: onnx.NodeProto, names: _Names) -> onnx.NodeProto:
    new = onnx.NodeProto()
    new.CopyFrom(node)
    # A second node of the same name is an error, nodes without one are not.
    new.name = f"{names.prefix}{node.name}" if node.name else ""
    # Notes of the machine that made the member help nobody here.
    new.doc_string = ""
    del new.metadata_props[:]
    new.input[:] = [names.of_tensor(one) for one in node.input]
    new.output[:] = [names.of_tensor(one) for one in node.output]
    for graph in _graphs_of(new):
        _rename_graph(graph, names)
    return new


def _rename_graph(graph: onnx.GraphProto, names: _Names) -> None:
    nodes = [_renamed_node(node, names) for node in graph.node]
    weights = [_renamed_weight(weight, names) for weight in graph.initializer]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    for value in (*graph.input, *graph.output):
        value.name = names.of_tensor(value.name)


def _renamed_weight(tensor: onnx.TensorProto, names: _Names) -> onnx.TensorProto:
    new = onnx.TensorProto()
    new.CopyFrom(tensor)
    new.name = names.of_tensor(tensor.name)
    new.doc_string = ""
    return new
