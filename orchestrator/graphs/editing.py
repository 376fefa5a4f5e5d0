"""Reading, changing and renaming ONNX graphs: what converters need before, and leave undone after."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper

from orchestrator.errors import ExportError, first_line

PRODUCER = "committee"  # in every ONNX file that is written here
# The standard operators have both names.
DEFAULT_DOMAINS = ("", "ai.onnx")


def opset_of(model: onnx.ModelProto) -> int | None:
    """Opset of the standard operators; None where the model names none."""
    return max((part.version for part in model.opset_import if part.domain in DEFAULT_DOMAINS), default=None)


def own_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata of a model that was written here; empty for models of other producers."""
    # Protobuf gives bytes where a damaged file has no valid text.
    entries = model.metadata_props if model.producer_name == PRODUCER else ()
    return {str(entry.key): str(entry.value) for entry in entries}


def graphs_inside(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs that a node holds itself: branches of an If, bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Graphs inside nodes, at any depth."""
    for node in nodes:
        for graph in graphs_inside(node):
            yield graph
            yield from all_graphs(graph.node)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes of the graph, of the graphs inside it and of the model's functions, at any depth."""
    outer = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    yield from outer
    for graph in all_graphs(outer):
        yield from graph.node


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Everything that holds numbers: weights, dense or sparse, and attributes, at any depth."""
    outer = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    sparse: list[onnx.SparseTensorProto] = []
    for graph in (model.graph, *all_graphs(outer)):
        yield from graph.initializer
        sparse += graph.sparse_initializer
    for node in all_nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for one in sparse:
        yield from (one.values, one.indices)


def fed_names(graph: onnx.GraphProto) -> set[str]:
    """Names of a graph's weights; an input of such a name need not be given."""
    return {one.name for one in graph.initializer} | {one.values.name for one in graph.sparse_initializer}


def own_names(graph: onnx.GraphProto) -> set[str]:
    """Tensors that a graph brings in or makes itself."""
    made = {name for node in graph.node for name in node.output if name}
    return made | {value.name for value in graph.input} | fed_names(graph)


def given_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs that must be given: before IR version 4 a graph lists its weights among its inputs too."""
    fed = fed_names(graph)
    return [value for value in graph.input if value.name not in fed]


def make_dense(graph: onnx.GraphProto) -> int:
    """Stores sparse weights densely, as runtimes do on loading and most tools want it; returns how many."""
    count = 0
    for one in (graph, *all_graphs(graph.node)):
        for sparse in one.sparse_initializer:
            values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
            dense = np.zeros(tuple(sparse.dims), values.dtype)
            # Places in the flattened weight, or one row of coordinates per value.
            places = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dense.shape)
            dense.flat[places] = values
            one.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
            count += 1
        del one.sparse_initializer[:]
    return count


def keep_needed(graph: onnx.GraphProto) -> None:
    """Drops nodes and dense weights that no output of the graph depends on; the nodes must be in order."""
    outputs = {value.name for value in graph.output}
    replace_nodes(graph, needed_nodes(graph, outputs))
    wanted = outputs.union(*map(names_read, graph.node))
    # One by one and in place: weights may be gigabytes.
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in wanted:
            del graph.initializer[index]


def needed_nodes(graph: onnx.GraphProto, outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that some tensors depend on, in the graph's order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= names_read(node)
            kept.append(node)
    return kept[::-1]


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bodies of its functions in place of their calls; itself where it has none.

    Functions that the inliner cannot bring into the graph are left.

    Raises:
        ExportError: the inliner fails.
    """
    if not model.functions:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    versions = {part.domain: part.version for part in copy.opset_import}
    for function in copy.functions:
        # ONNX Runtime reads a body at the model's opset, and the inliner wants them to be equal.
        for part in function.opset_import:
            part.version = versions.get(part.domain, part.version)
    try:
        made = inliner.inline_local_functions(copy)
    # Whatever its C++ side raises, and protobuf for models over 2 GB.
    except Exception as error:
        raise ExportError(
            "local functions", got=first_line(error), expected="functions that can be inlined"
        ) from error
    seen: set[str] = set()
    for node in all_nodes(made):
        # A function that is called twice brings the names of its nodes twice; nodes without one are allowed.
        node.name = "" if node.name in seen else node.name
        seen.add(node.name)
    used = {node.domain for node in all_nodes(made)} | set(DEFAULT_DOMAINS)
    for index in reversed(range(len(made.opset_import))):
        if made.opset_import[index].domain not in used:
            del made.opset_import[index]
    return made


def named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own, constants are initialisers, and functions are inlined.

    Converters address nodes by name, look for weights among initialisers, and know nothing of functions.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(inlined(model))
    graph = copy.graph
    nodes = [node for node in graph.node if not _moved_to_initializers(node, graph)]
    taken: set[str] = set()
    for index, node in enumerate(nodes):
        name = node.name or (node.output[0] if node.output else node.op_type)
        node.name = name if name not in taken else f"{name}_{index}"
        taken.add(node.name)
    replace_nodes(graph, nodes)
    return copy


def _moved_to_initializers(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    tensor = next((part.t for part in node.attribute if part.name == "value"), None)
    if node.op_type != "Constant" or tensor is None or tensor.data_type == TensorProto.STRING:
        return False
    graph.initializer.append(tensor)
    graph.initializer[-1].name = node.output[0]
    return True


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Makes these the graph's nodes."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def sorted_nodes(graph: onnx.GraphProto) -> None:
    """Puts nodes after what they read, otherwise keeping their order."""
    made = {output for node in graph.node for output in node.output}
    waiting, done, order = list(graph.node), set[str](), []
    while waiting:
        late = []
        for node in waiting:
            if (names_read(node) & made) <= done:
                order.append(node)
                done.update(node.output)
            else:
                late.append(node)
        if len(late) == len(waiting):
            raise ExportError("graph", got="nodes that wait for each other", expected="a graph without cycles")
        waiting = late
    replace_nodes(graph, order)


def names_read(node: onnx.NodeProto) -> set[str]:
    """Tensors a node reads, through the graphs inside it too, but not those that are made there."""
    names = set(node.input)
    for graph in graphs_inside(node):
        inside = {value.name for value in graph.output}.union(*map(names_read, graph.node))
        names |= inside - own_names(graph)
    return names


def without_lossy_casts(graph: onnx.GraphProto) -> None:
    """Joins nodes that stay fp32 directly, where a converter left a cast to fp16 and one back between them."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    outputs = {value.name for value in graph.output}
    source: dict[str, str] = {}
    for output, node in casts.items():
        down = casts.get(node.input[0])
        if down is not None and (_to(node), _to(down)) == (TensorProto.FLOAT, TensorProto.FLOAT16):
            source[output] = down.input[0]
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in source and node.output[0] in outputs:
            # The graph's own output keeps its name.
            node.input[0] = source[node.output[0]]
            continue
        node.input[:] = [source.get(name, name) for name in node.input]
    _drop_unread(graph)


def _to(cast: onnx.NodeProto) -> int:
    return int(next(part.i for part in cast.attribute if part.name == "to"))


def _drop_unread(graph: onnx.GraphProto) -> None:
    outputs, before = {value.name for value in graph.output}, list(graph.node)
    # The nodes are in no order here, so casts that no node reads are found round by round.
    while True:
        read = outputs.union(*map(names_read, before))
        kept = [node for node in before if node.op_type != "Cast" or read & set(node.output)]
        if len(kept) == len(before):
            replace_nodes(graph, kept)
            return
        before = kept


def full_check(model: onnx.ModelProto | Path, subject: str) -> None:
    """Runs the full checker on a model, or on a file whose weights may lie beside it.

    Raises:
        ExportError: it is no valid model.
    """
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(f"{subject} graph", got=first_line(error), expected="a valid ONNX model") from error


def rename_node(
    node: onnx.NodeProto, *, tensor: Callable[[str], str], name: Callable[[onnx.NodeProto], str]
) -> None:
    """Renames a node, its tensors, and everything in the graphs inside it, whatever scope it belongs to.

    `tensor` gives a tensor's new name, `name` that of a node, which still has its old names. The empty name of an
    input left out stays.
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
    graphs = (graph, *all_graphs(graph.node))
    known = {name for one in graphs for name in own_names(one)}
    known |= {name for one in graphs for node in one.node for name in node.input}
    _Renaming({*new.values(), *reserved}, reserved_prefixes, known).rename(graph, {}, new, set())


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
        taken = self.reserved | visible
        moved = {name: self._free(name) for name in sorted(own) if name in taken or name.startswith(self.prefixes)}
        table = {**outer, **moved, **new}
        _rename_values(graph, lambda name: table.get(name, name))
        for node in graph.node:
            node.input[:] = [table.get(name, name) for name in node.input]
            node.output[:] = [table.get(name, name) for name in node.output]
            if node.name.startswith(self.prefixes):
                node.name = self._free(node.name)
            for inner in graphs_inside(node):
                self.rename(inner, table, {}, visible | own)

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
