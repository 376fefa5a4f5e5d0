"""Shapes of every value of a graph and of the graphs inside it, at a stated batch, from an outline of the graph.

An outline has no weights: large models stay small, and missing data files do not matter. ONNX's inference knows
the standard operators only; what a runtime's optimiser put in their place stands in the outline as the standard
operators it was made of.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, helper

from export.cost.rules import MICROSOFT, Shape, operator_of
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs.editing import given_inputs

# A path names a graph: for each node on the way in, its first output and the attribute that holds the graph.
GraphPath = tuple[str, ...]
# Small constants may be shapes, axes or sizes, which inference reads.
KEPT_VALUES = 1024
_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16))
# A standard operator, the inputs to give it -> operators whose output has the same shape.
_SAME_SHAPE: dict[tuple[str, tuple[int, ...]], str] = {
    ("Conv", (0, 1)): "FusedConv",
    ("Gemm", (0, 1)): "FusedGemm",
    ("Gemm", (0, 3)): "QGemm",
    ("MatMul", (0, 1)): "GemmFastGelu MatMulIntegerToFloat DynamicQuantizeMatMul MatMulInteger16",
    ("Add", (0, 3)): "QLinearAdd",
    ("Mul", (0, 3)): "QLinearMul",
    ("AveragePool", (0,)): "QLinearAveragePool",
    ("GlobalAveragePool", (0,)): "QLinearGlobalAveragePool",
    ("Gather", (2, 0)): "EmbedLayerNormalization",
    ("Identity", (0,)): "BiasAdd BiasGelu BiasSoftmax FastGelu Gelu QuickGelu GroupNorm RotaryEmbedding "
    "SkipLayerNormalization SkipSimplifiedLayerNormalization QuantizeLinear DequantizeLinear QLinearSigmoid "
    "QLinearLeakyRelu QLinearSoftmax",
}
_TWINS = {name: twin for twin, names in _SAME_SHAPE.items() for name in names.split()}
Sizes = dict[str, list[int]]


def outline_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the same nodes, values and shapes, without value hints and without large constants."""
    outline = onnx.ModelProto(ir_version=model.ir_version)
    outline.opset_import.extend(model.opset_import)
    fakes: Sizes = {}
    outline.graph.CopyFrom(_outlined(model.graph, fakes))
    outline.graph.input.extend(_info(name, TensorProto.FLOAT, dims) for name, dims in fakes.items())
    return outline


def graphs_of(node: onnx.NodeProto, path: GraphPath) -> Iterator[tuple[str, GraphPath, onnx.GraphProto]]:
    """Graphs that a node holds: attribute, path and graph of each; `path` is that of the node's own graph."""
    for part in node.attribute:
        if part.type == onnx.AttributeProto.GRAPH:
            yield part.name, (*path, f"{node.output[0]}:{part.name}"), part.g


def _graphs_in(
    graph: onnx.GraphProto, path: GraphPath
) -> Iterator[tuple[onnx.NodeProto, GraphPath, onnx.GraphProto]]:
    """Nodes of a graph that hold graphs, not deeper, each with the inner graph's path and the inner graph."""
    for node in graph.node:
        for _, key, inner in graphs_of(node, path):
            yield node, key, inner


