"""A framework model as an ONNX model with a dynamic batch axis."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from export.packing import EXTERNAL_OVER_BYTES, MAX_IR_VERSION, OPSET
from orchestrator.errors import ExportError


def onnx_from_torch(
    model: nn.Module, example: torch.Tensor, *, input_name: str = "image", output_name: str = "logits"
) -> onnx.ModelProto:
    """The model as ONNX, checked, without the exporter's notes; weights of any size are in it.

    Args:
        model: in evaluation mode, one tensor in, one out.
        example: at least two rows, so that the batch axis is not taken for a constant 1.
        input_name: name of the input tensor.
        output_name: name of the output tensor.

    Raises:
        ExportError: the model does something the exporter cannot put into a graph.
    """
    # The exporter reports every operator set that is not installed; none of them is of any use here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # It reports as errors what it then handles; what it does not handle is raised.
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="committee-export-") as folder:
        # Through a file: a model over 2 GB cannot be serialised in one piece, and its checker wants a path.
        path = Path(folder) / "model.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = _exported(model, example, input_name, output_name)
            program.save(str(path), external_data=_bytes_of(model) > EXTERNAL_OVER_BYTES)
        proto = onnx.load(str(path))
        for weight in proto.graph.initializer:
            # Loading leaves a mark on every tensor, which would make equal models differ.
            weight.ClearField("data_location")
        proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
        strip_notes(proto)
        onnx.checker.check_model(str(path), full_check=True)
    return proto


def require_answer(model: nn.Module, example: torch.Tensor) -> None:
    """Raises ExportError where a network cannot take an input, or gives no scores; its own words are shorter."""
    try:
        with torch.inference_mode():
            said = model(example)
    # Whatever the network raises on an input it cannot take.
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ExportError(
            "the network",
            got=f"{type(error).__name__}: {first}",
            expected=f"an answer to rows of {' x '.join(map(str, example.shape[1:]))}",
            fix="choose another --resolution or --dims",
        ) from error
    if not isinstance(said, torch.Tensor) or said.ndim != 2 or len(said) != len(example):
        got = f"shape {list(said.shape)}" if isinstance(said, torch.Tensor) else type(said).__name__
        raise ExportError("the network's output", got=got, expected="one tensor (rows, classes)")


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _exported(
    model: nn.Module, example: torch.Tensor, input_name: str, output_name: str
) -> torch.onnx.ONNXProgram:
    try:
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
    # The exporter's errors and whatever the model itself raises; their text can be pages long.
    except Exception as error:
        cause = error.__cause__ or error
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
        raise ExportError(
            "export to ONNX",
            got=f"{type(cause).__name__}: {first}",
            expected="a network that torch.export can follow, with a free batch axis",
            fix="make its shapes and branches independent of the values",
        ) from error
    assert program is not None
    return program


def strip_notes(proto: onnx.ModelProto) -> None:
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
