"""Shapes of every value of a graph and of the graphs inside it, at a stated batch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper

from export.cost.outline import GraphPath, graphs_in, outline_of
from export.cost.rules import Shape
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs.editing import given_inputs

# Each round fills in one level of loops, or one NonZero that depends on an earlier one.
_ROUNDS = 32


@dataclass(frozen=True)
class Shapes:
    """Fixed shapes by graph and name.

    Args:
        scopes: for each graph, its own values.
        rows: how many rows the shapes are for.
        notes: what was assumed.
    """

    scopes: Mapping[GraphPath, Mapping[str, Shape]]
    rows: int
    notes: tuple[str, ...]


def shapes_of(model: onnx.ModelProto, given: Mapping[str, Sequence[int]]) -> Shapes:
    """Infers all shapes at batch 1, or at the batch that is fixed or given.

    Args:
        model: without local functions.
        given: shapes of inputs, batch first, over what the model says.

    Raises:
        ExportError: an input has an axis besides the batch that is not fixed; the graph is broken.
    """
    outline = outline_of(model)
    batch = _fix_inputs(outline.graph, given_inputs(outline.graph), given)
    filler = Filler(declared=not given, symbol=batch.symbol)
    scopes: dict[GraphPath, dict[str, Shape]] = {}
    for _ in range(_ROUNDS):
        scopes = dict(_scopes(_inferred(outline).graph, (), model.graph))
        if not filler.fill(outline.graph, model.graph, scopes):
            break
    return Shapes(scopes, _rows(batch, model.graph, scopes[()]), tuple(sorted(filler.notes)))


@dataclass(frozen=True)
class _Batch:
    """The batch axis: its input, its place there and its symbolic name, empty if it has none."""

    value: str
    axis: int
    symbol: str


def _batch_of(tensors: Sequence[onnx.ValueInfoProto]) -> _Batch:
    """The first axis of the first input, or the second where a fixed length comes first and the second is free."""
    value = next((value for value in tensors if dims_of(value)), None)
    if value is None:
        return _Batch("", 0, "")
    first, *others = dims_of(value)
    free = [axis for axis, dim in enumerate(others, start=1) if not dim.HasField("dim_value")]
    time_first = first.HasField("dim_value") and first.dim_value > 1 and free == [1]
    axis = 1 if time_first and others[0].dim_param else 0
    return _Batch(value.name, axis, dims_of(value)[axis].dim_param)


def _fix_inputs(
    graph: onnx.GraphProto, inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, Sequence[int]]
) -> _Batch:
    """Fixes the shapes of the inputs."""
    tensors = [value for value in inputs if value.type.HasField("tensor_type")]
    batch = _batch_of(tensors)
    _give(inputs, given)
    for value in tensors:
        _fix_batch(value, batch.symbol)
    # Declared outputs may be of another batch or type; inference finds them again.
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.ClearField("type")
    _require_fixed(tensors)
    return batch


def _give(inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, Sequence[int]]) -> None:
    names = [value.name for value in inputs]
    for name in given:
        if name not in names:
            raise ExportError("`shapes`", got=f"input {name}", expected=f"one of {', '.join(names)}")
    for value in inputs:
        if value.name in given:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, list(given[value.name])))


def _fix_batch(value: onnx.ValueInfoProto, symbol: str) -> None:
    """Sets the batch to one row: every axis with the batch's name, and a first axis without a name."""
    for index, dim in enumerate(dims_of(value)):
        batch = dim.dim_param == symbol if dim.dim_param else index == 0
        if batch and not dim.HasField("dim_value"):
            dim.dim_value = 1


def _require_fixed(tensors: Sequence[onnx.ValueInfoProto]) -> None:
    for value in tensors:
        free = [
            dim.dim_param or f"axis {i}" for i, dim in enumerate(dims_of(value)) if not dim.HasField("dim_value")
        ]
        if free or not value.type.tensor_type.HasField("shape"):
            raise ExportError(
                f"input {value.name}",
                got=f"sizes that are not fixed: {', '.join(free)}" if free else "no shape",
                expected="fixed sizes after the batch",
                fix=f"give them, as in `shapes` {value.name}=1,3,224,224",
            )


