"""A graph without its weights, for shape inference: large models stay small, and missing data files do not matter.

ONNX's inference knows the standard operators only. What a runtime's optimiser put in their place stands in the
outline as the standard operators it was made of.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from export.cost.rules import MICROSOFT, operator_of
from orchestrator.errors import ExportError

# A path names a graph: for each node on the way in, its first output and the attribute that holds the graph.
GraphPath = tuple[str, ...]
# Small constants may be shapes, axes or sizes, which inference reads.
KEPT_VALUES = 1024
_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16))
# Operator -> a standard operator whose output has the same shape, and the inputs to give it.
_TWINS: dict[str, tuple[str, tuple[int, ...]]] = {
    "FusedConv": ("Conv", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1)),
    "QGemm": ("Gemm", (0, 3)),
    "GemmFastGelu": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "MatMulInteger16": ("MatMul", (0, 1)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "EmbedLayerNormalization": ("Gather", (2, 0)),
    **dict.fromkeys(
        (
            *(
                "BiasAdd",
                "BiasGelu",
                "BiasSoftmax",
                "FastGelu",
                "Gelu",
                "QuickGelu",
                "GroupNorm",
                "RotaryEmbedding",
            ),
            *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "QuantizeLinear", "DequantizeLinear"),
            *("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"),
        ),
        ("Identity", (0,)),
    ),
}


def outline_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the same nodes, values and shapes, without value hints and without large constants."""
    outline = onnx.ModelProto(ir_version=model.ir_version)
    outline.opset_import.extend(model.opset_import)
    fakes: dict[str, list[int]] = {}
    outline.graph.CopyFrom(_graph(model.graph, fakes))
    for name, dims in fakes.items():
        outline.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    return outline


def graphs_of(node: onnx.NodeProto, path: GraphPath) -> Iterator[tuple[str, GraphPath, onnx.GraphProto]]:
    """Graphs that a node holds: attribute, path and graph of each; `path` is that of the node's own graph."""
    for part in node.attribute:
        if part.type == onnx.AttributeProto.GRAPH:
            yield part.name, (*path, f"{node.output[0]}:{part.name}"), part.g


def graphs_in(
    graph: onnx.GraphProto, path: GraphPath
) -> Iterator[tuple[onnx.NodeProto, GraphPath, onnx.GraphProto]]:
    """Nodes of a graph that hold graphs, not deeper, each with the inner graph's path and the inner graph."""
    for node in graph.node:
        for _, key, inner in graphs_of(node, path):
            yield node, key, inner


def _graph(graph: onnx.GraphProto, fakes: dict[str, list[int]]) -> onnx.GraphProto:
    outline = onnx.GraphProto(name="outline")
    outline.input.extend(graph.input)
    outline.output.extend(graph.output)
    outline.initializer.extend(_light(weight, weight.name) for weight in graph.initializer)
    for sparse in graph.sparse_initializer:
        outline.initializer.append(
            TensorProto(name=sparse.values.name, dims=sparse.dims, data_type=sparse.values.data_type)
        )
    sizes = {weight.name: list(weight.dims) for weight in graph.initializer}
    for node in graph.node:
        outline.node.extend(_nodes(node, sizes, fakes))
    return outline


def _inside(graph: onnx.GraphProto, fakes: dict[str, list[int]]) -> onnx.GraphProto:
    outline = _graph(graph, fakes)
    # Declared shapes may be of another batch; inference finds them again.
    for value in outline.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return outline


