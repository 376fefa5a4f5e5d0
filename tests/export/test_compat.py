"""AveragePool with ceil_mode: what is rewritten says the same, and says it in old runtimes too."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from export.compat import portable
from export.runtimes import Question, answers_in_own_process, runtime_folder
from orchestrator.errors import ExportError
from orchestrator.spec.triton import image_runtimes
from tests.export.small_networks import answers
from tests.onnx_models import array, model_of


def pooled(side: int, kernel: int, stride: int, pad: int, *, counts_padding: bool) -> onnx.ModelProto:
    """One AveragePool over (n, 2, side, side) with ceil_mode."""
    pool = helper.make_node(
        "AveragePool", ["x"], ["y"], kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4,
        ceil_mode=1, count_include_pad=int(counts_padding),
    )  # fmt: skip
    return model_of([pool], {"x": ["n", 2, side, side]}, {"y": ["n", 2, "h", "w"]})


@given(
    side=st.integers(1, 9), kernel=st.integers(1, 12), stride=st.integers(1, 12), pad=st.integers(0, 2),
    counts_padding=st.booleans(),
)  # fmt: skip
def test_the_rewritten_pool_says_what_pytorch_says(
    side: int, kernel: int, stride: int, pad: int, counts_padding: bool
) -> None:
    rows = np.random.default_rng(side).normal(size=(3, 2, side, side)).astype(np.float32)
    try:
        layer = torch.nn.AvgPool2d(kernel, stride, pad, ceil_mode=True, count_include_pad=counts_padding)
        expected = layer(torch.from_numpy(rows)).numpy()
    except RuntimeError:  # no such pooling: the padding is too wide, or nothing is left
        return
    made = portable(pooled(side, kernel, stride, pad, counts_padding=counts_padding))
    assert np.allclose(answers(made, rows), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "pad", "becomes"),
    [
        (7, 1280, 1280, 0, "GlobalAveragePool"),
        (7, 7, 1, 0, "GlobalAveragePool"),
        (8, 2, 2, 0, "AveragePool without ceil_mode"),
        (7, 2, 2, 0, "AveragePool without count_include_pad"),
        (7, 10, 10, 1, "AveragePool"),
    ],
)
def test_only_windows_that_cover_the_map_or_fit_into_it_are_rewritten(
    side: int, kernel: int, stride: int, pad: int, becomes: str
) -> None:
    model = pooled(side, kernel, stride, pad, counts_padding=True)
    before = model.SerializeToString()
    (node,) = portable(model).graph.node
    left = {part.name for part in node.attribute}
    gone = [name for name in ("ceil_mode", "count_include_pad") if left and name not in left]
    assert " without ".join([node.op_type, *gone]) == becomes
    assert model.SerializeToString() == before


def test_of_a_map_of_unknown_size_only_the_padding_that_is_not_there_is_dropped() -> None:
    models = [pooled(7, 1280, 1280, pad, counts_padding=True) for pad in (0, 1)]
    for model in models:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    without, padded = (portable(model) for model in models)
    kept = {part.name for part in without.graph.node[0].attribute}
    assert "ceil_mode" in kept
    assert "count_include_pad" not in kept
    assert padded == models[1]


def test_a_pool_inside_a_branch_loses_the_padding_that_is_not_there() -> None:
    for pad, kept in ((0, False), (1, True)):
        model = pooled(7, 3, 3, pad, counts_padding=True)
        (pool,) = model.graph.node
        turn = helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2])
        inner = helper.make_graph([turn, pool], "branch", [], model.graph.output)
        node = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
        del model.graph.node[:]
        model.graph.node.append(node)
        model.graph.initializer.append(array(True, "yes"))
        rows = np.random.default_rng(0).normal(size=(3, 2, 7, 7)).astype(np.float32)
        made = portable(model)
        branches = [part.g for part in made.graph.node[0].attribute]
        found = [{part.name for part in one.node[1].attribute} >= {"count_include_pad"} for one in branches]
        assert found == [kept] * 2
        assert np.allclose(answers(made, rows), answers(model, rows), atol=1e-6)


@pytest.mark.parametrize(("kernel", "stride"), [(1280, 1280), (2, 2), (3, 3)])
def test_the_oldest_runtime_is_wrong_about_the_pool_and_right_about_what_it_becomes(
    tmp_path: Path, kernel: int, stride: int
) -> None:
    try:
        folder = runtime_folder(image_runtimes()[0])
    except ExportError as error:
        pytest.skip(str(error))
    rows = np.random.default_rng(0).normal(size=(4, 2, 7, 7)).astype(np.float32)
    model = pooled(7, kernel, stride, 0, counts_padding=True)
    (tmp_path / "as_it_is.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "rewritten.onnx").write_bytes(portable(model).SerializeToString())
    questions = [
        Question(model=tmp_path / f"{name}.onnx", rows=rows, batches={4: 4}) for name in ("as_it_is", "rewritten")
    ]
    old, new = answers_in_own_process(questions, folder=folder)
    expected = torch.nn.AvgPool2d(kernel, stride, ceil_mode=True)(torch.from_numpy(rows)).numpy()
    assert not isinstance(old, str)
    assert not isinstance(new, str)
    assert np.abs(old[4] - expected).max() > 0.01
    assert np.allclose(new[4], expected, atol=1e-6)
