"""Graphs that went through ONNX Runtime, its quantisation, or files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from export.cost.counting import macs_per_row, parameters_of
from export.cost.outline import graph_from_path
from orchestrator.errors import ExportError
from tests.export.cost.graphs import model, node, small_network, weight


def run_optimised(graph: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def test_what_onnx_runtime_fuses_costs_the_same(tmp_path: Path) -> None:
    graph = small_network()
    fused = run_optimised(graph, tmp_path / "fused.onnx")
    assert "FusedConv" in {part.op_type for part in fused.graph.node}
    assert macs_per_row(fused) == macs_per_row(graph) == 36 * 4 * 27 + 36 * 4 * 36 + 4 * 36 * 5
    assert parameters_of(fused) == parameters_of(graph)


class Feed:
    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._rows = iter([{"x": rng.normal(size=(2, 3, 6, 6)).astype(np.float32)} for _ in range(2)])

    def get_next(self) -> Any:
        return next(self._rows, None)


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_a_quantised_network_costs_and_weighs_what_it_did_before(form: str, tmp_path: Path) -> None:
    from onnxruntime import quantization

    graph = small_network()
    onnx.save(graph, tmp_path / "a.onnx")
    if form == "dynamic":
        quantization.quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx")
    else:
        quantization.quantize_static(
            tmp_path / "a.onnx", tmp_path / "b.onnx", Feed(), quant_format=quantization.QuantFormat[form]
        )
    quantised = onnx.load(tmp_path / "b.onnx")
    assert macs_per_row(quantised) == macs_per_row(graph)
    # The dynamic form multiplies by its scales in plain nodes, where nothing tells them from weights.
    assert parameters_of(quantised) == parameters_of(graph) + (3 if form == "dynamic" else 0)


def test_weights_in_a_missing_file_do_not_matter(tmp_path: Path) -> None:
    graph = small_network()
    onnx.save(graph, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    read = graph_from_path(tmp_path / "m.onnx")
    assert macs_per_row(read) == macs_per_row(graph)
    assert parameters_of(read) == parameters_of(graph)


@pytest.mark.parametrize("there", [True, False])
def test_a_shape_in_a_file_of_its_own_is_read_where_the_file_is_there(there: bool, tmp_path: Path) -> None:
    weights = [weight("w", 4, 5), numpy_helper.from_array(np.array([-1, 2, 4]), "sizes")]
    nodes = [node("Reshape", ["x", "sizes"], ["r"]), node("MatMul", ["r", "w"], ["y"], name="product")]
    graph = model(nodes, {"x": ["n", 8]}, weights)
    path = tmp_path / "m.onnx"
    onnx.save(graph, path, save_as_external_data=True, location="m.data", size_threshold=0)
    if there:
        assert macs_per_row(graph_from_path(path)) == 2 * 4 * 5
        return
    (tmp_path / "m.data").unlink()
    with pytest.raises(ExportError, match="cost of product: got tensor y without a fixed shape"):
        macs_per_row(graph_from_path(path))
