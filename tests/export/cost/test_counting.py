"""What branches, loops, scans and functions cost; sizes that are free, and batches."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.cost.counting import cost_of, macs_per_row, parameters_of, preprocess_macs_per_row
from orchestrator.errors import ExportError
from tests.export.cost.graphs import model, node, value, weight, with_preprocess


def branch(name: str, width: int) -> onnx.GraphProto:
    return helper.make_graph(
        [node("MatMul", ["x", f"{name}w"], [f"{name}h"]), node("Relu", [f"{name}h"], [f"{name}y"])],
        name,
        [],
        [value(f"{name}y", None)],
        [weight(f"{name}w", 4, width)],
    )


def test_an_if_costs_its_larger_branch_and_says_so() -> None:
    either = node("If", ["c"], ["y"], then_branch=branch("t", 3), else_branch=branch("e", 5))
    counted = cost_of(model([either], {"x": ["n", 4]}, [numpy_helper.from_array(np.array(True), "c")]))
    assert counted.macs_per_row == 20
    assert any("upper bound" in note for note in counted.notes)
    assert counted.parameters == 12 + 20
    same = node("If", ["c"], ["y"], then_branch=branch("t", 3), else_branch=branch("e", 3))
    assert not cost_of(model([same], {"x": ["n", 4]}, [numpy_helper.from_array(np.array(True), "c")])).notes


def looping(*, early: bool = False, work: str = "MatMul") -> Any:
    ends = node("Greater", ["i", "limit"], ["go2"]) if early else node("Identity", ["go"], ["go2"])
    body = helper.make_graph(
        [node(work, ["h", "w"], ["h2"]), ends],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("h", None)],
        [value("go2", None, TensorProto.BOOL), value("h2", None)],
        [numpy_helper.from_array(np.array(3), "limit")],
    )
    return node("Loop", ["trips", "", "x"], ["z"], body=body, name="again")


def test_a_loop_costs_its_body_times_its_trips_and_what_follows_knows_its_shape() -> None:
    weights = [weight("w", 4, 4), numpy_helper.from_array(np.array(6), "trips")]
    nodes = [looping(), node("MatMul", ["z", "w"], ["y"])]
    counted = cost_of(model(nodes, {"x": ["n", 4]}, weights))
    assert (counted.macs_per_row, counted.notes) == (7 * 16, ())
    early = cost_of(model([looping(early=True), nodes[1]], {"x": ["n", 4]}, weights))
    assert early.macs_per_row == 7 * 16
    assert any("end early" in note for note in early.notes)


def test_a_loop_of_unknown_length_is_refused_unless_its_body_is_free() -> None:
    graph = model([looping()], {"x": ["n", 4]}, [weight("w", 4, 4)], outputs=["z"])
    graph.graph.input.append(value("trips", [], TensorProto.INT64))
    with pytest.raises(ExportError, match="cost of again: got Loop that runs an unknown number of times"):
        macs_per_row(graph)
    free = model([looping(work="Mul")], {"x": ["n", 4]}, [weight("w", 4)], outputs=["z"])
    free.graph.input.append(value("trips", [], TensorProto.INT64))
    assert macs_per_row(free) == 0


def test_a_scan_costs_its_body_times_the_steps() -> None:
    body = helper.make_graph(
        [node("MatMul", ["step", "w"], ["p"]), node("Add", ["p", "s"], ["s2"]), node("Identity", ["s2"], ["o"])],
        "body",
        [value("s", None), value("step", None)],
        [value("s2", None), value("o", None)],
    )
    scan = node("Scan", ["s0", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    graph = model([scan], {"x": [7, 1, 4]}, [weight("w", 4, 5), weight("s0", 1, 5)])
    assert cost_of(graph).nodes[0].macs == 7 * 20


def test_rows_chosen_while_running_count_as_all_rows() -> None:
    nodes = [
        node("ReduceMax", ["x", "one"], ["m"], keepdims=0),
        node("Less", ["m", "half"], ["unsure"]),
        node("NonZero", ["unsure"], ["where"]),
        node("Squeeze", ["where", "zero"], ["rows"]),
        node("Gather", ["x", "rows"], ["some"]),
        node("MatMul", ["some", "w"], ["y"]),
    ]
    weights = [
        weight("w", 4, 5),
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array([0]), "zero"),
        numpy_helper.from_array(np.float32(0.5), "half"),
    ]
    counted = cost_of(model(nodes, {"x": ["n", 4]}, weights))
    assert counted.macs_per_row == 20
    assert any("upper bound" in note for note in counted.notes)


def test_a_function_costs_what_is_inside() -> None:
    inside = helper.make_function(
        "com.me",
        "Dense",
        ["a", "b"],
        ["c"],
        [node("MatMul", ["a", "b"], ["d"]), node("Relu", ["d"], ["c"])],
        [helper.make_opsetid("", 18)],
    )
    call = node("Dense", ["x", "w"], ["y"], domain="com.me")
    assert macs_per_row(model([call], {"x": ["n", 4]}, [weight("w", 4, 5)], functions=[inside])) == 20


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
