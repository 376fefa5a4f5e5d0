"""Sizes that are free, batches, and names that tell image processing from network."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import TensorProto

from export.cost.counting import cost_of, macs_per_row, parameters_of, preprocess_macs_per_row
from orchestrator.errors import ExportError
from tests.export.cost.graphs import model, node, value, weight, with_preprocess


def test_image_processing_in_the_graph_is_counted_apart() -> None:
    graph = with_preprocess()
    assert macs_per_row(graph) == 2 * 4 * 27
    assert preprocess_macs_per_row(graph) == 3 * (4 * 8 * 8 + 4 * 8 * 4)
    assert parameters_of(graph) == 2 * 27


@pytest.mark.parametrize(
    ("name", "is_network"),
    [
        ("preprocess/resize", False),
        ("member/b0/preprocess/resize", False),
        ("member/b0/stem", True),
        ("model/preprocess/stem", True),
        ("preprocessed", True),
    ],
)
def test_names_tell_image_processing_from_network(name: str, is_network: bool) -> None:
    counted = cost_of(model([node("MatMul", ["x", "w"], ["y"], name=name)], {"x": [1, 4]}, [weight("w", 4, 5)]))
    assert (counted.macs_per_row, counted.preprocess_macs_per_row) == ((20, 0) if is_network else (0, 20))


@pytest.mark.parametrize("batch", [1, 5, "n", None])
def test_a_free_or_a_fixed_batch_gives_the_same_cost_per_row(batch: Any) -> None:
    graph = model([node("MatMul", ["x", "w"], ["y"])], {"x": [batch, 4]}, [weight("w", 4, 6)])
    assert macs_per_row(graph) == 24
    assert cost_of(graph).rows == (batch if isinstance(batch, int) else 1)


def test_a_first_axis_that_the_answer_lacks_is_no_batch() -> None:
    nodes = [node("Flatten", ["x"], ["f"], axis=0), node("MatMul", ["f", "w"], ["y"])]
    graph = model(nodes, {"x": [3, 4, 4]}, [weight("w", 48, 5)])
    assert (macs_per_row(graph), cost_of(graph).rows) == (240, 1)


def test_free_sizes_are_asked_for_and_can_be_given() -> None:
    graph = model([node("Conv", ["x", "w"], ["y"])], {"x": ["n", 3, "h", "w_px"]}, [weight("w", 2, 3, 3, 3)])
    with pytest.raises(ExportError, match=r"input x: got sizes that are not fixed: h, w_px, .* `shapes` x="):
        macs_per_row(graph)
    assert cost_of(graph, {"x": [2, 3, 5, 5]}).macs_per_row == 9 * 2 * 27
    assert cost_of(graph, {"x": [2, 3, 5, 5]}).rows == 2
    with pytest.raises(ExportError, match="`shapes`: got input z, expected one of x"):
        cost_of(graph, {"z": [1]})


@pytest.mark.parametrize("shape", [[1, "length", 4], [1, 3, "side", "side"], ["n", "length", 4], [3, "h", "w"]])
def test_a_free_axis_that_is_no_batch_is_not_taken_for_one(shape: list[Any]) -> None:
    graph = model([node("MatMul", ["x", "w"], ["y"])], {"x": shape}, [weight("w", 4, 5)])
    with pytest.raises(ExportError, match="input x: got sizes that are not fixed"):
        macs_per_row(graph)


def test_a_shape_that_cannot_be_inferred_is_refused_unless_the_model_says_it() -> None:
    graph = model(
        [
            node("Reshape", ["x", "sizes"], ["r"], name="reshape"),
            node("MatMul", ["r", "w"], ["y"], name="product"),
        ],
        {"x": ["n", 8]},
        [weight("w", 4, 5)],
    )
    graph.graph.input.append(value("sizes", [3], TensorProto.INT64))
    with pytest.raises(ExportError, match="cost of product: got tensor y without a fixed shape"):
        macs_per_row(graph)
    graph.graph.value_info.append(value("r", ["n", 2, 4]))
    assert macs_per_row(graph) == 2 * 4 * 5


def test_counting_leaves_the_model_as_it_was() -> None:
    graph = with_preprocess()
    before = graph.SerializeToString(deterministic=True)
    cost_of(graph)
    parameters_of(graph)
    assert graph.SerializeToString(deterministic=True) == before
