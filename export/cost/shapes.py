"""Shapes of every value of a graph and of the graphs inside it, at a stated batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from google.protobuf.message import EncodeError
from onnx import helper

from export.cost.filling import Filler
from export.cost.outline import Path, graphs_in, outline_of
from export.cost.rules import Shape
from orchestrator.errors import ExportError

# Each round fills in one level of loops, or one choice of rows that depends on an earlier one.
_ROUNDS = 32


@dataclass(frozen=True)
class Shapes:
    """Fixed shapes by graph and name.

    Args:
        scopes: for each graph, its own values.
        rows: how many rows the shapes are for.
        notes: what was assumed.
    """

    scopes: Mapping[Path, Mapping[str, Shape]]
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
    constant = {weight.name for weight in outline.graph.initializer}
    inputs = [value for value in outline.graph.input if value.name not in constant]
    batch = _fix_inputs(outline.graph, inputs, given)
    filler = Filler(declared=not given, symbol=batch.symbol)
    scopes: dict[Path, dict[str, Shape]] = {}
    for _ in range(_ROUNDS):
        scopes = dict(_scopes(_inferred(outline).graph, (), model.graph))
        if not filler.fill(outline.graph, model.graph, scopes):
            break
    return Shapes(scopes, _rows(batch, model.graph, scopes[()]), tuple(sorted(filler.notes)))


@dataclass(frozen=True)
class _Batch:
    """Which axis of which input is the batch, and its name if it has one."""

    value: str
    axis: int
    symbol: str


def _batch_of(tensors: Sequence[onnx.ValueInfoProto]) -> _Batch:
    """The first axis of the first input; of sequences that put time first, the free one behind a fixed length."""
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
    """Puts the shapes to count at into the inputs."""
    tensors = [value for value in inputs if value.type.HasField("tensor_type")]
    batch = _batch_of(tensors)
    _give(inputs, given)
    for value in tensors:
        _fix_batch(value, batch.symbol)
    # What outputs say of themselves may hold for another batch or type; inference finds it again.
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.ClearField("type")
    _require_fixed(tensors)
    return batch


def _give(inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, Sequence[int]]) -> None:
    names = [value.name for value in inputs]
    for name in given:
        if name not in names:
            raise ExportError("--shape", got=f"input {name}", expected=f"one of {', '.join(names)}")
    for value in inputs:
        if value.name in given:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, list(given[value.name])))


def _fix_batch(value: onnx.ValueInfoProto, symbol: str) -> None:
    """One row: a first axis without a name, and every axis that has the batch's."""
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
                fix=f"give them, as in --shape {value.name}=1,3,224,224",
            )


def dims_of(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    """Axes of a tensor."""
    return list(value.type.tensor_type.shape.dim)


def _inferred(outline: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(outline, data_prop=True)
    # The first two are what inference raises on broken graphs, the others what lies between it and protobuf.
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError, EncodeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError("graph", got=first, expected="a valid ONNX model") from error


def _scopes(
    inferred: onnx.GraphProto, path: Path, original: onnx.GraphProto
) -> Iterator[tuple[Path, dict[str, Shape]]]:
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
    """Size of the batch; a fixed first axis that is not in the answer too is none."""
    rows = shapes.get(batch.value, (1,))[batch.axis]
    answers = [shapes.get(value.name, ()) for value in graph.output]
    return rows if batch.symbol or any(answer[:1] == (rows,) for answer in answers) else 1
