"""An fp32 graph as one of lower precision, and how often both give a row the same top-1.

fp16: weights and network in half precision; inputs and outputs keep their types. int8: symmetric QDQ, so that
ONNX Runtime and TensorRT's parser both take it. In both, the image processing ("preprocess/") stays fp32: pixels
up to 255 and sums over them are more than half precision or a byte can hold exactly.

Choices of int8, made with ONNX Runtime's tools, and what they were measured with: digits_medium, digits_large and
a transformer of 6 layers trained on the same digits, 200 rows to calibrate, mean absolute difference of the logits
on 997 other rows:
- Products of two activations (attention) stay fp32: transformer 0.0306 -> 0.0205. What leaves a dense layer is not
  quantised either, since sums and normalisation come next: with both quantised it was 0.0464.
- The last layer stays fp32: digits_large 0.0204 -> 0.0183, digits_medium 0.0341 -> 0.0308, transformer 0.0219 ->
  0.0205.
- What leaves a convolution is quantised though it costs a little (digits_large 0.0177 without): ONNX Runtime has
  no int8 convolution otherwise, and digits_large then takes 4.6 ms instead of 0.8 for 64 rows.
- Ranges are the least and greatest value seen: percentiles and entropy gave the same within 6 %.
- Weights have seven bits (`reduce_range`), so that every processor gives the same answers: with eight, sums of two
  products overflow 16 bits on x86 without VNNI (orchestrator/spec/processor.py). What that costs stands in
  docs/export.md, measured by `python -m perf int8`. uint8 for weights and activations is exact there as well, but
  TensorRT takes signed ones only.
- Biases stay fp32: TensorRT's parser refuses int32 ones. Zero points are 0 for the same reason.

Top-1 as fp32 on those rows: transformer 99.9 %, digits_small 99.8 %, digits_medium and digits_large 100 %.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from export.images import PREFIX
from export.members import EXTERNAL_OVER_BYTES
from export.parity import answers_of, session_of
from export.tensor_rows import AnyRows, TensorRows
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs.editing import (
    full_check,
    given_inputs,
    named_copy,
    replace_nodes,
    sorted_nodes,
    without_lossy_casts,
)
from orchestrator.spec.shares import wilson_ci95

_LAYERS = ("Conv", "Gemm", "MatMul")
_CHUNK, _COMPARED_CHUNK = 16, 32
WEIGHT_BITS = 7


def _quantized(model: onnx.ModelProto, rows: AnyRows, *, weight_bits: int) -> onnx.ModelProto:
    """A model with named nodes, its layers between QuantizeLinear and DequantizeLinear."""
    source = given_inputs(model.graph)[0].name
    with TemporaryDirectory(prefix="committee-int8-") as name, _quiet():
        folder = Path(name)
        prepared = _prepared(model, folder)
        layers, others = _layers(prepared.graph)
        try:
            quantize_static(
                prepared,
                folder / "int8.onnx",
                _Rows(source, rows),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_LAYERS),
                nodes_to_quantize=layers,
                nodes_to_exclude=others,
                per_channel=True,
                reduce_range=weight_bits < 8,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                },
            )
        # It raises whatever ONNX Runtime, numpy or its own checks threw.
        except Exception as error:
            raise ExportError("int8", got=first_line(error), expected="a model that can be quantised") from error
        return _tidied(onnx.load(str(folder / "int8.onnx")), model)


def _prepared(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph as ONNX Runtime simplifies it (batch normalisation goes into convolutions), shapes inferred."""
    # By path: given a model itself, the tool moves the weights out of it.
    onnx.save(model, str(folder / "fp32.onnx"))
    try:
        # Symbolic inference needs sympy, which is no dependency; constants' shapes are all that is needed.
        quant_pre_process(folder / "fp32.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
        prepared = named_copy(onnx.load(str(folder / "prepared.onnx")))
    except Exception as error:
        expected = "a model that ONNX Runtime simplifies"
        raise ExportError("int8", got=first_line(error), expected=expected) from error
    return prepared


def _layers(graph: onnx.GraphProto) -> tuple[list[str], list[str]]:
    """Names of the nodes to quantise, and of those of the same kinds that are left alone."""
    constants = {weight.name for weight in graph.initializer}
    candidates = [node for node in graph.node if node.op_type in _LAYERS]
    layers = [
        node.name
        for node in candidates
        if not node.name.startswith(PREFIX) and len(node.input) > 1 and node.input[1] in constants
    ]
    if not layers:
        got = "no convolution or dense layer with constant weights"
        raise ExportError("int8", got=got, expected="something to quantise")
    # A network with one layer quantises that one.
    chosen = layers[:-1] or layers
    return chosen, [node.name for node in candidates if node.name not in chosen]


def _tidied(made: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the tools' leftovers: unused operator sets, notes, old shapes."""
    used = {node.domain for node in made.graph.node}
    imports = [part for part in made.opset_import if (part.domain or "") in used or not part.domain]
    del made.opset_import[:]
    made.opset_import.extend(imports)
    made.ir_version = model.ir_version
    made.producer_name, made.producer_version = "committee", ""
    del made.metadata_props[:], made.graph.value_info[:]
    made.graph.name = model.graph.name
    return made


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """The calibration rows, a chunk at a time."""

    def __init__(self, name: str, rows: AnyRows) -> None:
        parts = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
        self._chunks = (dict(one.arrays) if isinstance(one, TensorRows) else {name: one} for one in parts)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._chunks, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the tools, which log advice to the root logger that this module follows already."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


LARGEST = 65504.0
SMALLEST = 2.0**-24
# In deep transformers their squares and sums exceed half precision; TensorRT recommends fp32 for them too.
_FP32_OPERATORS = ("LayerNormalization",)
# Names of fp16 copies of tensors that stay fp32.
_COPY = "fp16/"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The share of rows with the same top-1 in both precisions, its 95 % interval (Wilson), and differences."""

    rows: int
    same_top1: float
    same_top1_ci95: tuple[float, float]
    max_abs: float
    mean_abs: float


def agreement_of(model: bytes | Path, original: bytes | Path, rows: AnyRows) -> Agreement:
    """Compares a model in ONNX Runtime with what it was made from, on rows in their inputs' dtypes.

    Raises:
        ExportError: one of them cannot be run, or the model gives NaN or infinity where the original does not.
    """
    got, expected = (
        np.asarray(answers_of(session_of(one), rows, batch=_COMPARED_CHUNK), np.float32)
        for one in (model, original)
    )
    if got.shape != expected.shape:
        raise ExportError("agreement", got=f"outputs of shape {got.shape}", expected=f"{expected.shape}")
    broken = int((np.isfinite(expected) & ~np.isfinite(got)).any(axis=1).sum())
    if broken:
        raise ExportError(
            "agreement",
            got=f"NaN or infinity on {broken} of {len(rows)} rows",
            expected="finite scores, as the original gives",
            fix="values inside the network leave the range of this precision: keep it in fp32",
        )
    same = int((got.argmax(axis=1) == expected.argmax(axis=1)).sum())
    difference = np.abs(got - expected, where=np.isfinite(expected), out=np.zeros_like(expected))
    return Agreement(
        rows=len(rows),
        same_top1=same / len(rows),
        same_top1_ci95=wilson_ci95(same, len(rows)),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
    )


def fp16_from(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its network in half precision.

    What stays fp32: "preprocess/" nodes, nodes with a lone constant that half precision cannot hold (a bound of
    1e30, an epsilon of 1e-12), layer normalisation, and operators the converter knows to be unfit. The last layer
    goes to half precision too: kept in fp32 it changed little (mean difference of a small transformer's logits
    0.0012, else 0.0013; digits_medium 0.0009, else 0.0010).

    Raises:
        ExportError: it is not fp32, or has weights beyond half precision.
    """
    _require_fp32(model, "fp16")
    # The converter in ONNX Runtime rather than onnxconverter-common, which it comes from: it is a dependency
    # already, and keeps the constants of nodes that stay fp32 as they are.
    copy = named_copy(model)
    kept = _fp32_nodes(copy.graph)
    _require_range(copy.graph, kept)
    half: onnx.ModelProto = convert_float_to_float16(
        copy,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32_OPERATORS],
        node_block_list=sorted(kept),
    )
    _each_node_once(half.graph)
    without_lossy_casts(half.graph)
    _give_back_names(half.graph)
    # The converter appends casts at the end, and keeps shapes with their old types.
    sorted_nodes(half.graph)
    del half.graph.value_info[:]
    full_check(half, "fp16")
    return half


def int8_from(model: onnx.ModelProto, rows: AnyRows, *, weight_bits: int = WEIGHT_BITS) -> onnx.ModelProto:
    """The model with its convolutions and dense layers in int8 (symmetric QDQ, weights per channel).

    Args:
        model: an fp32 model, weights loaded; left as it is.
        rows: like those it will be asked; ranges of activations are taken from them.
        weight_bits: 7, which every processor adds up exactly, or 8 to measure what the one bit costs.

    Raises:
        ExportError: it is not fp32, has nothing to quantise, or the rows do not run.
    """
    _require_fp32(model, "int8")
    arrays = rows.arrays.values() if isinstance(rows, TensorRows) else [rows]
    if not all(np.isfinite(one).all() for one in arrays if one.dtype.kind == "f"):
        raise ExportError("calibration rows", got="NaN or infinity", expected="finite values")
    made = _quantized(named_copy(model), rows, weight_bits=weight_bits)
    full_check(made, "int8")
    return made


def _require_fp32(model: onnx.ModelProto, target: str) -> None:
    what = f"{target} of this model"
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    if size > EXTERNAL_OVER_BYTES:
        most = f"at most {EXTERNAL_OVER_BYTES / 1e9:.1f} GB, which the tools can hold in one piece"
        fix = "convert it where it was trained and export that"
        raise ExportError(what, got=f"{size / 1e9:.1f} GB of weights", expected=most, fix=fix)
    lower = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    if any(weight.data_type in lower for weight in model.graph.initializer):
        raise ExportError(what, got="half-precision weights", expected="an fp32 model")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for node in model.graph.node):
        raise ExportError(what, got="a quantised model", expected="an fp32 model")


