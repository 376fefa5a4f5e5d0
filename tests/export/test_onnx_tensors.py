"""What ONNX files from elsewhere take and give: sizes, layouts, types, and which output holds the scores."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from export.sources import ExportOptions
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
from tests.export.onnx_graphs import FLOAT, INT64, node, value
from tests.export.small_networks import answers


@pytest.mark.parametrize(
    ("dims", "asked", "becomes"),
    [
        (["n", 3, "h", "w"], ExportOptions(resolution_px=12), (3, 12, 12)),
        (["n", 3, "h", None], ExportOptions(resolution_px=12), (3, 12, 12)),
        (["n", "c", "h", "w"], ExportOptions(dims=(3, 12, 14)), (3, 12, 14)),
        (["n", "c", "h", "w"], BY_HAND, (3, 12, 12)),
        ([-1, 3, -1, -1], BY_HAND, (3, 12, 12)),
        (None, ExportOptions(dims=(3, 12, 12)), (3, 12, 12)),
    ],
)
def test_free_sizes_are_taken_from_the_options(
    tmp_path: Path, dims: Any, asked: ExportOptions, becomes: Any
) -> None:
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
        (["n", 3, "h", "w"], ExportOptions(),
         "got dims [3, free, free] after the batch axis, expected fixed sizes; give `resolution_px`"),
        (["n", "c", 12, 12], ExportOptions(),
         "got dims [free, 12, 12] after the batch axis, expected fixed sizes; give `dims`"),
        (["n", 3, 12, 12], ExportOptions(resolution_px=16),
         "`resolution_px`: got [16, 16], expected what the file takes, [3, 12"),
        (["n", 3, "h", "w"], ExportOptions(dims=(1, 12, 12)),
         "`dims`: got [1, 12, 12], expected what the file takes, [3, fr"),
        (None, ExportOptions(resolution_px=12), "got no shape"),
        ([1, 3, 12, 12], BY_HAND, "a batch axis fixed at 1"),
        (["n", 3, 12, 12], dataclasses.replace(BY_HAND, mean=(0.5,), std=(0.2,)), "got 1 means, expected one"),
    ],
)  # fmt: skip
def test_sizes_that_are_missing_or_contradict_are_named(
    tmp_path: Path, dims: Any, asked: ExportOptions, says: str
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
    as_it_is = exported(path, ExportOptions(resolution_px=12))
    assert as_it_is.input.dims == (12, 12, 3)
    assert "takes [12, 12, 3] as the file does, channels last (NHWC)" in as_it_is.original["changes"]
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
    assert "most likely `output_name` probs" in text
    assert "got STRING, expected scores" in refused(path, ExportOptions(output_name="label"))
    manifest = exported(path, ExportOptions(output_name="probs", output_kind="probabilities"))
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
    tensors = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    ends = [X], [helper.make_value_info("s", tensors), value("label", None, INT64)]
    path = file_of(tmp_path, nodes, ends, {"v": np.ones((6, 9), np.float32)})
    assert "got a sequence of tensors, expected scores" in refused(path, ExportOptions(output_name="s"))
    assert "got INT64, expected scores" in refused(path, ExportOptions(output_name="label"))
    assert "got w, expected s or label" in refused(path, ExportOptions(output_name="w"))
    manifest = exported(path, ExportOptions(output_name="y"))
    assert (manifest.macs, manifest.parameters) == (24, 24)
    np.testing.assert_allclose(asked_member(path, ROWS), ROWS @ WEIGHT, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "outputs", "says"),
    [
        ([node("ReduceMax", ["x", "one"], ["y"], keepdims=0)], value("y", ["n"]), "output y: got 1 axes, [n]"),
        ([node("Unsqueeze", ["x", "one"], ["u"]), node("Concat", ["u", "u"], ["y"], axis=1)],
         value("y", ["n", 2, 6]), "output y: got 3 axes, [n, 2, 6]"),
        ([MULTIPLY], value("w", [6, 4]), "output w: got shape [6, 4] for 4 rows"),
        ([node("RandomNormalLike", ["x"], ["y"])], value("y", ["n", 6]), "other scores each time it is asked"),
        ([node("CumSum", ["x", "zero"], ["y"])], value("y", ["n", 6]), "other scores for a row alone than in a"),
        ([node("Reshape", ["x", "shape"], ["y"])], value("y", ["n", 6]), "the original: got"),
        ([node("Custom", ["x"], ["y"], domain="mine")], Y, "mine:Custom(-1) is not a registered function/op"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_scores_is_refused_for_its_own_reason(
    tmp_path: Path, nodes: list[Any], outputs: Any, says: str
) -> None:
    weights = {"one": np.array([1]), "zero": np.array(0), "shape": np.array([1, 6])}
    assert says in refused(file_of(tmp_path, nodes, ([X], [outputs]), weights))
