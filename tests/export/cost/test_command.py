"""`python -m export cost`: graphs that went through other tools, and files that are no whole model."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from typer.testing import CliRunner

from export.__main__ import app
from export.cost.counting import cost_of, macs_per_row, parameters_of
from export.cost.shapes import graph_from_path
from orchestrator.errors import CommitteeError, ExportError
from tests.export.cost.graphs import model, node, small_network, weight, with_preprocess

REPOSITORY = Path(__file__).parents[3] / "model_repository"


def run_cost(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["cost", *arguments])


def test_the_command_lists_operators_and_the_dearest_nodes(tmp_path: Path) -> None:
    onnx.save(with_preprocess(), tmp_path / "m.onnx")
    found = json.loads(run_cost(str(tmp_path / "m.onnx"), "--json").stdout)
    assert (found["macs_per_row"], found["preprocess_macs_per_row"], found["parameters"]) == (216, 1152, 54)
    assert found["by_operator"] == [{"operator": "Conv", "nodes": 1, "macs_per_row": 216}]
    assert found["most_expensive"] == [{"name": "stem", "operator": "Conv", "macs_per_row": 216}]


def test_the_command_prints_what_the_manifest_says_and_at_most_ten_nodes() -> None:
    path = REPOSITORY / "digits_large" / "1" / "model.onnx"
    macs = json.loads((REPOSITORY / "digits_large" / "manifest.json").read_text())["macs"]
    result = run_cost(str(path))
    assert result.exit_code == 0
    assert f"{macs:,}" in result.stdout
    many = model(
        [node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"]) for i in range(12)], {"h0": [1, 4]}, outputs=["h12"]
    )
    many.graph.initializer.append(weight("w", 4, 4))
    counted = cost_of(many)
    assert len(counted.nodes) == 12


def broken_file(kind: str, folder: Path) -> Path:
    path = folder / "broken.onnx"
    if kind == "truncated":
        path.write_bytes((REPOSITORY / "digits_large" / "1" / "model.onnx").read_bytes()[:5000])
    elif kind == "text":
        path.write_text("not a model\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no outputs":
        graph = small_network()
        del graph.graph.output[:]
        path.write_bytes(graph.SerializeToString())
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "empty", "no outputs", "folder"])
def test_a_file_that_is_no_whole_model_is_one_line(kind: str, tmp_path: Path) -> None:
    result = run_cost(str(broken_file(kind, tmp_path)))
    assert isinstance(result.exception, CommitteeError)
    assert "\n" not in str(result.exception)
    assert "broken.onnx" in str(result.exception)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_counted_or_refused_but_never_crash(data: st.DataObject, tmp_path_factory: Any) -> None:
    whole = bytearray((REPOSITORY / "digits_small" / "1" / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    with contextlib.suppress(ExportError):
        read = graph_from_path(path)
        assert cost_of(read).macs_per_row >= 0
        assert parameters_of(read) >= 0


@pytest.mark.parametrize("text", ["x", "x=1,b", "x=0,3", "=1,2"])
def test_a_shape_that_is_none_is_one_line(text: str) -> None:
    result = run_cost("m.onnx", "--shape", text)
    assert isinstance(result.exception, ExportError)
    assert "--shape" in str(result.exception)


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
