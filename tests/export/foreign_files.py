"""ONNX files with whatever stands in them, on their way to a member."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from export.member import export_committee, member_exports
from export.sources import ExportOptions
from orchestrator.errors import CommitteeError
from orchestrator.spec import Manifest, manifest_from_path
from tests.export.onnx_graphs import FLOAT, array, node, value
from tests.export.small_networks import answers

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(6, 4)).astype(np.float32)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
BY_HAND = ExportOptions(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), resolution_px=12)
ROWS = RNG.normal(size=(7, 6)).astype(np.float32)
X, Y = value("x", ["n", 6]), value("y", ["n", 4])
MULTIPLY = node("MatMul", ["x", "w"], ["y"])


def file_of(
    folder: Path,
    nodes: list[onnx.NodeProto],
    ends: tuple[list[Any], list[Any]] = ([X], [Y]),
    weights: dict[str, Any] | None = None,
    *,
    opset: int = 18,
    ir: int = 10,
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> Path:
    """A file with whatever stands in it."""
    arrays = [array(one, name) for name, one in ({"w": WEIGHT} | (weights or {})).items()]
    graph = helper.make_graph(nodes, "g", *ends, initializer=arrays)
    imports = [helper.make_opsetid(*one) for one in (("", opset), ("ai.onnx.ml", 3), ("mine", 1))]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(functions))
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def exported(path: Path, asked: ExportOptions | None = None, *, image_px: int | None = None) -> Manifest:
    """The member that `python -m export member onnx:FILE` makes in the file's folder."""
    plans = member_exports([f"onnx:{path}"], asked or ExportOptions(), image_px=image_px)
    export_committee(path.parent, plans, force=True, progress=lambda _: None)
    manifest = manifest_from_path(path.parent / "m/manifest.json")
    model = onnx.load(path.parent / "m" / manifest.file)
    assert [one.name for one in (*model.graph.input, *model.graph.output)] == ["image", "logits"]
    assert manifest.opset == model.opset_import[0].version
    return manifest


def refused(path: Path, asked: ExportOptions | None = None) -> str:
    """The one line that comes instead, with nothing written."""
    with pytest.raises(CommitteeError) as caught:
        exported(path, asked)
    assert "\n" not in str(caught.value)
    assert not (path.parent / "m").exists()
    return str(caught.value)


def asked_member(path: Path, rows: np.ndarray) -> np.ndarray:
    return answers(path.parent / "m/1/model.onnx", rows)


def convolution(folder: Path, dims: list[Any] | None, *, kind: int = FLOAT, nhwc: bool = False) -> Path:
    """Four classes from pictures of any size, as (n, 4, 1, 1)."""
    nodes = [node("Cast", ["x"], ["f"], to=FLOAT)] if kind != FLOAT else []
    last = "f" if nodes else "x"
    if nhwc:
        nodes.append(node("Transpose", [last], ["t"], perm=[0, 3, 1, 2]))
        last = "t"
    nodes += [node("Conv", [last, "k"], ["c"]), node("GlobalAveragePool", ["c"], ["y"])]
    return file_of(folder, nodes, ([value("x", dims, kind)], [value("y", ["n", 4, 1, 1])]), {"k": KERNEL})
