"""Renaming inside ONNX graphs: nodes, values and tensors, with the scopes of subgraphs and the order of use."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import onnx

from orchestrator.graphs.editing import all_graphs, graphs_inside, own_names


def rename_node(
    node: onnx.NodeProto, *, tensor: Callable[[str], str], name: Callable[[onnx.NodeProto], str]
) -> None:
    """Renames a node, its tensors, and everything in the graphs inside it, whatever scope it belongs to.

    Args:
        node: changed in place.
        tensor: old name of a tensor -> its new name; the empty name of an input left out stays.
        name: gives the new name of a node, which still has its old names.
    """
    node.name = name(node)
    for names in (node.input, node.output):
        names[:] = [tensor(one) if one else one for one in names]
    for graph in graphs_inside(node):
        _rename_values(graph, tensor)
        for inner in graph.node:
            rename_node(inner, tensor=tensor, name=name)


def rename_tensors(
    graph: onnx.GraphProto,
    new: Mapping[str, str],
    *,
    reserved: Collection[str] = (),
    reserved_prefixes: tuple[str, ...] = (),
) -> None:
    """Renames tensors of a graph wherever they are made, read or described, in the graphs inside it too.

    A graph inside that has a tensor of its own under a name of the graph around it means its own. That one, and
    whatever else has a new or reserved name, gets another one, at any depth: no name means two tensors then, which
    not every tool would tell apart.

    Args:
        graph: changed in place.
        new: name of a tensor of this graph -> its new name.
        reserved: names that nothing may have afterwards, unless they are in `new`.
        reserved_prefixes: no tensor and no node may have a name that begins so afterwards, unless it is in `new`.
    """
    known = {name for inner in (graph, *all_graphs(graph.node)) for name in (*own_names(inner), *_read(inner))}
    _Renaming({*new.values(), *reserved}, reserved_prefixes, known).rename(graph, {}, new, set())


def _read(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in node.input}


@dataclass
class _Renaming:
    """One renaming on its way through a graph and those inside it."""

    reserved: set[str]
    prefixes: tuple[str, ...]
    known: set[str]

    def rename(
        self, graph: onnx.GraphProto, outer: Mapping[str, str], new: Mapping[str, str], visible: set[str]
    ) -> None:
        """Renames in a graph: `outer` holds for the graphs around it, whose names are `visible`, `new` for it."""
        own = own_names(graph)
        moved = {name: self._free(name) for name in sorted(own) if self._is_reserved(name) or name in visible}
        table = {**outer, **moved, **new}
        _rename_values(graph, lambda name: table.get(name, name))
        for node in graph.node:
            node.input[:] = [table.get(name, name) for name in node.input]
            node.output[:] = [table.get(name, name) for name in node.output]
            if node.name.startswith(self.prefixes):
                node.name = self._free(node.name)
            for inner in graphs_inside(node):
                self.rename(inner, table, {}, visible | own)

    def _is_reserved(self, name: str) -> bool:
        return name in self.reserved or name.startswith(self.prefixes)

    def _free(self, name: str) -> str:
        found, count = f"inner/{name}", 1
        while found in self.known or found in self.reserved:
            count += 1
            found = f"inner_{count}/{name}"
        self.known.add(found)
        return found


def _rename_values(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    """Renames tensors in all of a graph but its nodes: inputs, outputs, shapes, weights, annotations."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new(value.name)
    for weight in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        weight.name = new(weight.name)
    for note in graph.quantization_annotation:
        note.tensor_name = new(note.tensor_name)
        for entry in note.quant_parameter_tensor_names:
            entry.value = new(entry.value)
