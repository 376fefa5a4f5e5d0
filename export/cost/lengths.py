"""Multiply-accumulates of a row as a function of its length."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.cost.counting import macs_per_row
from export.cost.rules import RULES, operator_of
from export.cost.shapes import outline_of
from export.parity import session_of
from export.tensor_rows import TensorKind, TensorRows, feed_of, rows_of_lengths
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs.editing import inlined
from orchestrator.spec import RowLength

# The length that `macs` of a manifest are those of, where rows may be so long.
USUAL_LENGTH = 128
FITTED = "; the function of the length fitted through counts at three lengths, and right at a fourth"


def length_of(model: onnx.ModelProto, kinds: Sequence[TensorKind], *, longest: int) -> RowLength:
    """Lengths of a member, with its work counted at four of them.

    Dense layers grow with the length, attention with its square; a row of no length costs what does not depend on
    it, such as tables of positions. Shapes are those of a run: graphs with free lengths compute many of them, in
    ways that shape inference does not follow.

    Raises:
        ExportError: a shape is not known, or the work is no such function of the length.
    """
    at = min(longest, USUAL_LENGTH)
    # Odd ones too: a graph may round a length up.
    lengths = sorted({max(1, min(longest, one)) for one in (at, at // 2, at // 4 + 1, 3 * at // 4)})
    count = _counter(model, kinds)
    counted = {length: Fraction(count(length)) for length in lengths}
    coefficients = _fitted(dict(list(counted.items())[-3:]))
    for length, macs in counted.items():
        said = sum(part * length**power for power, part in enumerate(coefficients))
        if said != macs:
            raise ExportError(
                "cost by length",
                got=f"{float(macs):g} at length {length}, where {float(said):g} would fit the other lengths",
                expected="a sum of a constant, of the length and of its square, each times a factor",
                fix="give the multiply-accumulates of one row with `macs`",
            )
    pad = {kind.spec.name: kind.pad for kind in kinds if kind.varies}
    numbers = tuple(float(part) for part in coefficients)
    return RowLength(longest=longest, pad=pad, macs_at=at, macs_coefficients=numbers)


def macs_in_a_run(model: onnx.ModelProto, kinds: Sequence[TensorKind]) -> int:
    """Multiply-accumulates of a row of fixed size, by the shapes of a run; raises as `length_of`."""
    return _counter(model, kinds)(1)


def _counter(model: onnx.ModelProto, kinds: Sequence[TensorKind]) -> Callable[[int], int]:
    """A function of a row's length that gives its multiply-accumulates."""
    outline, ask = outline_of(inlined(model)), _shapes_at(model)

    def count(length: int) -> int:
        rows = rows_of_lengths(kinds, np.array([length]))
        return macs_per_row(_fixed(outline, rows, ask(rows)))

    return count


Sizes = dict[str, tuple[int, ...]]


def _shapes_at(model: onnx.ModelProto) -> Callable[[TensorRows], Sizes]:
    """A function of rows that gives the shapes of what counted operators take and make, by tensor."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    graph = asked.graph
    made = {name for node in graph.node for name in node.output if name}
    counted = [node for node in graph.node if operator_of(node) in RULES]
    names = [
        name for name in dict.fromkeys(n for one in counted for n in (*one.input, *one.output)) if name in made
    ]
    del graph.output[:]
    for place, name in enumerate(names):
        graph.node.append(helper.make_node("Shape", [name], [f"cost/{place}"]))
        graph.output.append(helper.make_tensor_value_info(f"cost/{place}", TensorProto.INT64, None))
    try:
        session = session_of(asked.SerializeToString())
    # Protobuf's error for more than 2 GB differs by version.
    except Exception as error:
        fix = "give the multiply-accumulates of one row with `macs`"
        raise ExportError(
            "cost by length", got=first_line(error), expected="a graph that runs", fix=fix
        ) from error

    def ask(rows: TensorRows) -> Sizes:
        sizes = session.run(None, feed_of(session, rows)) if names else []
        return {name: tuple(int(size) for size in one) for name, one in zip(names, sizes, strict=True)}

    return ask


def _fixed(outline: onnx.ModelProto, rows: TensorRows, sizes: Sizes) -> onnx.ModelProto:
    """An outline with the shapes that it has for some rows."""
    model = onnx.ModelProto()
    model.CopyFrom(outline)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for value in model.graph.input:
        if value.name in rows.arrays:
            shape = rows.arrays[value.name].shape
            value.CopyFrom(helper.make_tensor_value_info(value.name, kinds[value.name], shape))
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items()
    )
    return model


def _fitted(points: dict[int, Fraction]) -> list[Fraction]:
    """Three coefficients, constant first, of the polynomial of lowest degree through up to three points."""
    total = [Fraction(0)] * 3
    for x, y in points.items():
        basis = [Fraction(1)]
        for other in points:
            if other != x:
                # Times (t - other) / (x - other).
                shifted, scaled = [Fraction(0), *basis], [*(one * other for one in basis), Fraction(0)]
                basis = [(a - b) / (x - other) for a, b in zip(shifted, scaled, strict=True)]
        total = [a + y * b for a, b in zip(total, [*basis, Fraction(0), Fraction(0)], strict=False)]
    return total
