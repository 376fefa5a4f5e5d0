"""Bringing an ONNX model to the opset of all members, without changing what it answers.

The converter and the inliner of the onnx package are not trusted: what they make is kept only where it answers as
the model did, every branch of an If included.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference, version_converter

from export.cost.shapes import outline_of
from export.parity import MAX_ABS_ERROR, Rows, answers_of, session_of
from export.tensor_rows import AnyRows
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs.combining import IR_VERSION, OPSET
from orchestrator.graphs.editing import DEFAULT_DOMAINS, all_graphs, all_nodes, inlined, opset_of
from orchestrator.spec.triton import image_runtimes, releases_that_read, runtime_of

# Version 3 wants every weight among the inputs, and version 7 has no functions.
MIN_IR_VERSION = 8
_OLDEST = runtime_of(image_runtimes()[0])
assert _OLDEST is not None
# The highest opset that the ONNX Runtime of every supported Triton release reads.
MAX_OPSET = _OLDEST.opset


def with_one_import(model: onnx.ModelProto) -> None:
    """Imports the standard operators once, under their usual domain, and limits the file's version."""
    opset = opset_of(model) or OPSET
    others = [
        helper.make_opsetid(o.domain, o.version) for o in model.opset_import if o.domain not in DEFAULT_DOMAINS
    ]
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", opset), *others])
    for node in all_nodes(model):
        node.domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
    model.ir_version = max(MIN_IR_VERSION, min(model.ir_version, IR_VERSION))


