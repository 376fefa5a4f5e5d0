"""ONNX files from elsewhere, kind by kind: exported with equal outputs, or refused for the true reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
from onnx import TensorProto, helper, version_converter

import export.member as member_module
from export.committee import export_committee, plans_of
from export.cost import macs_per_row
from export.fusing.members import Fusion, fuse
from export.opsets import MAX_OPSET
from export.precision.derive import export_precision
from export.sources import Asked
from orchestrator.errors import CommitteeError
from orchestrator.local.sessions import LocalMembers
from orchestrator.repository import check
from orchestrator.spec import Manifest, Member, manifest_from_path
from tests.export.onnx_graphs import BOOL, FLOAT, INT64, array, node, value
from tests.export.small_networks import answers
from tests.servers import running_server

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(6, 4)).astype(np.float32)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
BY_HAND = Asked(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), resolution_px=12)
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


def exported(path: Path, asked: Asked | None = None) -> Manifest:
    """The member that `python -m export member onnx:FILE` makes in the file's folder."""
    export_committee(
        path.parent, plans_of([f"onnx:{path}"], asked or Asked()), force=True, progress=lambda _: None
    )
    manifest = manifest_from_path(path.parent / "m/manifest.json")
    model = onnx.load(path.parent / "m" / manifest.file)
    assert [one.name for one in (*model.graph.input, *model.graph.output)] == ["image", "logits"]
    assert manifest.opset == model.opset_import[0].version
    return manifest


def refused(path: Path, asked: Asked | None = None) -> str:
    """The one line that comes instead, with nothing written."""
    with pytest.raises(CommitteeError) as caught:
        exported(path, asked)
    assert "\n" not in str(caught.value)
    assert not (path.parent / "m").exists()
    return str(caught.value)


def asked_member(path: Path, rows: np.ndarray) -> np.ndarray:
    return answers(path.parent / "m/1/model.onnx", rows)


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
    assert "--keep-opset: Triton 26.02, 26.03" in text
    assert exported(path, Asked(keep_opset=True)).opset == 24


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


def convolution(folder: Path, dims: list[Any] | None, *, kind: int = FLOAT, nhwc: bool = False) -> Path:
    """Four classes from pictures of any size, as (n, 4, 1, 1)."""
    nodes = [node("Cast", ["x"], ["f"], to=FLOAT)] if kind != FLOAT else []
    last = "f" if nodes else "x"
    if nhwc:
        nodes.append(node("Transpose", [last], ["t"], perm=[0, 3, 1, 2]))
        last = "t"
    nodes += [node("Conv", [last, "k"], ["c"]), node("GlobalAveragePool", ["c"], ["y"])]
    return file_of(folder, nodes, ([value("x", dims, kind)], [value("y", ["n", 4, 1, 1])]), {"k": KERNEL})


