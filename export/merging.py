"""Several graphs over one input as one graph: names kept apart, the image processing they share kept once.

A node whose name begins with "preprocess/" is shared with an earlier member's when it is the same operation on the
same values: same operator, attributes and inputs, constants compared by their bytes. Members of other resolutions
so still share the cast, and whatever else is equal. Networks are never searched for common parts: two members with
equal weights would be a mistake, not a saving.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.images import PREFIX
from export.members import ReadMember
from orchestrator.errors import ExportError
from orchestrator.graphs.combining import GraphBuilder, cleaned, raw_logits, usable_rows
from orchestrator.graphs.editing import given_inputs, inlined, opset_of, rename_node
from orchestrator.spec import Manifest, Member, Preprocess
from orchestrator.spec.answer import first_unlike
from orchestrator.spec.manifest import PRECISIONS

# Prefix of the names of the averaging nodes; no member's names begin with it.
AVERAGE = "average/"


class Merger:
    """Merges graphs that are added one by one and share one input, `source`."""

    def __init__(self, source: onnx.ValueInfoProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.source = source
        self._values: dict[str, onnx.ValueInfoProto] = {}
        self._opsets: dict[str, int] = {}
        self._ir_version = 0
        self._taken = {source.name}
        self._known: dict[Hashable, list[str]] = {}

    def add(self, member: str, model: onnx.ModelProto, *, output: str) -> str:
        """Adds a member's graph of one input, at the opset of the others; returns its output's new name.

        The names of its network then begin with that of the member.

        Raises:
            ExportError: a kind of graph that cannot be merged.
        """
        model = inlined(model)
        graph = model.graph
        if graph.sparse_initializer:
            raise ExportError(f"member {member}", got="sparse weights", expected="dense ones")
        self._ir_version = max(self._ir_version, model.ir_version)
        self._opsets.update({part.domain: part.version for part in model.opset_import})
        names = _NewNames(member, {value.name: self.source.name for value in given_inputs(graph)})
        self._add_constants(graph, names)
        for node in graph.node:
            self._add_node(node, names)
        for value in graph.value_info:
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            copy.name = names.new(value.name)
            self._values.setdefault(copy.name, copy)
        return names.new(output)

    def model(self, name: str, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Everything added so far, as a model with these outputs."""
        values = list(self._values.values())
        graph = helper.make_graph(self.nodes, name, [self.source], outputs, self.constants, value_info=values)
        opsets = [helper.make_opsetid(domain, version) for domain, version in sorted(self._opsets.items())]
        return helper.make_model(
            graph, producer_name="committee", ir_version=self._ir_version, opset_imports=opsets
        )

    def _add_constants(self, graph: onnx.GraphProto, names: "_NewNames") -> None:
        shared = {name for node in graph.node if _is_preprocess(node) for name in node.input}
        for weight in graph.initializer:
            if weight.name in shared:
                key = (weight.data_type, tuple(weight.dims), numpy_helper.to_array(weight).tobytes())
                if self._reuse(key, [weight.name], names):
                    continue
                self._known[key] = [self._fresh(weight.name, names)]
            copy = onnx.TensorProto()
            copy.CopyFrom(weight)
            copy.name = names.new(weight.name)
            self.constants.append(copy)

    def _add_node(self, node: onnx.NodeProto, names: "_NewNames") -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if _is_preprocess(node):
            attributes = sorted(part.SerializeToString(deterministic=True) for part in node.attribute)
            inputs = tuple(names.new(name) for name in node.input)
            key = (node.domain, node.op_type, tuple(attributes), inputs)
            if self._reuse(key, list(node.output), names):
                return
            self._known[key] = [self._fresh(output, names) for output in node.output]
            # A node is named after its tensor, whose name is unique.
            copy.name = names.new(node.output[0])
        names.rename(copy)
        self.nodes.append(copy)

    def _reuse(self, key: Hashable, old: list[str], names: "_NewNames") -> bool:
        """Takes the names of an equal constant or node that is in the graph already; False where there is none."""
        if key not in self._known:
            return False
        names.table.update(zip(old, self._known[key], strict=True))
        return True

    def _fresh(self, old: str, names: "_NewNames") -> str:
        """The new name of an image processing tensor: its own, unless another member has taken it."""
        new = old if old.startswith(PREFIX) else PREFIX + old
        if new in self._taken:
            new = f"{PREFIX}{names.member}/{new.removeprefix(PREFIX)}"
        self._taken.add(new)
        names.table[old] = new
        return new


