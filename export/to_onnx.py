"""A framework model as an ONNX model with a dynamic batch axis."""

from __future__ import annotations

import io
import logging
import warnings

import onnx
import torch
from torch import nn

# The highest opset that both ONNX Runtime of 2023 and TensorRT 10 read completely.
OPSET = 18
# Newer ONNX packages write a file version that older runtimes refuse to open.
MAX_IR_VERSION = 10


def onnx_from_torch(
    model: nn.Module, example: torch.Tensor, *, input_name: str = "image", output_name: str = "logits"
) -> onnx.ModelProto:
    """The model as ONNX, checked, without the exporter's notes.

    Args:
        model: in evaluation mode, one tensor in, one out.
        example: at least two rows, so that the batch axis is not taken for a constant 1.
        input_name: name of the input tensor.
        output_name: name of the output tensor.
    """
    # The exporter reports every operator set that is not installed; none of them is of any use here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            optimize=True,
            verbose=False,
        )
    buffer = io.BytesIO()
    assert program is not None
    program.save(buffer)
    proto = onnx.load_from_string(buffer.getvalue())
    proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
    _strip_notes(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _strip_notes(proto: onnx.ModelProto) -> None:
    """Removes stack traces and comments: they name the exporter's machine and make equal models differ."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    proto.graph.doc_string = ""
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