@pytest.mark.parametrize(
    ("dims", "asked", "becomes"),
    [
        (["n", 3, "h", "w"], Asked(resolution_px=12), (3, 12, 12)),
        (["n", 3, "h", None], Asked(resolution_px=12), (3, 12, 12)),
        (["n", "c", "h", "w"], Asked(dims=(3, 12, 14)), (3, 12, 14)),
        (["n", "c", "h", "w"], BY_HAND, (3, 12, 12)),
        ([-1, 3, -1, -1], BY_HAND, (3, 12, 12)),
        (None, Asked(dims=(3, 12, 12)), (3, 12, 12)),
    ],
)
def test_free_sizes_are_taken_from_the_options(tmp_path: Path, dims: Any, asked: Asked, becomes: Any) -> None:
    path = convolution(tmp_path, dims)
    manifest = exported(path, asked)
    assert manifest.input.dims == becomes
    assert manifest.output.dims == (4,)
    if asked.mean is None:
        rows = RNG.normal(size=(3, *becomes)).astype(np.float32)
        np.testing.assert_allclose(asked_member(path, rows), answers(path, rows)[:, :, 0, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("dims", "asked", "says"),
    [
        (
            ["n", 3, "h", "w"],
            Asked(),
            "got dims [3, free, free] after the batch axis, expected fixed sizes; give --r",
        ),
        (
            ["n", "c", 12, 12],
            Asked(),
            "got dims [free, 12, 12] after the batch axis, expected fixed sizes; give --d",
        ),
        (
            ["n", 3, 12, 12],
            Asked(resolution_px=16),
            "--resolution: got [16, 16], expected what the file takes, [3, 12",
        ),
        (
            ["n", 3, "h", "w"],
            Asked(dims=(1, 12, 12)),
            "--dims: got [1, 12, 12], expected what the file takes, [3, fr",
        ),
        (None, Asked(resolution_px=12), "got no shape"),
        ([1, 3, 12, 12], BY_HAND, "a batch axis fixed at 1"),
        (
            ["n", 3, 12, 12],
            dataclasses.replace(BY_HAND, mean=(0.5,), std=(0.2,)),
            "got 1 means, expected one per c",
        ),
    ],
)
def test_sizes_that_are_missing_or_contradict_are_named(
    tmp_path: Path, dims: Any, asked: Asked, says: str
) -> None:
    assert says in refused(convolution(tmp_path, dims), asked)


@pytest.mark.parametrize("sides", [[12, 12], ["h", "w"]])
def test_channels_last_are_transposed_behind_an_image_processing_and_kept_without(
    tmp_path: Path, sides: list[Any]
) -> None:
    path = convolution(tmp_path, ["n", *sides, 3], nhwc=True)
    manifest = exported(path, BY_HAND)
    assert (manifest.input.dtype, manifest.input.dims) == ("UINT8", (3, 12, 12))
    assert (
        "channels first made channels last, as the file takes [12, 12, 3] (NHWC)" in manifest.original["changes"]
    )
    last = asked_member(path, np.arange(2 * 3 * 144, dtype=np.uint8).reshape(2, 3, 12, 12))
    assert exported(path, Asked(resolution_px=12)).input.dims == (12, 12, 3)
    exported(convolution(tmp_path, ["n", 3, *sides]), BY_HAND)
    first = asked_member(path, np.arange(2 * 3 * 144, dtype=np.uint8).reshape(2, 3, 12, 12))
    np.testing.assert_allclose(last, first, atol=1e-5)


def test_bytes_are_not_normalised_twice_and_half_floats_are_cast(tmp_path: Path) -> None:
    text = refused(convolution(tmp_path, ["n", 3, 12, 12], kind=TensorProto.UINT8), BY_HAND)
    assert "got UINT8 [3, 12, 12], expected FP32" in text
    assert "leave them out" in text
    manifest = exported(convolution(tmp_path, ["n", 3, 12, 12], kind=TensorProto.FLOAT16), BY_HAND)
    assert "input cast from FP32 to FP16" in manifest.original["changes"]


def classifier(folder: Path) -> Path:
    """What skl2onnx makes of a linear model: a label, and a map of probabilities per row."""
    words = ["cat", "dog", "fox"]
    scores = {"coefficients": RNG.normal(size=18).tolist(), "intercepts": [0.0] * 3, "post_transform": "SOFTMAX"}
    nodes = [
        node("LinearClassifier", ["x"], ["label", "s"], domain="ai.onnx.ml", classlabels_strings=words, **scores),
        node("ZipMap", ["s"], ["probs"], domain="ai.onnx.ml", classlabels_strings=words),
    ]
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, []))
    maps = helper.make_value_info("probs", helper.make_sequence_type_proto(kind))
    return file_of(folder, nodes, ([X], [value("label", ["n"], TensorProto.STRING), maps]))


