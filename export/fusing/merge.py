"""Several graphs over one input as one graph: names kept apart, the image processing they share kept once.

A node whose name begins with "preprocess/" is shared with an earlier member's when it is the same operation on the
same values: same operator, attributes and inputs, constants compared by their bytes. Members of other resolutions
so still share the cast, and whatever else is equal. Networks are never searched for common parts: two members with
equal weights would be a mistake, not a saving.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx
from onnx import helper, numpy_helper

from export.images.preprocess import PREFIX
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import inlined

# What is added to the members' graphs begins with it; no member's own names do.
AVERAGE = "average/"


class Merger:
    """Graphs added one by one; `model` is all of them.

    Args:
        source: the input that all share.
    """

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
        """Adds a member's graph.

        Args:
            member: its name, which the names of its network then begin with.
            model: one input, of the same opset as the others.
            output: the tensor wanted of it.

        Returns:
            name of that tensor in the merged graph.

        Raises:
            ExportError: a kind of graph that cannot be merged.
        """
        model = inlined(model)
        graph = model.graph
        if graph.sparse_initializer:
            raise ExportError(f"member {member}", got="sparse weights", expected="dense ones")
        self._ir_version = max(self._ir_version, model.ir_version)
        self._opsets.update({part.domain: part.version for part in model.opset_import})
        fed = {weight.name for weight in graph.initializer}
        names = _Names(member, {value.name: self.source.name for value in graph.input if value.name not in fed})
        self._add_constants(graph, names)
        for node in graph.node:
            self._add_node(node, names)
        for value in graph.value_info:
            self._add_value(value, names)
        return names.new(output)

    def model(self, name: str, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Everything added so far.

        Args:
            name: of the graph.
            outputs: of the merged graph, each made by some node.
        """
        graph = helper.make_graph(
            self.nodes,
            name,
            [self.source],
            outputs,
            initializer=self.constants,
            value_info=list(self._values.values()),
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in sorted(self._opsets.items())]
        return helper.make_model(
            graph, producer_name="committee", ir_version=self._ir_version, opset_imports=opsets
        )

    def _add_constants(self, graph: onnx.GraphProto, names: _Names) -> None:
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

    def _add_node(self, node: onnx.NodeProto, names: _Names) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if _is_preprocess(node):
            key = _key(node, names)
            if self._reuse(key, list(node.output), names):
                return
            self._known[key] = [self._fresh(output, names) for output in node.output]
            # A node is named after the tensor it makes, so that its name is as free as that one's.
            copy.name = names.new(node.output[0])
        names.rename(copy)
        self.nodes.append(copy)

    def _add_value(self, value: onnx.ValueInfoProto, names: _Names) -> None:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        copy.name = names.new(value.name)
        self._values.setdefault(copy.name, copy)

    def _reuse(self, key: Hashable, old: list[str], names: _Names) -> bool:
        """True where an equal constant or node is there already; its names are then the member's too."""
        if key not in self._known:
            return False
        names.table.update(zip(old, self._known[key], strict=True))
        return True

    def _fresh(self, old: str, names: _Names) -> str:
        """A new name of a tensor of the image processing, as it was unless another member has it already."""
        new = old if old.startswith(PREFIX) else PREFIX + old
        if new in self._taken:
            new = f"{PREFIX}{names.member}/{new.removeprefix(PREFIX)}"
        self._taken.add(new)
        names.table[old] = new
        return new


class _Names:
    """A member's old names and what they are in the merged graph."""

    def __init__(self, member: str, table: dict[str, str]) -> None:
        self.member = member
        self.table = table
        own = f"{member}/"
        # A member of such a name would have its network taken for image processing or for the average.
        self._prefix = f"{member}_/" if own in (PREFIX, AVERAGE) else own

    def new(self, old: str) -> str:
        """The merged graph's name of a tensor; the empty name stands for an input left out."""
        return self.table.get(old, self._prefix + old) if old else old

    def rename(self, node: onnx.NodeProto) -> None:
        """Renames a node and its tensors, graphs inside it too."""
        if not _is_preprocess(node):
            node.name = self._prefix + (node.name or node.output[0])
        for names in (node.input, node.output):
            names[:] = [self.new(name) for name in names]
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                self._rename_inside(graph)

    def _rename_inside(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.name = self.new(value.name)
        for weight in graph.initializer:
            weight.name = self.new(weight.name)
        for node in graph.node:
            self.rename(node)


def _is_preprocess(node: onnx.NodeProto) -> bool:
    return node.name.startswith(PREFIX)


def _key(node: onnx.NodeProto, names: _Names) -> Hashable:
    attributes = sorted(part.SerializeToString(deterministic=True) for part in node.attribute)
    return (node.domain, node.op_type, tuple(attributes), tuple(names.new(name) for name in node.input))
