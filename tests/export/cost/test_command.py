"""`python -m export cost`, and files that are no whole model."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from export.__main__ import app
from export.cost.counting import cost_of, parameters_of
from export.cost.outline import graph_from_path
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
