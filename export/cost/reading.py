"""ONNX files as far as counting needs them: without the data of weights that lie in files of their own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from export.cost.outline import KEPT_VALUES, graphs_in
from orchestrator.errors import ExportError


def graph_from_path(path: Path) -> onnx.ModelProto:
    """The model in a file; weights stored beside it are not read and need not be there.

    Raises:
        ExportError: no such file, or not a whole ONNX model.
    """
    what = f"model file {path}"
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
        _read_small_constants(model.graph, path.parent)
        readable = all(isinstance(text, str) for text in _texts(model.graph))
    except OSError as error:
        raise ExportError(what, got=error.strerror or type(error).__name__, expected="an ONNX file") from error
    # Protobuf meets damaged names with ValueError or TypeError, depending on its version.
    except (DecodeError, IndexError, ValueError, TypeError) as error:
        raise ExportError(what, got="bytes that are no whole ONNX model", expected="an ONNX file") from error
    if not readable:
        raise ExportError(what, got="names with damaged bytes", expected="an ONNX file")
    if not model.graph.node:
        raise ExportError(what, got="a model without nodes", expected="an ONNX model")
    if not model.graph.output:
        raise ExportError(what, got="a graph without outputs", expected="at least one")
    return model


def _read_small_constants(graph: onnx.GraphProto, folder: Path) -> None:
    """Brings in what may be a shape or an axis; where it cannot be read, a shape that depends on it stays open."""
    for weight in graph.initializer:
        if weight.data_location == onnx.TensorProto.EXTERNAL and math.prod(weight.dims) <= KEPT_VALUES:
            # No file, or one outside the folder, which onnx refuses to open.
            with contextlib.suppress(OSError, ValueError, onnx.checker.ValidationError):
                onnx.external_data_helper.load_external_data_for_tensor(weight, str(folder))
                weight.data_location = onnx.TensorProto.DEFAULT
                del weight.external_data[:]
    for _, _, inner in graphs_in(graph, ()):
        _read_small_constants(inner, folder)


def _texts(graph: onnx.GraphProto) -> Iterator[object]:
    """Every name; damaged ones are bytes, or raise when they are looked at."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    yield from (weight.name for weight in graph.initializer)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (part.name for part in node.attribute)
    for _, _, inner in graphs_in(graph, ()):
        yield from _texts(inner)
