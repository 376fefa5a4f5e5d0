"""What in a quantised graph comes out differently on processors without dot-product instructions.

`orchestrator/spec/processor.py` says why. Which weights are safe was tried on forms of quantised members, QDQ
and operators, static and dynamic, on an emulated x86 processor without VNNI: signed weights beyond 64 overflow,
unsigned ones do not.

ONNX Runtime moves DequantizeLinear and QuantizeLinear over what lies between them and a layer, and folds
constants, in other ways in each version. So stored weights are not followed to their layer: they count as soon as
the graph works on computed bytes anywhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from orchestrator.graphs.editing import graphs_inside, inlined
from orchestrator.spec.processor import DOT_PRODUCT_FLAGS, LARGEST_SAFE_WEIGHT

# Layers between QuantizeLinear and DequantizeLinear: data first, weights second.
_QDQ_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators that take bytes themselves -> places of their weights.
_BYTE_OPERATORS = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), (3,)),
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"), (1,)),
    **dict.fromkeys(("DynamicQuantizeMatMul", "QAttention"), (1,)),
    "DynamicQuantizeLSTM": (1, 2),
}
# Operators whose output holds values of their inputs, and zeros: what was dequantised still stands on its steps.
_MOVING_NAMES = (
    "Transpose Reshape Squeeze Unsqueeze Identity Flatten MaxPool GlobalMaxPool Slice Pad Dropout Expand Tile "
    "Concat Split Gather GatherElements GatherND ScatterElements ScatterND Where Relu Clip Max Min ReduceMax "
    "ReduceMin DepthToSpace SpaceToDepth Compress ReverseSequence TopK Trilu"
)
_MOVING = frozenset(_MOVING_NAMES.split())
_BYTES = (TensorProto.INT8, TensorProto.UINT8)


def processor_flags_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """A manifest's `processor_flags`: a processor needs one of them to add up this graph's bytes exactly."""
    return DOT_PRODUCT_FLAGS if overflowing_parts(model) else ()


def overflowing_parts(model: onnx.ModelProto) -> tuple[str, ...]:
    """Layers and stored weights for which a sum of two byte products may exceed 16 bits.

    Returns:
        names of layers, else their operators, and of the tensors that weights are dequantised from.
    """
    walk = _Walk()
    walk.graph((inlined(model) if model.functions else model).graph, {})
    return tuple(dict.fromkeys([*walk.layers, *(walk.weights if walk.dequantises_computed else ())]))


@dataclass(frozen=True)
class _Tensor:
    """What is known of a tensor's values; the defaults stand for nothing known."""

    # ONNX's number; 0 where it is not known.
    dtype: int = 0
    # Nothing but constants went into it.
    stored: bool = False
    # Its bytes, or those it was dequantised from, may be signed and beyond the largest safe weight.
    wide: bool = True
    # It has two axes or more, or may have: what has one is a bias or a scale.
    matrix: bool = True
    # Its floats are bytes times a scale.
    dequantised: bool = False