def _each_node_once(graph: onnx.GraphProto) -> None:
    """Drops repeated casts: the converter casts a weight once per fp32 node that reads it, under one name."""
    made: set[str] = set()
    nodes = []
    for node in graph.node:
        if not made.issuperset(node.output):
            nodes.append(node)
        made.update(node.output)
    replace_nodes(graph, nodes)


def rounding_from(half: onnx.ModelProto) -> onnx.ModelProto:
    """A half-precision graph in fp32 that rounds each tensor which is half precision in the original.

    Sums inside an operator are fp32, as they are in tensor cores. The graph has no graphs inside its nodes.
    """
    copy = onnx.shape_inference.infer_shapes(half)
    graph = copy.graph
    halves = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for weight in graph.initializer:
        _widen(weight)
    nodes = []
    for node in graph.node:
        _in_fp32(node)
        nodes.append(node)
        for index, output in enumerate(node.output):
            if output in halves:
                exact, rounded = f"{output}/exact", f"{output}/half"
                node.output[index] = exact
                nodes.append(helper.make_node("Cast", [exact], [rounded], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [rounded], [output], to=TensorProto.FLOAT))
    replace_nodes(graph, nodes)
    del graph.value_info[:]
    full_check(copy, "fp16")
    return copy


def _in_fp32(node: onnx.NodeProto) -> None:
    """Turns half-precision types and constants in a node's attributes into fp32."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        _widen(attribute.t)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        value = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def tiny_weights_of(model: onnx.ModelProto) -> int:
    """Weights that are not zero, but too small for half precision; they get its smallest value."""
    count = 0
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and not weight.name.startswith(PREFIX):
            size = np.abs(numpy_helper.to_array(weight))
            count += int(((size > 0) & (size < SMALLEST)).sum())
    return count


def _fp32_nodes(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that stay fp32."""
    outside = set()
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT and math.prod(weight.dims) == 1:
            size = float(np.abs(numpy_helper.to_array(weight)).item())
            if size > LARGEST or 0 < size < SMALLEST:
                outside.add(weight.name)
    return {node.name for node in graph.node if node.name.startswith(PREFIX) or outside.intersection(node.input)}


def _require_range(graph: onnx.GraphProto, kept: set[str]) -> None:
    used = {name for node in graph.node if node.name not in kept for name in node.input}
    beyond = []
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT and weight.name in used:
            value = numpy_helper.to_array(weight)
            largest = np.abs(value[np.isfinite(value)]).max(initial=0)
            if largest > LARGEST:
                beyond.append(f"{weight.name} up to {largest:g}")
    if beyond:
        got = f"weights beyond its range: {', '.join(beyond[:3])}"
        raise ExportError("fp16", got=got, expected=f"at most {LARGEST:g}", fix="keep this member in fp32")


def _give_back_names(graph: onnx.GraphProto) -> None:
    """Gives fp32 tensors their names back, which the converter gave to their fp16 copies."""
    table = {}
    for node in graph.node:
        if node.op_type == "Cast" and node.name.endswith("_cast_to_fp16_node"):
            old, new = node.input[0], node.output[0]
            table[old], table[new] = new, _COPY + new
            node.name = _COPY + new
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [table.get(name, name) for name in names]