def _info(name: str, kind: int, sizes: Sequence[int | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(sizes))


def _outlined(graph: onnx.GraphProto, fakes: Sizes, *, is_inner: bool = False) -> onnx.GraphProto:
    """The outline of a graph; `fakes` gets the sizes of matrices that it does not hold as such."""
    outline = onnx.GraphProto(name="outline", input=graph.input, output=graph.output)
    outline.initializer.extend(map(_light, graph.initializer))
    for sparse in graph.sparse_initializer:
        values = sparse.values
        outline.initializer.add(name=values.name, dims=sparse.dims, data_type=values.data_type)
    sizes = {weight.name: list(weight.dims) for weight in graph.initializer}
    for node in graph.node:
        is_standard = not operator_of(node).startswith(MICROSOFT)
        outline.node.extend([_copied(node, fakes)] if is_standard else _standard(node, sizes, fakes))
    for value in outline.output if is_inner else ():
        # Declared shapes may be of another batch; inference finds them again.
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return outline


def _light(weight: onnx.TensorProto) -> onnx.TensorProto:
    external = weight.data_location == TensorProto.EXTERNAL
    if not external and (weight.data_type not in _FLOATS or math.prod(weight.dims) <= KEPT_VALUES):
        return weight
    return TensorProto(name=weight.name, dims=weight.dims, data_type=weight.data_type)


def _copied(node: onnx.NodeProto, fakes: Sizes) -> onnx.NodeProto:
    copy = onnx.NodeProto(
        op_type=node.op_type, domain=node.domain, name=node.name, input=node.input, output=node.output
    )
    for part in node.attribute:
        if part.type == onnx.AttributeProto.GRAPH:
            copy.attribute.add(name=part.name, type=part.type, g=_outlined(part.g, fakes, is_inner=True))
        elif part.type == onnx.AttributeProto.TENSOR:
            copy.attribute.add(name=part.name, type=part.type, t=_light(part.t))
        else:
            copy.attribute.append(part)
    return copy


def _standard(node: onnx.NodeProto, sizes: Sizes, fakes: Sizes) -> Iterator[onnx.NodeProto]:
    """Standard operators whose last output has the shape of a runtime's own operator."""
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
        yield _times_fake(node, kept, sizes, fakes)


def _times_fake(node: onnx.NodeProto, kept: dict[str, Any], sizes: Sizes, fakes: Sizes) -> onnx.NodeProto:
    """A node that multiplies its first input by a matrix which the graph does not hold as such."""
    weight = sizes.get(node.input[1], []) if len(node.input) > 1 else []
    if node.op_type in ("Attention", "QAttention") and len(weight) == 2:
        hidden = kept.get("qkv_hidden_sizes")
        dims = [weight[0], hidden[2] if isinstance(hidden, list) else weight[1] // 3]
    elif isinstance(kept.get("K"), int) and isinstance(kept.get("N"), int):
        dims = [kept["K"], kept["N"]]
    else:
        # An unknown operator: its output has no shape, and counting that needs the shape raises.
        return node
    name = f"{node.output[0]}/weight"
    fakes[name] = dims
    return helper.make_node("MatMul", [node.input[0], name], [node.output[0]])


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
    for _, _, inner in _graphs_in(graph, ()):
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
    for _, _, inner in _graphs_in(graph, ()):
        yield from _texts(inner)


# Each round fills in one level of loops, or one NonZero that depends on an earlier one.
_ROUNDS = 32
CHOSEN_ROWS = "rows that are chosen while running count as all rows: an upper bound"
Scopes = Mapping[GraphPath, Mapping[str, Shape]]


@dataclass(frozen=True)
class Shapes:
    """Fixed shapes by graph and name, for how many rows they are, and what was assumed."""

    scopes: Scopes
    rows: int
    notes: tuple[str, ...]


def shapes_of(model: onnx.ModelProto, given: Mapping[str, Sequence[int]]) -> Shapes:
    """Infers all shapes of a model without local functions at batch 1, or at the batch that is fixed or given.

    `given` are shapes of inputs, batch first, over what the model says.

    Raises:
        ExportError: an input has an axis besides the batch that is not fixed; the graph is broken.
    """
    outline = outline_of(model)
    batch = _fix_inputs(outline.graph, given_inputs(outline.graph), given)
    filler = _Filler(declared=not given, symbol=batch.symbol)
    scopes: dict[GraphPath, dict[str, Shape]] = {}
    for _ in range(_ROUNDS):
        scopes = dict(_scopes(_inferred(outline).graph, (), model.graph))
        if not filler.fill(outline.graph, model.graph, scopes):
            break
    return Shapes(scopes, _rows(batch, model.graph, scopes[()]), tuple(sorted(filler.notes)))


class _Batch(NamedTuple):
    """The batch axis: its input, its place there and its symbolic name, empty if it has none."""

    value: str = ""
    axis: int = 0
    symbol: str = ""


def _batch_of(tensors: Sequence[onnx.ValueInfoProto]) -> _Batch:
    """The first axis of the first input, or the second where a fixed length comes first and the second is free."""
    value = next((value for value in tensors if _dims_of(value)), None)
    if value is None:
        return _Batch()
    dims = _dims_of(value)
    free = [axis for axis, dim in enumerate(dims) if axis and not dim.HasField("dim_value")]
    time_first = dims[0].dim_value > 1 and free == [1]
    axis = 1 if time_first and dims[1].dim_param else 0
    return _Batch(value.name, axis, dims[axis].dim_param)


def _fix_inputs(
    graph: onnx.GraphProto, inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, Sequence[int]]
) -> _Batch:
    """Fixes the shapes of the inputs: those given, and one row where an axis is the batch."""
    tensors = [value for value in inputs if value.type.HasField("tensor_type")]
    batch = _batch_of(tensors)
    names = [value.name for value in inputs]
    if unknown := [name for name in given if name not in names]:
        raise ExportError("`shapes`", got=f"input {unknown[0]}", expected=f"one of {', '.join(names)}")
    for value in inputs:
        if value.name in given:
            value.CopyFrom(_info(value.name, value.type.tensor_type.elem_type, given[value.name]))
    for index, dim in (pair for value in tensors for pair in enumerate(_dims_of(value))):
        is_batch = dim.dim_param == batch.symbol if dim.dim_param else index == 0
        if is_batch and not dim.HasField("dim_value"):
            dim.dim_value = 1
    # Declared outputs may be of another batch or type; inference finds them again.
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.ClearField("type")
    _require_fixed(tensors)
    return batch


def _require_fixed(tensors: Sequence[onnx.ValueInfoProto]) -> None:
    for value in tensors:
        dims = enumerate(_dims_of(value))
        free = [dim.dim_param or f"axis {i}" for i, dim in dims if not dim.HasField("dim_value")]
        if free or not value.type.tensor_type.HasField("shape"):
            raise ExportError(
                f"input {value.name}",
                got=f"sizes that are not fixed: {', '.join(free)}" if free else "no shape",
                expected="fixed sizes after the batch",
                fix=f"give them, as in `shapes` {value.name}=1,3,224,224",
            )


def _dims_of(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _inferred(outline: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(outline, data_prop=True)
    # Inference raises the first two on broken graphs; the others come from its binding to protobuf.
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError, EncodeError) as error:
        raise ExportError("graph", got=first_line(error), expected="a valid ONNX model") from error


def _scopes(
    inferred: onnx.GraphProto, path: GraphPath, original: onnx.GraphProto
) -> Iterator[tuple[GraphPath, dict[str, Shape]]]:
    own: dict[str, Shape] = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = _dims_of(value)
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            own[value.name] = tuple(dim.dim_value for dim in dims)
    own.update({weight.name: tuple(weight.dims) for weight in original.initializer})
    own.update({weight.values.name: tuple(weight.dims) for weight in original.sparse_initializer})
    yield path, own
    inside = {key: graph for _, key, graph in _graphs_in(inferred, path)}
    for _, key, graph in _graphs_in(original, path):
        yield from _scopes(inside[key], key, graph)


def _rows(batch: _Batch, graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> int:
    """Size of the batch; a fixed first axis is the batch only if an output has it too."""
    rows = shapes.get(batch.value, (1,))[batch.axis]
    answers = [shapes.get(value.name, ()) for value in graph.output]
    return rows if batch.symbol or any(answer[:1] == (rows,) for answer in answers) else 1


class _Filler:
    """Adds to an outline what follows from the shapes found so far.

    `declared` says whether what the model itself says of its values may be believed; `symbol` is the name of the
    batch axis, which is 1.
    """

    def __init__(self, *, declared: bool, symbol: str) -> None:
        self.notes: set[str] = set()
        self._declared = declared
        self._symbol = symbol

    def fill(
        self,
        outline: onnx.GraphProto,
        original: onnx.GraphProto,
        scopes: Scopes,
        path: GraphPath = (),
        outer: Mapping[str, Shape] | None = None,
    ) -> bool:
        """Whether there was anything to add, so that inferring again is worth it."""
        own = scopes[path]
        seen = {**(outer or {}), **own}
        hints = [hint for node in original.node for hint in self._bounds(node, seen)]
        if self._declared:
            hints += [hint for hint in map(self._believed, original.value_info) if hint and hint.name not in own]
        outline.value_info.extend(hints)
        found = bool(hints)
        inside = {key: graph for _, key, graph in _graphs_in(outline, path)}
        for node, key, graph in _graphs_in(original, path):
            if node.op_type == "Loop":
                found |= _loop_filled_in(outline, node, inside[key], seen, scopes[key])
            found |= self.fill(inside[key], graph, scopes, key, seen)
        return found

    def _bounds(self, node: onnx.NodeProto, seen: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
        """Largest shapes of outputs whose size depends on values."""
        if node.op_type != "NonZero" or node.output[0] in seen or not seen.get(node.input[0]):
            return []
        shape = seen[node.input[0]]
        self.notes.add(CHOSEN_ROWS)
        return [_info(node.output[0], TensorProto.INT64, [len(shape), math.prod(shape)])]

    def _believed(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto | None:
        """A value's declared shape at batch 1; None where a size stays open."""
        tensor = value.type.tensor_type
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else 1 if dim.dim_param == self._symbol != "" else None
            for dim in tensor.shape.dim
        ]
        known = tensor.HasField("shape") and None not in sizes
        return _info(value.name, tensor.elem_type, sizes) if known else None


def _loop_filled_in(
    outline: onnx.GraphProto,
    node: onnx.NodeProto,
    body: onnx.GraphProto,
    seen: Mapping[str, Shape],
    inside: Mapping[str, Shape],
) -> bool:
    """Gives values that a loop carries their shapes, where the body returns the shape it got."""
    found = False
    for given, value in zip(node.input[2:], body.input[2:], strict=False):
        if given in seen and value.name not in inside:
            value.CopyFrom(_info(value.name, value.type.tensor_type.elem_type, seen[given]))
            found = True
    for before, after, name in zip(body.input[2:], body.output[1:], node.output, strict=False):
        shape = inside.get(after.name)
        if name and name not in seen and shape is not None and shape == inside.get(before.name):
            outline.value_info.append(_info(name, before.type.tensor_type.elem_type, shape))
            found = True
    return found