def test_maps_are_taken_as_the_tensor_they_are_made_of_with_its_class_names(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    text = refused(path)
    assert "got outputs label (STRING [n]), probs (a sequence of maps), expected one" in text
    assert "most likely --output-name probs" in text
    assert "got STRING, expected scores" in refused(path, Asked(output_name="label"))
    manifest = exported(path, Asked(output_name="probs", output_kind="probabilities"))
    assert manifest.labels == ("cat", "dog", "fox")
    assert manifest.original["opsets"] == {"ai.onnx.ml": 3}
    expected = [list(row.values()) for row in answers(path, ROWS, "probs")]
    np.testing.assert_allclose(asked_member(path, ROWS), expected, atol=1e-6)
    assert manifest.macs == 18


def test_a_tensor_inside_can_be_named_and_what_it_does_not_need_is_left_out(tmp_path: Path) -> None:
    nodes = [
        MULTIPLY,
        node("SequenceConstruct", ["y"], ["s"]),
        node("MatMul", ["x", "v"], ["other"]),
        node("ArgMax", ["other"], ["label"], axis=1),
    ]
    several = helper.make_value_info(
        "s", helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    )
    path = file_of(
        tmp_path, nodes, ([X], [several, value("label", None, INT64)]), {"v": np.ones((6, 9), np.float32)}
    )
    assert "got a sequence of tensors, expected scores" in refused(path, Asked(output_name="s"))
    assert "got INT64, expected scores" in refused(path, Asked(output_name="label"))
    assert "got w, expected s or label" in refused(path, Asked(output_name="w"))
    manifest = exported(path, Asked(output_name="y"))
    assert (manifest.macs, manifest.parameters) == (24, 24)
    np.testing.assert_allclose(asked_member(path, ROWS), ROWS @ WEIGHT, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "outputs", "says"),
    [
        ([node("ReduceMax", ["x", "one"], ["y"], keepdims=0)], value("y", ["n"]), "output y: got 1 axes, [n]"),
        ([node("Unsqueeze", ["x", "one"], ["u"]), node("Concat", ["u", "u"], ["y"], axis=1)],
         value("y", ["n", 2, 6]), "output y: got 3 axes, [n, 2, 6]"),
        ([MULTIPLY], value("w", [6, 4]), "output w: got shape [6, 4] for 8 rows"),
        ([node("RandomNormalLike", ["x"], ["y"])], value("y", ["n", 6]), "other scores each time it is asked"),
        ([node("CumSum", ["x", "zero"], ["y"])], value("y", ["n", 6]), "other scores for a row alone than in a"),
        ([node("Custom", ["x"], ["y"], domain="mine")], Y, "mine:Custom(-1) is not a registered function/op"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_scores_is_refused_for_its_own_reason(
    tmp_path: Path, nodes: list[Any], outputs: Any, says: str
) -> None:
    weights = {"one": np.array([1]), "zero": np.array(0)}
    assert says in refused(file_of(tmp_path, nodes, ([X], [outputs]), weights))


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
    assert exported(path, Asked(output_name="x")).output.dims == (6,)
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
    seen = exported(convolution(tmp_path, ["n", 3, 24, 24]), dataclasses.replace(BY_HAND, resolution_px=24))
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
    assert "give the multiply-accumulates of one row with --macs" in text
    manifest = exported(path, Asked(macs=60))
    assert (manifest.macs, manifest.macs_counter) == (60, "given with --macs")
    assert manifest.original["opsets"]["com.microsoft"] == 1


def test_a_linear_model_with_a_kernel_costs_its_support_vectors(tmp_path: Path) -> None:
    kernel = {"kernel_type": "RBF", "kernel_params": [0.1, 0.0, 3.0], "support_vectors": [0.5] * 12}
    more = {"coefficients": [1.0, -1.0], "rho": [0.1], "vectors_per_class": [1, 1], "classlabels_ints": [0, 1]}
    path = file_of(tmp_path, [node("SVMClassifier", ["x"], ["l", "p"], domain="ai.onnx.ml", **kernel, **more)],
                   ([X], [value("p", ["n", 2])]))  # fmt: skip
    assert macs_per_row(onnx.load(path)) == 12


def inner_member(folder: Path, name: str, network: list[onnx.NodeProto], **weights: Any) -> Path:
    (folder / name).mkdir()
    path = file_of(folder / name, network, weights=weights, opset=17, ir=8)
    plans = plans_of([f"onnx:{path}"], Asked(), name=name)
    export_committee(folder / "r", plans, force=False, progress=lambda _: None)
    return path


def test_large_weights_of_a_branch_lie_beside_the_model_too(tmp_path: Path) -> None:
    heavy = branch("a", "Relu")
    heavy.initializer.append(array(np.ones((6, 300), np.float32), "big"))
    heavy.node.extend([node("MatMul", ["x", "big"], ["wide"]), node("ReduceSum", ["wide", "one"], ["sum"])])
    heavy.node.append(node("Mul", ["sum", "a2"], ["a3"]))
    heavy.output[0].name = "a3"
    path = file_of(
        tmp_path, choosing(heavy, branch("b")), weights={"c": np.array(True), "one": np.array([1])}, opset=18
    )
    plan = dataclasses.replace(plans_of([f"onnx:{path}"], Asked())[0], external_over_bytes=5000)
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
    (tmp_path / "deep").mkdir()
    deep = file_of(tmp_path / "deep", reshaped, ([X], [value("z", None)]), {"axes": np.array([2, 3])})
    export_committee(tmp_path / "r", plans_of([f"onnx:{deep}"], Asked(), name="deep"), force=False,
                     progress=lambda _: None)  # fmt: skip
    paths["deep"] = deep
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
