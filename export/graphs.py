"""Small changes to ONNX graphs that converters need before and leave undone after."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, inliner

from orchestrator.errors import ExportError


def named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own, constants are initialisers, and functions are inlined.

    Converters address nodes by name, look for weights among initialisers, and know nothing of functions.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
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
    if node.op_type != "Constant" or not any(part.name == "value" for part in node.attribute):
        return False
    tensor = next(part.t for part in node.attribute if part.name == "value")
    if tensor.data_type == TensorProto.STRING:
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
    """Tensors a node reads, through the graphs inside it too."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names.update(value.name for value in graph.output)
            for inner in graph.node:
                names |= names_read(inner)
    return names


def without_lossy_casts(graph: onnx.GraphProto) -> None:
    """Joins nodes that stay fp32 directly, where a converter left a cast to fp16 and one back between them."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    outputs = {value.name for value in graph.output}
    source: dict[str, str] = {}
    for output, node in casts.items():
        down = casts.get(node.input[0])
        if down is not None and _to(node) == TensorProto.FLOAT and _to(down) == TensorProto.FLOAT16:
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
    read = {value.name for value in graph.output}
    kept = []
    # The nodes are in no order here, so what nobody reads is found round by round.
    everything = list(graph.node)
    while True:
        read_now = read | {name for node in everything for name in names_read(node)}
        kept = [node for node in everything if node.op_type != "Cast" or read_now & set(node.output)]
        if len(kept) == len(everything):
            break
        everything = kept
    replace_nodes(graph, kept)


def full_check(model: onnx.ModelProto | Path, subject: str) -> None:
    """Runs the full checker on a model, or on a file whose weights may lie beside it.

    Raises:
        ExportError: it is no valid model.
    """
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{subject} graph", got=first, expected="a valid ONNX model") from error
