"""Static quantisation with ONNX Runtime's tools, with the choices that keep top-1 and suit TensorRT.

Choices, and what they were measured with: digits_medium, digits_large and a transformer of 6 layers trained on the
same digits, 200 rows to calibrate, mean absolute difference of the logits on 997 other rows:
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.images.preprocess import PREFIX
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs.editing import given_inputs, named_copy

_LAYERS = ("Conv", "Gemm", "MatMul")
_CHUNK = 16
WEIGHT_BITS = 7


def quantized(
    model: onnx.ModelProto, rows: npt.NDArray[Any], *, weight_bits: int = WEIGHT_BITS
) -> onnx.ModelProto:
    """The model with its layers between QuantizeLinear and DequantizeLinear.

    Args:
        model: fp32, with named nodes.
        rows: (n, *dims), to take the ranges from.
        weight_bits: 7, or 8 to measure what the one bit costs.

    Raises:
        ExportError: there is nothing to quantise, or the rows do not run.
    """
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
        raise ExportError(
            "int8", got=first_line(error), expected="a model that ONNX Runtime simplifies"
        ) from error
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
        raise ExportError(
            "int8", got="no convolution or dense layer with constant weights", expected="something to quantise"
        )
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

    def __init__(self, name: str, rows: npt.NDArray[Any]) -> None:
        self._chunks: Iterator[dict[str, npt.NDArray[Any]]] = (
            {name: rows[start : start + _CHUNK]} for start in range(0, len(rows), _CHUNK)
        )

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