def dims_of(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    """Axes of a tensor."""
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
        dims = dims_of(value)
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            own[value.name] = tuple(dim.dim_value for dim in dims)
    own.update({weight.name: tuple(weight.dims) for weight in original.initializer})
    own.update({weight.values.name: tuple(weight.dims) for weight in original.sparse_initializer})
    yield path, own
    inside = {key: graph for _, key, graph in graphs_in(inferred, path)}
    for _, key, graph in graphs_in(original, path):
        yield from _scopes(inside[key], key, graph)


def _rows(batch: _Batch, graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> int:
    """Size of the batch; a fixed first axis is the batch only if an output has it too."""
    rows = shapes.get(batch.value, (1,))[batch.axis]
    answers = [shapes.get(value.name, ()) for value in graph.output]
    return rows if batch.symbol or any(answer[:1] == (rows,) for answer in answers) else 1


CHOSEN_ROWS = "rows that are chosen while running count as all rows: an upper bound"


class Filler:
    """Adds to an outline what follows from the shapes found so far.

    Args:
        declared: whether what the model itself says of its values may be believed.
        symbol: name of the batch axis, which is 1.
    """

    def __init__(self, *, declared: bool, symbol: str) -> None:
        self.notes: set[str] = set()
        self._declared = declared
        self._symbol = symbol
        self._scopes: Mapping[GraphPath, Mapping[str, Shape]] = {}

    def fill(
        self, outline: onnx.GraphProto, original: onnx.GraphProto, scopes: Mapping[GraphPath, Mapping[str, Shape]]
    ) -> bool:
        """Adds to the outline of a graph what follows from the shapes that were inferred from it as it is.

        Returns:
            whether there was anything, so that inferring again is worth it.
        """
        self._scopes = scopes
        return self._fill(outline, original, (), {})

    def _fill(
        self, outline: onnx.GraphProto, original: onnx.GraphProto, path: GraphPath, outer: Mapping[str, Shape]
    ) -> bool:
        own = self._scopes[path]
        seen = {**outer, **own}
        hints = [hint for node in original.node for hint in self._bounds(node, seen)]
        if self._declared:
            hints += [hint for hint in map(self._believed, original.value_info) if hint and hint.name not in own]
        outline.value_info.extend(hints)
        found = bool(hints)
        inside = {key: graph for _, key, graph in graphs_in(outline, path)}
        for node, key, graph in graphs_in(original, path):
            if node.op_type == "Loop":
                found |= _loop_filled_in(outline, node, inside[key], seen, self._scopes[key])
            found |= self._fill(inside[key], graph, key, seen)
        return found

    def _bounds(self, node: onnx.NodeProto, seen: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
        """Largest shapes of outputs whose size depends on values."""
        if node.op_type != "NonZero" or node.output[0] in seen or not seen.get(node.input[0]):
            return []
        shape = seen[node.input[0]]
        self.notes.add(CHOSEN_ROWS)
        bound = [len(shape), math.prod(shape)]
        return [helper.make_tensor_value_info(node.output[0], TensorProto.INT64, bound)]

    def _believed(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto | None:
        """A value's declared shape at batch 1; None where a size stays open."""
        tensor = value.type.tensor_type
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else 1 if dim.dim_param == self._symbol != "" else None
            for dim in tensor.shape.dim
        ]
        if not tensor.HasField("shape") or None in sizes:
            return None
        return helper.make_tensor_value_info(value.name, tensor.elem_type, sizes)


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
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, list(seen[given])))
            found = True
    for before, after, name in zip(body.input[2:], body.output[1:], node.output, strict=False):
        shape = inside.get(after.name)
        if name and name not in seen and shape is not None and shape == inside.get(before.name):
            kind = before.type.tensor_type.elem_type
            outline.value_info.append(helper.make_tensor_value_info(name, kind, list(shape)))
            found = True
    return found