def _light(weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
    external = weight.data_location == TensorProto.EXTERNAL
    if not external and (weight.data_type not in _FLOATS or math.prod(weight.dims) <= KEPT_VALUES):
        return weight
    return TensorProto(name=name, dims=weight.dims, data_type=weight.data_type)


def _nodes(
    node: onnx.NodeProto, sizes: dict[str, list[int]], fakes: dict[str, list[int]]
) -> Iterator[onnx.NodeProto]:
    if operator_of(node).startswith(MICROSOFT):
        yield from _standard(node, sizes, fakes)
        return
    copy = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
    copy.input.extend(node.input)
    copy.output.extend(node.output)
    for part in node.attribute:
        if part.type == onnx.AttributeProto.GRAPH:
            copy.attribute.append(onnx.AttributeProto(name=part.name, type=part.type, g=_inside(part.g, fakes)))
        elif part.type == onnx.AttributeProto.TENSOR:
            copy.attribute.append(
                onnx.AttributeProto(name=part.name, type=part.type, t=_light(part.t, part.t.name))
            )
        else:
            copy.attribute.append(part)
    yield copy


def _standard(
    node: onnx.NodeProto, sizes: dict[str, list[int]], fakes: dict[str, list[int]]
) -> Iterator[onnx.NodeProto]:
    kept = {part.name: helper.get_attribute_value(part) for part in node.attribute}
    out = node.output[0]
    if node.op_type in _TWINS:
        operator, positions = _TWINS[node.op_type]
        known = onnx.defs.get_schema(operator).attributes
        attributes = {name: value for name, value in kept.items() if name in known}
        yield helper.make_node(operator, [node.input[i] for i in positions], [out], **attributes)
        if node.op_type.startswith("Skip") and len(node.output) > 3 and node.output[3]:
            # The sum before the normalisation, which the next block adds to.
            yield helper.make_node("Identity", [node.input[0]], [node.output[3]])
    elif node.op_type == "QLinearConcat":
        yield helper.make_node("Concat", list(node.input[2::3]), [out], axis=kept["axis"])
    elif node.op_type in ("FusedMatMul", "TransposeMatMul") and not kept.get(
        "transBatchA", kept.get("transBatchB")
    ):
        factors = [f"{out}/left", f"{out}/right"]
        for factor, source, flag in zip(factors, node.input[:2], ("transA", "transB"), strict=True):
            # An Einsum, because a Transpose would have to know how many axes there are.
            last = "...ji" if kept.get(flag) else "...ij"
            yield helper.make_node("Einsum", [source], [factor], equation=f"...ij->{last}")
        yield helper.make_node("MatMul", factors, [out])
    elif node.op_type == "MultiHeadAttention" and all([*node.input[1:3], len(node.input) > 2]):
        flipped, scores = f"{out}/key_transposed", f"{out}/scores"
        yield helper.make_node("Transpose", [node.input[1]], [flipped], perm=[0, 2, 1])
        yield helper.make_node("MatMul", [node.input[0], flipped], [scores])
        yield helper.make_node("MatMul", [scores, node.input[2]], [out])
    else:
        yield from _times_fake(node, kept, sizes, fakes)


def _times_fake(
    node: onnx.NodeProto, kept: dict[str, object], sizes: dict[str, list[int]], fakes: dict[str, list[int]]
) -> Iterator[onnx.NodeProto]:
    """A node that multiplies its first input by a matrix which the graph does not hold as such."""
    weight = sizes.get(node.input[1], []) if len(node.input) > 1 else []
    if node.op_type in ("Attention", "QAttention") and len(weight) == 2:
        hidden = kept.get("qkv_hidden_sizes")
        dims = [weight[0], hidden[2] if isinstance(hidden, list) else weight[1] // 3]
    elif isinstance(kept.get("K"), int) and isinstance(kept.get("N"), int):
        dims = [int(str(kept["K"])), int(str(kept["N"]))]
    else:
        # An unknown operator: its output has no shape, and counting that needs the shape raises.
        yield node
        return
    name = f"{node.output[0]}/weight"
    fakes[name] = dims
    yield helper.make_node("MatMul", [node.input[0], name], [node.output[0]])


def graph_from_path(path: Path) -> onnx.ModelProto:
    """The model in a file; weights stored beside it are not read and need not be there.

    Raises:
        ExportError: no such file, or not a whole ONNX model.
    """
    what = f"model file {path}"
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
        _read_small_constants(model.graph, path.parent)
        readable = all(isinstance(text, str) for text in _texts(model.graph))
    except OSError as error:
        raise ExportError(what, got=error.strerror or type(error).__name__, expected="an ONNX file") from error
    # Protobuf raises ValueError or TypeError for damaged names, depending on its version.
    except (DecodeError, IndexError, ValueError, TypeError) as error:
        raise ExportError(what, got="bytes that are no whole ONNX model", expected="an ONNX file") from error
    if not readable:
        raise ExportError(what, got="names with damaged bytes", expected="an ONNX file")
    if not model.graph.node:
        raise ExportError(what, got="a model without nodes", expected="an ONNX model")
    if not model.graph.output:
        raise ExportError(what, got="a graph without outputs", expected="at least one")
    return model


def _read_small_constants(graph: onnx.GraphProto, folder: Path) -> None:
    """Loads constants that may be shapes or axes; shapes that depend on an unreadable one stay open."""
    for weight in graph.initializer:
        if weight.data_location == onnx.TensorProto.EXTERNAL and math.prod(weight.dims) <= KEPT_VALUES:
            # The file is missing, or lies outside the folder and onnx refuses to open it.
            with contextlib.suppress(OSError, ValueError, onnx.checker.ValidationError):
                onnx.external_data_helper.load_external_data_for_tensor(weight, str(folder))
                weight.data_location = onnx.TensorProto.DEFAULT
                del weight.external_data[:]
    for _, _, inner in graphs_in(graph, ()):
        _read_small_constants(inner, folder)


def _texts(graph: onnx.GraphProto) -> Iterator[object]:
    """Every name in a graph; damaged ones are bytes, or raise on access."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    yield from (weight.name for weight in graph.initializer)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (part.name for part in node.attribute)
    for _, _, inner in graphs_in(graph, ()):
        yield from _texts(inner)
