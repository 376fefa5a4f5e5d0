"""Shapes that ONNX's inference leaves open and that are known all the same, added to an outline round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from export.cost.outline import Path, graphs_in
from export.cost.rules import Shape

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
        self._scopes: Mapping[Path, Mapping[str, Shape]] = {}

    def fill(
        self, outline: onnx.GraphProto, original: onnx.GraphProto, scopes: Mapping[Path, Mapping[str, Shape]]
    ) -> bool:
        """Adds what it can.

        Args:
            outline: changed in place.
            original: the graph it is of.
            scopes: shapes inferred from the outline as it is.

        Returns:
            whether there was anything, so that inferring again is worth it.
        """
        self._scopes = scopes
        return self._fill(outline, original, (), {})

    def _fill(
        self, outline: onnx.GraphProto, original: onnx.GraphProto, path: Path, outer: Mapping[str, Shape]
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
        """What a model says of a value, at batch 1; None where a size stays open."""
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
    """What a loop carries keeps its shape, where the body gives back the shape it got."""
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