def at_common_opset(
    model: onnx.ModelProto, rows: AnyRows, *, subject: str, keep_opset: bool = False
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model at the opset of all members and without functions, where it answers as before; and the changes.

    What cannot be brought there stays at its own opset, which every supported runtime reads up to MAX_OPSET, and
    with `keep_opset` also above it. Answers to rows are compared.

    Raises ExportError where its opset is above MAX_OPSET and it cannot be brought down.
    """
    found = opset_of(model) or OPSET
    if found == OPSET and not model.functions:
        return model, ()
    expected = functools.cache(lambda: _answers_in_each_branch(model, rows))
    reasons = []
    for opset in _targets(found, keep_opset=keep_opset):
        if opset == found and not model.functions:
            return model, ()
        try:
            made = at_opset(inlined(model), opset)
            if made.functions:
                reasons.append("functions that cannot be inlined")
            elif _all_agree(_answers_in_each_branch(made, rows), expected()):
                return made, _changes(model, found, opset)
            else:
                reasons.append("answers change")
        # Converter and inliner raise whatever their C++ code throws, also for models over 2 GB.
        except Exception as error:
            # The text before that names a place in the C++ sources.
            reasons.append(first_line(error, most=2000).rpartition("` failed: ")[2][:200])
    if found <= MAX_OPSET or keep_opset:
        return model, ()
    releases = releases_that_read(ir_version=model.ir_version, opset=found)
    who_reads = f"Triton {', '.join(releases)} can" if releases else "no Triton release is known to"
    raise ExportError(
        subject,
        got=f"opset {found}, which cannot be brought to {MAX_OPSET} ({reasons[-1]})",
        expected=f"opset {MAX_OPSET} or less, which the ONNX Runtime of every supported Triton release reads",
        fix=f"export it again with opset {OPSET}, or keep it with `keep_opset`: {who_reads} read it",
    )


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model with its standard operators at an opset; raises whatever the converter's C++ side raises."""
    return model if opset_of(model) == opset else version_converter.convert_version(model, opset)


def agree(got: Rows, expected: Rows) -> bool:
    """Whether two answers to the same rows differ by rounding only, with NaN in the same places."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
    allowed = MAX_ABS_ERROR * max(1.0, largest)
    return bool(np.allclose(got, expected, rtol=0, atol=allowed, equal_nan=True))


def _all_agree(got: Sequence[Rows], expected: Sequence[Rows]) -> bool:
    return len(got) == len(expected) and all(map(agree, got, expected))


def _targets(found: int, *, keep_opset: bool) -> Iterator[int]:
    yield OPSET
    if found > OPSET:
        yield min(found, MAX_OPSET)
    if found < OPSET or (found > MAX_OPSET and keep_opset):
        yield found


def _changes(model: onnx.ModelProto, found: int, opset: int) -> tuple[str, ...]:
    words = []
    if model.functions:
        words.append(f"{len(model.functions)} local function{'s' * (len(model.functions) > 1)} inlined")
    if found != opset:
        words.append(f"opset {found} brought to {opset}")
    return tuple(words)


def _answers_in_each_branch(model: onnx.ModelProto, rows: AnyRows) -> list[Rows]:
    return [answers_of(session_of(one.SerializeToString()), rows, batch=len(rows)) for one in _each_branch(model)]


def _each_branch(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """The model itself, and if it has an If also with every condition true, and with every condition false."""
    yield model
    if any(node.op_type == "If" for node in all_nodes(model)):
        yield from (_forced(model, value) for value in (True, False))


def _forced(model: onnx.ModelProto, value: bool) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    scopes: list[Any] = [copy.graph, *copy.functions]
    for scope in scopes:
        inner = list(all_graphs(scope.node))
        nodes = [node for graph in (scope, *inner) for node in graph.node]
        names = {name for node in nodes for name in (*node.input, *node.output)}
        names |= {one.name for graph in inner for one in graph.input} | {one.name for one in copy.graph.input}
        # Longer than any other name, so it is new.
        condition = "c" * (1 + max(map(len, names), default=0))
        conditional = [node for node in nodes if node.op_type == "If"]
        for node in conditional:
            node.input[0] = condition
        if conditional:
            constant = numpy_helper.from_array(np.array(value), condition)
            scope.node.insert(0, helper.make_node("Constant", [], [condition], value=constant))
    return copy


def portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the rewritings above, in inner graphs and functions too; itself where there are none."""
    if not any(_rounds_up(node) for node in all_nodes(model)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # In inner graphs and functions the same name may be another tensor, and sizes are not inferred there.
    graph, outer = shape_inference.infer_shapes(outline_of(copy)).graph, list(copy.graph.node)
    # A free size is 0.
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    pools = [(node, shapes.get(node.input[0], ())) for node in outer if _rounds_up(node)]
    bodies = [node for function in copy.functions for node in function.node]
    inner = [*bodies, *(node for graph in all_graphs([*outer, *bodies]) for node in graph.node)]
    pools += [(node, ()) for node in inner if _rounds_up(node)]
    for node, sizes in pools:
        _rewrite_pool(node, sizes[2:])
    return copy


def _rounds_up(node: onnx.NodeProto) -> bool:
    return node.op_type == "AveragePool" and any(part.name == "ceil_mode" and part.i for part in node.attribute)


def _rewrite_pool(node: onnx.NodeProto, sides: Sequence[int]) -> None:
    """Rewrites one pooling node in place; a side of 0 is not known."""
    settings: dict[str, Any] = {part.name: helper.get_attribute_value(part) for part in node.attribute}
    if settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return
    kernel = settings["kernel_shape"]
    count = len(kernel)
    pads = settings.get("pads", [0] * 2 * count)
    dropped = set() if any(pads) else {"count_include_pad"}
    if len(sides) == count and all(sides):
        strides, dilations = (settings.get(name, [1] * count) for name in ("strides", "dilations"))
        spans = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
        # One window per axis, of all values: the next one would begin at or beyond the end.
        whole = all(span >= side for span, side in zip(spans, sides, strict=True))
        if whole and not any(pads) and set(dilations) == {1}:
            del node.attribute[:]
            node.op_type = "GlobalAveragePool"
            return
        padded = [side + low + high for side, low, high in zip(sides, pads[:count], pads[count:], strict=True)]
        if all((size - span) % step == 0 for size, span, step in zip(padded, spans, strides, strict=True)):
            dropped = {"ceil_mode"}
    kept = [part for part in node.attribute if part.name not in dropped]
    del node.attribute[:]
    node.attribute.extend(kept)
