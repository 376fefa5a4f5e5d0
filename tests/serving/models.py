"""Tiny models and repositories for tests of the server, made in the test and never committed."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.onnx_models import model_of

BATCH = "rows"
# config.pbtxt of a model of Python code: rows of two numbers in, two scores out.
OF_TWO_NUMBERS = """
    max_batch_size: 8
    input [{ name: "x" data_type: TYPE_FP32 dims: [2] }]
    output [{ name: "logits" data_type: TYPE_FP32 dims: [2] }]
    instance_group [{ kind: KIND_CPU count: 1 }]
"""
INT64 = TensorProto.INT64


def scale_model(
    *, factor: float = 2.0, dims: Sequence[int | str] = (BATCH, 3), element: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """x -> y = factor * x, any shape; row i of y depends on row i of x alone."""
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    constant = np.array(factor, helper.tensor_dtype_to_np_dtype(element))
    return _model([node], {"x": (element, dims)}, {"y": (element, dims)}, {"factor": constant})


def two_by_two_model() -> onnx.ModelProto:
    """a, b float32 (n, 2) -> total = a + b float32 (n, 2), largest int64 (n,): the column of total's maximum."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("ArgMax", ["total"], ["largest"], axis=1, keepdims=1),
    ]
    outputs = {"total": [BATCH, 2], "largest": (INT64, [BATCH, 1])}
    return _model(nodes, {"a": [BATCH, 2], "b": [BATCH, 2]}, outputs, {})


def whole_batch_model() -> onnx.ModelProto:
    """x float32 (n, 3) -> rows int64 (n, 1): how many rows its batch had, told to every row of it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"], axis=0),
        helper.make_node("Concat", ["count", "one"], ["column"], axis=0),
        helper.make_node("Expand", ["count", "column"], ["rows"]),
    ]
    return _model(nodes, {"x": [BATCH, 3]}, {"rows": (INT64, [BATCH, 1])}, {"zero": [0], "one": [1]})


def lookup_model() -> onnx.ModelProto:
    """index int64 (n, 1) -> y float32 (n, 1): fails at run time for an index outside 0..3."""
    node = helper.make_node("Gather", ["table", "index"], ["y"], axis=0)
    table = np.array([0, 10, 20, 30], np.float32)
    return _model([node], {"index": (INT64, [BATCH, 1])}, {"y": [BATCH, 1]}, {"table": table})


def sum_model() -> onnx.ModelProto:
    """x float32 (2, 3) -> y float32 (1,): a model without a batch axis."""
    node = helper.make_node("ReduceSum", ["x"], ["flat"], keepdims=0)
    shape = helper.make_node("Reshape", ["flat", "one"], ["y"])
    return _model([node, shape], {"x": [2, 3]}, {"y": [1]}, {"one": [1]})


def text_model() -> onnx.ModelProto:
    """text string (n, 1) -> same string (n, 1)."""
    node = helper.make_node("Identity", ["text"], ["same"])
    side = (TensorProto.STRING, [BATCH, 1])
    return _model([node], {"text": side}, {"same": side}, {})


def first_row_model() -> onnx.ModelProto:
    """x float32 (n, 3) -> y float32 (1, 3), the first row: claims a batch axis that is none."""
    node = helper.make_node("Compress", ["x", "axis"], ["y"], axis=0)
    return _model([node], {"x": [BATCH, 3]}, {"y": ["anything", 3]}, {"axis": [True]})


def free_width_model() -> onnx.ModelProto:
    """x float32 (n, 3) -> y float32 (n, width), the same three numbers: the file leaves their count open."""
    nodes = [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Reshape", ["x", "shape"], ["y"])]
    return _model(nodes, {"x": [BATCH, 3]}, {"y": [BATCH, "width"]}, {})


def column_model() -> onnx.ModelProto:
    """x float32 (n, 3) -> y float32 (n,): its sums, one number per row and no second axis."""
    node = helper.make_node("ReduceSum", ["x", "last"], ["y"], keepdims=0)
    return _model([node], {"x": [BATCH, 3]}, {"y": [BATCH]}, {"last": [1]})


def scalar_model() -> onnx.ModelProto:
    """x, y float32 () -> total float32 (): no axes at all."""
    node = helper.make_node("Add", ["x", "y"], ["total"])
    return _model([node], {"x": [], "y": []}, {"total": []}, {})


def add_onnx(repository: Path, name: str, model: onnx.ModelProto, *, config: str = "", version: int = 1) -> Path:
    """Writes an ONNX model folder; config is the rest of config.pbtxt after the backend. Returns the folder."""
    folder = repository / name
    (folder / str(version)).mkdir(parents=True)
    onnx.save(model, str(folder / str(version) / "model.onnx"))
    (folder / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{dedent(config)}')
    return folder


def add_python(repository: Path, name: str, code: str, *, config: str) -> Path:
    """Writes a Python model folder; config is the rest of config.pbtxt after the backend. Returns the folder."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(dedent(code))
    (folder / "config.pbtxt").write_text(f'backend: "python"\n{dedent(config)}')
    return folder


def _model(
    nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any], constants: dict[str, Any]
) -> onnx.ModelProto:
    # The oldest pair every supported ONNX Runtime reads.
    model = model_of(nodes, inputs, outputs, constants, opset=17, ir=8)
    onnx.checker.check_model(model)
    return model
