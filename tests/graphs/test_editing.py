"""Renaming and ordering that know which names a graph inside means."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from export.images import PREFIX, Processing, with_preprocess
from orchestrator.graphs.editing import all_graphs, names_read, rename_tensors, sorted_nodes
from tests.export.onnx_graphs import BOOL, FEATURES, INT64, SIDE, Foreign, foreign, node, value
from tests.export.small_networks import answers
from tests.onnx_models import model_of


def opened(model: onnx.ModelProto) -> bool:
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions share no base of their own.
    except Exception:
        return False
    return True


def own(graph: onnx.GraphProto) -> list[str]:
    made = [name for one in graph.node for name in one.output]
    return [*made, *(one.name for one in (*graph.input, *graph.initializer))]


@given(case=foreign(), data=st.data())
def test_a_renamed_graph_answers_as_before_and_gives_up_every_reserved_name(case: Foreign, data: Any) -> None:
    if not opened(case.model):
        return
    graph = case.model.graph
    source, scores = graph.input[0].name, case.output
    dims = {"": [FEATURES], "NCHW": [FEATURES, SIDE, SIDE], "NHWC": [SIDE, SIDE, FEATURES]}[case.picture]
    rows = np.random.default_rng(0).normal(size=(3, *dims)).astype(np.float32)
    before = answers(case.model, rows, scores)
    known = sorted(set(own(graph)) - {source, scores, "image", "logits"})
    victim = data.draw(st.sampled_from([*known, "nobody"]))
    rename_tensors(
        graph, {source: "image", scores: "logits"}, reserved={victim}, reserved_prefixes=("preprocess/",)
    )
    after = answers(case.model, rows, "logits")
    np.testing.assert_array_equal(np.array(after), np.array(before))
    every = [name for one in (graph, *all_graphs(graph.node)) for name in own(one)]
    assert not [name for name in every if name.startswith("preprocess/") or name == victim]
    # No graph inside shares a name with the one around it.
    outer = set(own(graph))
    assert not [name for one in all_graphs(graph.node) for name in own(one) if name in outer]


def shadowing() -> onnx.NodeProto:
    """A Loop whose body calls what it carries as the graph around it calls its input and its output."""
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Add", ["late", "late"], ["x"])],
        "body",
        [value("turn", [], INT64), value("go", [], BOOL), value("late", ["n", 2])],
        [value("on", [], BOOL), value("x", ["n", 2])],
    )
    return node("Loop", ["turns", "", "first"], ["l"], body=body)


def test_names_may_be_swapped_and_shadowed_ones_stay_apart() -> None:
    nodes = [node("Relu", ["x"], ["first"]), shadowing(), node("Neg", ["l"], ["late"])]
    model = model_of(nodes, {"x": ["n", 2]}, {"late": ["n", 2]}, {"turns": 2})
    rows = np.array([[1, -1]], np.float32)
    rename_tensors(model.graph, {"x": "late", "late": "x"})
    assert [one.name for one in (*model.graph.input, *model.graph.output)] == ["late", "x"]
    np.testing.assert_array_equal(answers(model, rows), [[-4, 0]])


def test_what_is_made_inside_is_not_read_from_outside() -> None:
    assert names_read(shadowing()) == {"turns", "", "first"}
    nodes = [node("Neg", ["l"], ["late"]), shadowing(), node("Relu", ["x"], ["first"])]
    graph = helper.make_graph(nodes, "g", [value("x", ["n", 2])], [value("late", ["n", 2])])
    sorted_nodes(graph)
    assert [one.op_type for one in graph.node] == ["Relu", "Loop", "Neg"]


def test_an_image_processing_takes_its_names_from_the_network_behind_it() -> None:
    inner = [
        node("Neg", ["x"], ["preprocess/image"], name="preprocess/image"),
        node("Abs", ["preprocess/image"], ["image"]),
    ]
    branch = helper.make_graph(inner, "b", [], [value("image", ["n", FEATURES, 4, 4])])
    other = helper.make_graph([node("Neg", ["x"], ["o"])], "o", [], [value("o", ["n", FEATURES, 4, 4])])
    nodes = [
        node("If", ["preprocess/scaled"], ["preprocess/float"], then_branch=branch, else_branch=other),
        node("GlobalAveragePool", ["preprocess/float"], ["p"], name="preprocess/float"),
        node("Flatten", ["p"], ["y"]),
    ]
    weights = {"preprocess/scaled": True}
    network = model_of(nodes, {"x": ["n", FEATURES, 4, 4]}, {"y": ["n", FEATURES]}, weights)
    made = with_preprocess(network, Processing(mean=(0.5,) * 3), height_px=4, width_px=4)
    np.testing.assert_allclose(answers(made, np.full((1, 3, 4, 4), 51, np.uint8)), [[0.3] * 3], atol=1e-6)
    theirs = [one.op_type for one in made.graph.node if not one.name.startswith(PREFIX)]
    assert theirs == ["If", "GlobalAveragePool", "Flatten"]
