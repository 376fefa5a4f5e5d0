"""Graphs of ONNX files from elsewhere: exported with equal outputs, or refused for the true reason."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
from onnx import helper, version_converter

import export.member as member_module
from export.compat import MAX_OPSET
from export.cost.counting import macs_per_row
from export.fusing import Fusion, fuse
from export.member import export_committee, member_exports
from export.precision.derive import export_precision
from export.sources import ExportOptions
from orchestrator.local import LocalMembers
from orchestrator.repository.check import check
from orchestrator.spec import Member, manifest_from_path
from orchestrator.spec.triton import EMBEDDED, releases_that_read
from tests.export.foreign_files import (
    BY_HAND,
    MULTIPLY,
    RNG,
    ROWS,
    WEIGHT,
    X,
    Y,
    asked_member,
    convolution,
    exported,
    file_of,
    refused,
)
from tests.export.onnx_graphs import BOOL, FLOAT, INT64, array, node, value
from tests.export.small_networks import answers
from tests.servers import running_server


def branch(name: str, *kinds: str, read: str = "x") -> onnx.GraphProto:
    """A branch that multiplies what it reads by the outer weight; its tensors are called name, name2 and so on."""
    names = [name, *(f"{name}{index}" for index in range(2, 2 + len(kinds)))]
    nodes = [node("MatMul", [read, "w"], names[:1])]
    nodes += [node(kind, [a], [b]) for kind, a, b in zip(kinds, names, names[1:], strict=False)]
    return helper.make_graph(nodes, "branch", [], [value(names[-1], ["n", 4])])


def choosing(one: onnx.GraphProto, other: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node("If", ["c"], ["y"], then_branch=one, else_branch=other)]


@pytest.mark.parametrize("first", [True, False])
def test_branches_may_read_the_input_and_name_their_tensors_like_ours(tmp_path: Path, first: bool) -> None:
    nodes = choosing(branch("image", "Relu"), branch("logits", "Neg", "Tanh"))
    path = file_of(tmp_path, nodes, weights={"c": np.array(first)}, opset=17, ir=8)
    assert exported(path).original["changes"] == ["opset 17 brought to 18"]
    np.testing.assert_array_equal(asked_member(path, ROWS), answers(path, ROWS))


def test_a_branch_that_reads_the_input_goes_behind_an_image_processing(tmp_path: Path) -> None:
    def pooled(name: str) -> onnx.GraphProto:
        nodes = [node("GlobalAveragePool", ["x"], [name]), node("Flatten", [name], [f"{name}2"])]
        return helper.make_graph(nodes, "b", [], [value(f"{name}2", ["n", 3])])

    ends = [value("x", ["n", 3, 12, 12])], [value("y", ["n", 3])]
    path = file_of(tmp_path, choosing(pooled("preprocess/image"), pooled("b")), ends, {"c": np.array(True)})
    exported(path, BY_HAND)
    white = np.full((1, 3, 12, 12), 255, np.uint8)
    np.testing.assert_allclose(asked_member(path, white), [[2.5, 2, 2.8]], rtol=1e-5)


def test_a_weight_of_a_branch_may_have_the_name_of_an_outer_one_of_another_type(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "c"], ["a"]), node("Relu", ["a"], ["a2"])]
    one = helper.make_graph(nodes, "one", [], [value("a2", None)], initializer=[array(2 * WEIGHT, "c")])
    path = file_of(tmp_path, choosing(one, branch("b", "Tanh")), weights={"c": np.array(True)})
    assert exported(path).macs == 24
    np.testing.assert_allclose(asked_member(path, ROWS), np.maximum(ROWS @ (2 * WEIGHT), 0), atol=1e-5)


def test_loops_and_scans_may_shadow_outer_names(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("Add", ["w", "x"], ["image"]), node("Identity", ["y"], ["on"])],
        "body",
        [value("turn", [], INT64), value("y", [], BOOL), value("w", ["n", 6])],
        [value("on", [], BOOL), value("image", ["n", 6])],
    )
    each = helper.make_graph([node("Tanh", ["x"], ["y"])], "each", [value("x", ["n"])], [value("y", ["n"])])
    axes = {"num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]}
    nodes = [
        node("Loop", ["turns", "", "x"], ["l"], body=body),
        node("Scan", ["l"], ["s"], body=each, **axes),
        node("MatMul", ["s", "w"], ["y"]),
    ]
    path = file_of(tmp_path, nodes, weights={"turns": np.array(3)})
    assert exported(path).macs == 24
    np.testing.assert_allclose(asked_member(path, ROWS), np.tanh(4 * ROWS) @ WEIGHT, rtol=1e-4, atol=1e-5)


def test_a_scale_for_the_whole_batch_is_named_with_the_way_out(tmp_path: Path) -> None:
    integers = np.random.default_rng(0).integers(-60, 60, (6, 4)).astype(np.int8)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "bytes", "zero"], ["sums"]),
        node("Cast", ["sums"], ["floats"], to=FLOAT),
        node("Mul", ["floats", "scale"], ["y"]),
    ]
    line = refused(file_of(tmp_path, nodes, weights={"bytes": integers}))
    assert "a row alone than in a batch, which DynamicQuantizeLinear scales as a whole" in line
    assert "quantise it statically" in line
    across = [node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), node("Sub", ["x", "m"], ["d"])]
    across += [node("MatMul", ["d", "w"], ["y"])]
    assert "no operator works across the batch axis" in refused(file_of(tmp_path, across, opset=13))


def test_functions_are_inlined_also_those_of_functions_and_of_another_opset(tmp_path: Path) -> None:
    def function(name: str, opset: int, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
        return helper.make_function("mine", name, ["a", "b"], ["image"], list(nodes), imports)

    inner = function("Inner", 16, node("MatMul", ["a", "b"], ["x"]), node("Tanh", ["x"], ["image"], name="t"))
    calls = [node("Inner", ["a", "b"], [name], domain="mine") for name in ("p", "q")]
    outer = function("Outer", 17, *calls, node("Add", ["p", "q"], ["image"]))
    path = file_of(
        tmp_path, [node("Outer", ["x", "w"], ["y"], domain="mine")], opset=17, ir=8, functions=(inner, outer)
    )
    manifest = exported(path)
    assert manifest.original["changes"] == ["2 local functions inlined", "opset 17 brought to 18"]
    assert manifest.macs == 48
    assert len(onnx.load(tmp_path / "m/1/model.onnx").functions) == 0
    np.testing.assert_allclose(asked_member(path, ROWS), 2 * np.tanh(ROWS @ WEIGHT), rtol=1e-4, atol=1e-6)


def gelu(folder: Path, kind: str, opset: int) -> Path:
    nodes = [node(kind, ["x"], ["g"]), node("MatMul", ["g", "w"], ["y"])]
    return file_of(folder, nodes, opset=opset, ir=10)


@pytest.mark.parametrize(
    ("kind", "opset", "becomes"),
    [("Tanh", 13, 18), ("Tanh", 23, 18), ("Gelu", 20, 20), ("Gelu", 21, 21), ("Gelu", 23, 21), ("Gelu", 26, 21)],
)
def test_an_opset_comes_to_that_of_all_members_or_stays_where_every_runtime_reads_it(
    tmp_path: Path, kind: str, opset: int, becomes: int
) -> None:
    path = gelu(tmp_path, kind, opset)
    manifest = exported(path)
    assert manifest.opset == becomes
    assert manifest.original["opsets"] == {"ai.onnx": opset}
    np.testing.assert_allclose(asked_member(path, ROWS), answers(path, ROWS), atol=1e-6)


def test_an_opset_that_old_runtimes_do_not_read_is_kept_only_on_request(tmp_path: Path) -> None:
    path = gelu(tmp_path, "Swish", 24)
    text = refused(path)
    assert f"got opset 24, which cannot be brought to {MAX_OPSET} (No Previous Version of Swish" in text
    assert "`keep_opset`: Triton 26.02, 26.03" in text
    assert exported(path, ExportOptions(keep_opset=True)).opset == 24
    assert releases_that_read(ir_version=10, opset=MAX_OPSET)[0] == EMBEDDED
    assert releases_that_read(ir_version=14, opset=28) == ()


@pytest.mark.parametrize(("opset", "ir"), [(99, 10), (18, 99)])
def test_a_file_newer_than_the_installed_runtime_says_what_that_reads(tmp_path: Path, opset: int, ir: int) -> None:
    text = refused(file_of(tmp_path, [MULTIPLY], opset=opset, ir=ir))
    assert f"got file version {ir} and opset {opset}, expected at most" in text


def test_a_conversion_that_spoils_a_branch_no_row_takes_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = version_converter.convert_version

    def spoiling(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        made = convert(model, opset)
        for attribute in made.graph.node[-1].attribute:
            for inner in attribute.g.node if attribute.name == "else_branch" else ():
                inner.op_type = "Sigmoid" if inner.op_type == "Tanh" else inner.op_type
        return made

    monkeypatch.setattr(version_converter, "convert_version", spoiling)
    nodes = choosing(branch("a", "Relu"), branch("b", "Tanh"))
    path = file_of(tmp_path, nodes, weights={"c": np.array(True)}, opset=17)
    manifest = exported(path)
    assert (manifest.opset, manifest.original["changes"]) == (17, [])


def test_files_that_only_onnx_runtime_takes_are_put_in_order(tmp_path: Path) -> None:
    nodes = [node("Relu", ["m"], ["y"]), node("MatMul", ["x", "w"], ["m"])]
    wrong = value("m", ["n", 5])
    path = file_of(tmp_path, nodes, ([X], [onnx.ValueInfoProto(name="y")]))
    model = onnx.load(path)
    model.graph.value_info.append(wrong)
    path.write_bytes(model.SerializeToString())
    exported(path)
    onnx.checker.check_model(str(tmp_path / "m/1/model.onnx"), full_check=True)
    np.testing.assert_array_equal(asked_member(path, ROWS), answers(path, ROWS))


def test_weights_that_are_inputs_too_and_an_output_that_is_the_input_do_no_harm(tmp_path: Path) -> None:
    path = file_of(tmp_path, [MULTIPLY], ([X, value("w", [6, 4])], [Y]), opset=9, ir=3)
    assert exported(path).opset == 18
    np.testing.assert_allclose(asked_member(path, ROWS), ROWS @ WEIGHT, atol=1e-5)
    path = file_of(tmp_path, [MULTIPLY], ([X], [Y, X]))
    assert exported(path, ExportOptions(output_name="x")).output.dims == (6,)
    np.testing.assert_array_equal(asked_member(path, ROWS), ROWS)


def test_sparse_weights_become_dense(tmp_path: Path) -> None:
    path = file_of(tmp_path, [node("MatMul", ["x", "s"], ["y"])])
    model = onnx.load(path)
    places = helper.make_tensor("p", INT64, [2, 2], [0, 1, 5, 3])
    values = helper.make_tensor("s", FLOAT, [2], [2.0, 3.0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [6, 4]))
    path.write_bytes(model.SerializeToString())
    assert exported(path).original["changes"] == ["1 sparse weight made dense"]
    np.testing.assert_array_equal(asked_member(path, ROWS)[:, [1, 3]], ROWS[:, [0, 5]] * np.float32([2, 3]))
    export_precision(tmp_path, "m", to="fp16")


def test_names_of_image_processing_are_the_files_own_unless_it_was_a_member(tmp_path: Path) -> None:
    names = ["logits", "preprocess/float", "image"]
    nodes = [
        node("Relu", names[:1], names[1:2], name="preprocess/float"),
        node("MatMul", [names[1], "preprocess/w"], names[2:]),
    ]
    ends = [value("logits", ["n", 6])], [value("image", ["n", 4])]
    manifest = exported(file_of(tmp_path, nodes, ends, {"preprocess/w": WEIGHT}))
    assert (manifest.macs, manifest.preprocess_macs, manifest.parameters) == (24, 0, 24)
    seen = exported(convolution(tmp_path, ["n", 3, 12, 12]), BY_HAND, image_px=30)
    assert seen.preprocess_macs > 0
    (tmp_path / "again").mkdir()
    member = tmp_path / "again/m.onnx"
    (tmp_path / "m/1/model.onnx").rename(member)
    again = exported(member)
    assert (again.macs, again.preprocess_macs) == (seen.macs, seen.preprocess_macs)
    assert again.input == seen.input


def test_a_network_too_old_for_an_image_processing_says_so(tmp_path: Path) -> None:
    nodes = [
        node("ThresholdedRelu", ["x"], ["r"], alpha=0.5),
        node("GlobalAveragePool", ["r"], ["g"]),
        node("Flatten", ["g"], ["y"]),
    ]
    ends = [value("x", ["n", 3, 12, 12])], [value("y", ["n", 3])]
    path = file_of(tmp_path, nodes, ends, opset=8, ir=4)
    assert "got a network of opset 8, expected 11 or more" in refused(path, BY_HAND)
    assert exported(path).opset == 8


def test_work_that_cannot_be_counted_is_asked_for(tmp_path: Path) -> None:
    nodes = [
        node("Gelu", ["x"], ["g"], domain="com.microsoft"),
        node("Inverse", ["q"], ["i"], domain="com.microsoft"),
    ]
    square = {"q": np.eye(6, dtype=np.float32), "w": WEIGHT}
    nodes += [node("MatMul", ["g", "i"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    path = file_of(tmp_path, nodes, weights=square)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path.write_bytes(model.SerializeToString())
    text = refused(path)
    assert "got operator com.microsoft::Inverse" in text
    assert "give the multiply-accumulates of one row with `macs`" in text
    manifest = exported(path, ExportOptions(macs=60))
    assert (manifest.macs, manifest.macs_counter) == (60, "given with --macs")
    assert manifest.original["opsets"]["com.microsoft"] == 1


def test_a_linear_model_with_a_kernel_costs_its_support_vectors(tmp_path: Path) -> None:
    kernel = {"kernel_type": "RBF", "kernel_params": [0.1, 0.0, 3.0], "support_vectors": [0.5] * 12}
    more = {"coefficients": [1.0, -1.0], "rho": [0.1], "vectors_per_class": [1, 1], "classlabels_ints": [0, 1]}
    path = file_of(tmp_path, [node("SVMClassifier", ["x"], ["l", "p"], domain="ai.onnx.ml", **kernel, **more)],
                   ([X], [value("p", ["n", 2])]))  # fmt: skip
    assert macs_per_row(onnx.load(path)) == 12


def inner_member(
    folder: Path, name: str, network: list[onnx.NodeProto], ends: Any = ([X], [Y]), **weights: Any
) -> Path:
    (folder / name).mkdir()
    path = file_of(folder / name, network, ends, weights, opset=17, ir=8)
    plans = member_exports([f"onnx:{path}"], ExportOptions(), name=name)
    export_committee(folder / "r", plans, force=False, progress=lambda _: None)
    return path


def test_large_weights_of_a_branch_lie_beside_the_model_too(tmp_path: Path) -> None:
    heavy = branch("a", "Relu")
    heavy.initializer.append(array(np.ones((6, 300), np.float32), "big"))
    heavy.node.extend([node("MatMul", ["x", "big"], ["wide"]), node("ReduceSum", ["wide", "one"], ["sum"])])
    heavy.node.append(node("Mul", ["sum", "a2"], ["a3"]))
    heavy.output[0].name = "a3"
    weights = {"c": np.array(True), "one": np.array([1])}
    path = file_of(tmp_path, choosing(heavy, branch("b")), weights=weights)
    plan = dataclasses.replace(member_exports([f"onnx:{path}"], ExportOptions())[0], external_over_bytes=5000)
    member_module.export_member(tmp_path, plan, force=False, progress=lambda _: None)
    assert len(manifest_from_path(tmp_path / "m/manifest.json").data_files) == 1
    np.testing.assert_allclose(asked_member(path, ROWS), answers(path, ROWS), rtol=1e-4)


def test_members_with_inner_graphs_are_converted_and_fused(tmp_path: Path) -> None:
    nodes = choosing(branch("image", "Relu"), branch("logits", "Neg", "Tanh"))
    inner_member(tmp_path, "choosing", nodes, c=np.array(False))
    inner_member(tmp_path, "plain", [MULTIPLY])
    np.save(tmp_path / "rows.npy", RNG.normal(size=(40, 6)).astype(np.float32))
    repository = tmp_path / "r"
    name, _ = export_precision(repository, "choosing", to="fp16", calibrate=tmp_path / "rows.npy")
    assert manifest_from_path(repository / name / "manifest.json").agreement["same_top1"] > 0.9
    members = tuple(Member(name=name, output="logits") for name in ("choosing", "plain"))
    fuse(repository, Fusion(name="both", members=members, combine="mean_logit"))
    own = LocalMembers(repository, ["choosing", "plain", "both"])
    expected = (own.ask("choosing", ROWS) + own.ask("plain", ROWS)) / 2
    np.testing.assert_allclose(own.ask("both", ROWS), expected, atol=1e-5)


@pytest.mark.triton
def test_members_from_elsewhere_are_served(tmp_path: Path) -> None:
    nodes = choosing(branch("image", "Relu"), branch("logits", "Neg", "Tanh"))
    paths = {"choosing": inner_member(tmp_path, "choosing", nodes, c=np.array(False))}
    reshaped = [MULTIPLY, node("Unsqueeze", ["y", "axes"], ["z"])]
    paths["deep"] = inner_member(tmp_path, "deep", reshaped, ([X], [value("z", None)]), axes=np.array([2, 3]))
    report = check(tmp_path / "r")
    assert report, report.faults
    with running_server(tmp_path / "r") as server:
        client = grpcclient.InferenceServerClient(server.grpc_address)
        for name, path in paths.items():
            tensor = grpcclient.InferInput("image", list(ROWS.shape), "FP32")
            tensor.set_data_from_numpy(ROWS)
            served = client.infer(name, [tensor]).as_numpy("logits")
            np.testing.assert_allclose(served, answers(path, ROWS).reshape(7, 4), atol=1e-6)
        client.close()
