"""Rewriting what is known to differ between versions of ONNX Runtime, into what is the same in all of them.

AveragePool with `ceil_mode`: before 1.29 a window that reaches beyond the map is divided by its whole size instead
of by what it covers (ONNX Runtime issue 29629). transformers' EfficientNet pools a map of 7 x 7 with a window of
1,280 x 1,280, so that its logits are off by hundreds. Where such a window covers the whole map, GlobalAveragePool
says the same; where no window reaches beyond it, the two modes are one; and where there is no padding, whether it
counts makes no difference, except that old runtimes are right when it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper, shape_inference

from export.cost.outline import outline_of
from orchestrator.graphs.editing import all_graphs, all_nodes


def portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the rewritings above; itself where there is nothing to rewrite.

    Args:
        model: weights loaded; it is left as it is. Graphs inside nodes and functions are rewritten too.
    """
    if not any(_rounds_up(node) for node in all_nodes(model)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Inside nodes and functions names mean other tensors, and sizes are not inferred.
    shapes, outer = _shapes(copy), list(copy.graph.node)
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
    """Rewrites one pooling node in place; sizes of its map that are 0 are not known."""
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


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Tensor -> sizes as far as they are inferred, 0 where a size is free."""
    graph = shape_inference.infer_shapes(outline_of(model)).graph
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
