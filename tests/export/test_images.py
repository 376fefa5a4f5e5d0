"""The image processing in the graph against Pillow and transformers' own processors; rows to compare on."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.images import (
    FILTERS,
    PREFIX,
    Processing,
    preprocess_only,
    processing_from_config,
    resize_matrix,
    with_preprocess,
)
from export.parity import (
    MAX_LEVELS,
    in_the_same_order,
    pillow_processed,
    processor_of,
    rows_from_path,
    varied_rows,
)
from export.sources import LoadedModel
from orchestrator.errors import DataError, ExportError
from orchestrator.spec import TensorSpec
from tests.onnx_models import model_of

SIZES = st.integers(min_value=8, max_value=90)


def images(n: int, height: int, width: int, *, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)


def levels_apart(processing: Processing, rows: np.ndarray) -> np.ndarray:
    """Differences from Pillow in levels, with the two passes in the order this Pillow takes at this size."""
    loaded = LoadedModel(dims=(1,), processing=processing)
    processing = in_the_same_order(loaded, rows).processing
    assert processing is not None
    got = processor_of(processing, height_px=rows.shape[2], width_px=rows.shape[3])(rows)
    want = pillow_processed(processing, rows)
    assert got.shape == want.shape
    return np.abs(got - want) * np.array(processing.std).reshape(1, -1, 1, 1) / processing.scale


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from(sorted(FILTERS.values())), st.integers(0, 2**31))
def test_any_resize_is_pillows_to_a_level_or_two(
    height: int, width: int, to_height: int, to_width: int, name: str, seed: int
) -> None:
    processing = Processing(resize_px=(to_height, to_width), filter=name)
    apart = levels_apart(processing, images(2, height, width, seed=seed))
    assert apart.max() <= MAX_LEVELS
    # Small images of a rational ratio are where most values lie half-way between two levels.
    assert (apart > 0.01).mean() <= 0.35


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(0, 2**31))
def test_shorter_side_and_crop_are_what_pillow_and_a_slice_give(
    short: int, crop: int, width: int, seed: int
) -> None:
    processing = Processing(shortest_px=short, crop_px=(crop, crop), filter="bicubic", mean=(0.4, 0.5, 0.6))
    apart = levels_apart(processing, images(1, 40, width, seed=seed))
    assert apart.max() <= MAX_LEVELS


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(sorted(FILTERS.values())))
def test_every_output_is_a_mean_of_inputs(size_in: int, size_out: int, name: str) -> None:
    matrix = resize_matrix(size_in, size_out, name)
    assert matrix.shape == (size_out, size_in)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)


def test_a_resize_to_the_same_size_changes_no_pixel() -> None:
    rows = images(3, 20, 24)
    plain = Processing(resize_px=(20, 24), scale=1.0)
    np.testing.assert_array_equal(processor_of(plain, height_px=20, width_px=24)(rows), rows.astype(np.float32))


def test_blocks_of_a_long_axis_say_what_one_matrix_says() -> None:
    rows = images(2, 300, 200)
    processing = Processing(resize_px=(140, 90), filter="lanczos")
    model = preprocess_only(processing, height_px=300, width_px=200)
    assert sum(node.op_type == "MatMul" for node in model.graph.node) > 2
    assert levels_apart(processing, rows).max() <= MAX_LEVELS


@pytest.mark.parametrize(
    ("name", "settings_"),
    [
        ("ViTImageProcessorPil", {"size": {"height": 48, "width": 48}}),
        ("EfficientNetImageProcessorPil", {"size": {"height": 50, "width": 50}, "resample": 0}),
        ("EfficientNetImageProcessorPil", {"size": {"height": 50, "width": 50}, "include_top": False}),
        ("EfficientNetImageProcessorPil", {"size": {"height": 50, "width": 50}, "rescale_offset": True,
                                           "rescale_factor": 1 / 127.5, "do_normalize": False}),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 40}}),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}}),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_pct": 0.9}),
        ("MobileNetV2ImageProcessorPil", {"size": {"shortest_edge": 50}, "crop_size": {"height": 44, "width": 4}}),
        ("BitImageProcessorPil", {"size": {"shortest_edge": 30}, "crop_size": {"height": 41, "width": 37}}),
        ("MobileViTImageProcessorPil", {"size": {"shortest_edge": 50}, "crop_size": {"height": 44, "width": 44}}),
        ("DeiTImageProcessorPil", {"size": {"height": 50, "width": 50}, "crop_size": {"height": 44, "width": 44}}),
    ],
)  # fmt: skip
def test_it_is_transformers_own_processing_read_from_its_settings(name: str, settings_: dict) -> None:
    transformers = pytest.importorskip("transformers")
    from export.sources.hf import _own_processor

    config = getattr(transformers, name)(**settings_).to_dict()
    rows = images(2, 64, 56)
    own, _ = _own_processor(config)
    loaded = LoadedModel(dims=(1,), processing=processing_from_config(config, "test"), own_processor=own)
    processing = in_the_same_order(loaded, rows).processing
    got = processor_of(processing, height_px=64, width_px=56)(rows)
    want = own(rows)
    assert got.shape == want.shape
    level = np.array(processing.std).reshape(1, -1, 1, 1) / processing.scale
    assert (np.abs(got - want) * level).max() <= MAX_LEVELS


@pytest.mark.parametrize(
    "config",
    [
        {"do_pad": True},
        {"size": {"longest_edge": 300, "shortest_edge": 200}},
        {"size": {"height": 10}},
        {"size": {"height": 10, "width": 10}, "resample": 99},
        {"size": {"height": 10, "width": 10}, "image_mean": [0.5, 0.5]},
        {"size": "large"},
        {"do_center_crop": True},
        {},
    ],
)
def test_settings_that_the_graph_cannot_follow_are_refused_in_one_line(config: dict) -> None:
    with pytest.raises(ExportError, match="by hand") as caught:
        processing_from_config(config, "hf:x preprocessor_config.json")
    assert "\n" not in str(caught.value)


def test_another_resolution_keeps_the_share_that_the_crop_keeps() -> None:
    cropped = Processing(shortest_px=256, crop_px=(224, 224)).at(112)
    assert (cropped.shortest_px, cropped.crop_px) == (128, (112, 112))
    assert Processing(resize_px=(224, 224)).at(112).resize_px == (112, 112)
    with pytest.raises(ExportError, match="`resolution_px`"):
        Processing().at(112)


def network(height: int, width: int) -> onnx.ModelProto:
    """A network that gives the mean of each channel."""
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
             helper.make_node("Flatten", ["pooled"], ["logits"])]  # fmt: skip
    return model_of(nodes, {"image": ["batch", 3, height, width]}, {"logits": ["batch", 3]})


def test_a_network_behind_it_takes_bytes_and_every_node_is_told_apart() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    processing = Processing(resize_px=(32, 24), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    whole = with_preprocess(network(32, 24), processing, height_px=50, width_px=40)
    entry = whole.graph.input[0].type.tensor_type
    assert entry.elem_type == TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in entry.shape.dim] == ["batch", 3, 50, 40]
    ours = [node for node in whole.graph.node if node.name.startswith(PREFIX)]
    assert [node.op_type for node in whole.graph.node if node not in ours] == ["GlobalAveragePool", "Flatten"]
    assert all(weight.name.startswith(PREFIX) for weight in whole.graph.initializer)
    rows = images(5, 50, 40)
    got = onnxruntime.InferenceSession(whole.SerializeToString()).run(None, {"image": rows})[0]
    np.testing.assert_allclose(got, pillow_processed(processing, rows).mean(axis=(2, 3)), atol=0.01)


def test_processing_that_ends_at_another_size_than_the_network_takes_is_refused() -> None:
    with pytest.raises(ExportError, match="got 30x30 pixels, expected 32x24"):
        with_preprocess(network(32, 24), Processing(resize_px=(30, 30)), height_px=50, width_px=40)


def test_grey_and_turned_channels() -> None:
    grey = Processing(resize_px=(9, 9), channels=1, mean=(0.5,), std=(0.5,))
    assert levels_apart(grey, images(2, 20, 20, channels=1)).max() <= MAX_LEVELS
    turned = Processing(resize_px=(9, 9), mean=(0.1, 0.2, 0.3), reverse_channels=True)
    for processing in (turned, dataclasses.replace(turned, reverse_channels=False)):
        assert levels_apart(processing, images(2, 20, 20)).max() <= MAX_LEVELS


def test_rows_of_a_file_must_fit(tmp_path: Path) -> None:
    tensor = TensorSpec(name="image", dtype="UINT8", dims=(3, 4, 4))
    rows = varied_rows(tensor, 5)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", images=rows, labels=np.zeros(5))
    np.testing.assert_array_equal(rows_from_path(tmp_path / "a.npy", tensor), rows)
    np.testing.assert_array_equal(rows_from_path(tmp_path / "a.npz", tensor), rows)
    np.save(tmp_path / "b.npy", rows.astype(np.float32))
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY")
    for name, says in (("b.npy", "float32"), ("c.npy", "cannot read"), ("d.npy", "no such file")):
        with pytest.raises(DataError, match=says):
            rows_from_path(tmp_path / name, tensor)


def test_varied_rows_differ_from_each_other_and_stay_the_same_for_a_seed() -> None:
    tensor = TensorSpec(name="image", dtype="UINT8", dims=(3, 24, 24))
    rows = varied_rows(tensor, 16)
    assert len({row.tobytes() for row in rows}) == 16
    assert np.ptp(rows.mean(axis=(1, 2, 3))) > 40
    np.testing.assert_array_equal(rows, varied_rows(tensor, 16))