class _Walk:
    """One pass through a graph's nodes in order, with inner graphs at their nodes."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.weights: list[str] = []
        self.dequantises_computed = False

    def graph(self, graph: onnx.GraphProto, outer: Mapping[str, _Tensor]) -> list[_Tensor]:
        """Walks through a graph, which sees the `outer` tensors; returns its outputs."""
        known = {**outer, **{weight.name: _constant(weight) for weight in graph.initializer}}
        types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        known = {name: _Tensor(dtype=one, wide=_may_be_signed(one)) for name, one in types.items()} | known
        for node in graph.node:
            given = [known.get(name, _Tensor()) for name in node.input if name]
            by_place = [known.get(name, _Tensor()) for name in node.input]
            self._look(node, by_place)
            inner = list(self._inside(node, known, by_place))
            made = replace(_united(inner), dtype=0) if inner else _made(node, given, by_place)
            known |= dict.fromkeys(node.output, made)
        return [known.get(value.name, _Tensor()) for value in graph.output]

    def _inside(
        self, node: onnx.NodeProto, known: Mapping[str, _Tensor], inputs: list[_Tensor]
    ) -> Iterator[_Tensor]:
        for graph in graphs_inside(node):
            # Loop and Scan hand their inputs to the body's in the same order.
            handed = dict(zip((value.name for value in graph.input), inputs, strict=False))
            yield from self.graph(graph, {**known, **handed})
            if handed:
                # From the second round on a constant may have been replaced by a computed value.
                later = {name: replace(one, stored=False) for name, one in handed.items()}
                yield from self.graph(graph, {**known, **later})

    def _look(self, node: onnx.NodeProto, inputs: list[_Tensor]) -> None:
        """Records layers that overflow and tensors that are dequantised."""
        if node.op_type == "DequantizeLinear":
            data = inputs[0]
            if data.stored and data.wide and data.matrix:
                self.weights.append(node.input[0])
            self.dequantises_computed |= not data.stored and data.dtype in (0, *_BYTES)
            return
        if node.op_type in _BYTE_OPERATORS:
            found = any(inputs[place].wide for place in _BYTE_OPERATORS[node.op_type] if place < len(inputs))
        else:
            # With weights alone quantised, the layer itself is computed in floats.
            operands = inputs[:2] if node.op_type in _QDQ_LAYERS else []
            found = len(operands) == 2 and all(one.dequantised for one in operands) and operands[1].wide
        if found:
            self.layers.append(node.name or node.op_type)


def _made(node: onnx.NodeProto, given: list[_Tensor], by_place: list[_Tensor]) -> _Tensor:
    """What a node without inner graphs gives; `given` are its inputs without those left out, which are unknown."""
    stored = all(one.stored for one in given)
    if node.op_type == "Constant":
        return next((_constant(part.t) for part in node.attribute if part.HasField("t")), _Tensor(stored=True))
    if node.op_type == "DequantizeLinear":
        return replace(by_place[0], dtype=0, dequantised=True)
    if node.op_type == "QuantizeLinear":
        # Values of weights that are quantised in the graph are not looked at: they are made to fill a byte.
        named = (part.i for part in node.attribute if part.name == "output_dtype" and part.i)
        typed = len(by_place) > 2 and node.input[2]
        dtype = by_place[2].dtype if typed else next(named, int(TensorProto.UINT8))
        return _Tensor(dtype=dtype, stored=stored, wide=_may_be_signed(dtype), matrix=by_place[0].matrix)
    if node.op_type == "DynamicQuantizeLinear":
        return _Tensor(dtype=TensorProto.UINT8, stored=stored, wide=False)
    if node.op_type == "Cast":
        dtype = next((part.i for part in node.attribute if part.name == "to"), 0)
        kept = dtype not in _BYTES and by_place[0].dequantised
        return replace(by_place[0], dtype=dtype, wide=by_place[0].wide if kept else _may_be_signed(dtype))
    if node.op_type in _MOVING and given:
        return _united(given)
    return _Tensor(stored=stored)


def _united(parts: list[_Tensor]) -> _Tensor:
    """A tensor with values of several others; the first gives the type, the others may be sizes or places."""
    return _Tensor(
        dtype=parts[0].dtype,
        stored=all(one.stored for one in parts),
        wide=parts[0].wide or any(one.wide for one in parts if one.dequantised or one.dtype in _BYTES),
        dequantised=any(one.dequantised for one in parts),
    )


def _constant(tensor: TensorProto) -> _Tensor:
    wide = False
    if tensor.data_type == TensorProto.INT8:
        # As int16, for the absolute value of -128 does not fit a byte.
        sizes = np.abs(numpy_helper.to_array(tensor).astype(np.int16))
        wide = bool(sizes.size and sizes.max() > LARGEST_SAFE_WEIGHT)
    return _Tensor(dtype=tensor.data_type, stored=True, wide=wide, matrix=len(tensor.dims) > 1)


def _may_be_signed(dtype: int) -> bool:
    return dtype in (0, TensorProto.INT8)