class _NewNames:
    """Names of a member's tensors in the merged graph."""

    def __init__(self, member: str, table: dict[str, str]) -> None:
        self.member = member
        self.table = table
        own = f"{member}/"
        # The network of a member of such a name would look like image processing or averaging nodes.
        self._prefix = f"{member}_/" if own in (PREFIX, AVERAGE) else own

    def new(self, old: str) -> str:
        """The merged graph's name of a tensor; the empty name stands for an input left out."""
        return self.table.get(old, self._prefix + old) if old else old

    def rename(self, node: onnx.NodeProto) -> None:
        """Renames a node and its tensors, in the graphs inside it too; names of image processing nodes stay."""
        rename_node(
            node,
            tensor=self.new,
            name=lambda one: one.name if _is_preprocess(one) else self._prefix + (one.name or one.output[0]),
        )


def _is_preprocess(node: onnx.NodeProto) -> bool:
    return node.name.startswith(PREFIX)


def add_average(
    scores: Sequence[tuple[Member, str, str]], *, combine: str, output: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants that average members to `output`, float32 (n, k), logits or probabilities by `combine`.

    `scores` has per member in plan order how it is asked, the tensor (n, k) it makes, and that one's dtype.
    """
    g = GraphBuilder(AVERAGE)
    members = [member for member, _, _ in scores]
    axis = g.constant([1], np.int64)
    logits = (raw_logits(g, member, tensor, dtype=dtype) for member, tensor, dtype in scores)
    z = g.op("Concat", *(g.op("Unsqueeze", one, axis) for one in logits), axis=1)
    if any(member.temperature != 1 for member in members):
        z = g.op("Div", z, g.constant([[[member.temperature] for member in members]]))
    good = usable_rows(g, z)
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


def require_fitting(name: str, parts: Sequence[ReadMember]) -> None:
    """Refuses members that do not fit each other, naming every disagreement at once.

    Raises:
        ExportError: with all of them.
    """
    faults = []
    for what, value_of in _MUST_AGREE.items():
        found = {part.manifest.name: value_of(part) for part in parts}
        known = {member: value for member, value in found.items() if value is not None}
        if len({repr(value) for value in known.values()}) > 1:
            faults.append(f"{what} ({', '.join(f'{member} {value}' for member, value in known.items())})")
    faults += _label_faults(parts)
    for part in parts:
        tensor = part.manifest.output
        if tensor.dtype not in ("FP32", "FP16", "FP64") or len(tensor.dims) != 1:
            faults.append(f"output of {part.manifest.name} is {tensor.dtype} {list(tensor.dims)}")
    if faults:
        raise ExportError(f"members of {name} differ", got="; ".join(faults), expected="the same in all of them")


def _values_of_pictures(preprocess: Preprocess | None) -> str | None:
    """How pixels become the numbers of a row; None for rows that are no pictures. Cropping does not count."""
    if preprocess is None:
        return None
    p = preprocess
    return f"{p.mode} {p.layout} {p.value_min:g} to {p.value_max:g}{' inverted' if p.invert else ''}"


def _label_faults(parts: Sequence[ReadMember]) -> list[str]:
    """Classes whose names differ; members without names agree with all."""
    known = [part.manifest for part in parts if part.manifest.labels is not None]
    faults = []
    for other in known[1:]:
        one, two = known[0].labels or (), other.labels or ()
        index = first_unlike(one, two)
        if index is not None and index < min(len(one), len(two)):
            faults.append(f"label of class {index} ({known[0].name} {one[index]!r}, {other.name} {two[index]!r})")
    return faults


# What must agree -> how to read it; None is unknown and agrees with everything.
_MUST_AGREE: dict[str, Callable[[ReadMember], object]] = {
    "input name": lambda part: part.manifest.input.name,
    "input dtype": lambda part: part.manifest.input.dtype,
    "input dims": lambda part: list(part.manifest.input.dims),
    "classes": lambda part: list(part.manifest.output.dims),
    "values of pictures": lambda part: _values_of_pictures(part.manifest.preprocess),
    "opset": lambda part: opset_of(part.model),
}


def common_of(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """The fields of a fused member's manifest that follow from its members'.

    Parameters and MACs add up. The precision is the lowest of theirs, since the answers are no better than that.
    """
    sides = {m.resolution_px for m in manifests}
    return {
        "precision": max((m.precision for m in manifests), key=PRECISIONS.index),
        "parameters": sum(m.parameters for m in manifests),
        "macs": sum(m.macs for m in manifests),
        "macs_counter": " and ".join(dict.fromkeys(m.macs_counter for m in manifests)),
        "labels": labels_of(manifests),
        "max_batch_size": min(m.max_batch_size for m in manifests),
        "random_weights": any(m.random_weights for m in manifests),
        "preprocess": next((m.preprocess for m in manifests if m.preprocess is not None), None),
        "resolution_px": sides.pop() if len(sides) == 1 else None,
        "in_graph": {m.name: m.in_graph for m in manifests if m.in_graph},
    }


def labels_of(manifests: Sequence[Manifest]) -> tuple[str, ...] | None:
    """The class names of members that agree; None where none has names."""
    return next((m.labels for m in manifests if m.labels is not None), None)
