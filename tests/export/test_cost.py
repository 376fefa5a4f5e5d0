from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from export.__main__ import app
from export.cost import cost_of, graph_from_path, macs_per_row, parameters_of, preprocess_macs_per_row
from export.cost.einsum import einsum_macs
from orchestrator.errors import CommitteeError, ExportError

REPOSITORY = Path(__file__).parents[2] / "model_repository"
MICROSOFT = "com.microsoft"
node = helper.make_node


def value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, *shape: int, kind: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, kind), name)


def model(
    nodes: list[Any], inputs: dict[str, Any], weights: list[Any] = (), outputs: Any = ("y",), **more: Any
) -> onnx.ModelProto:
    kind = more.pop("kind", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "g",
        [value(name, shape, kind) for name, shape in inputs.items()],
        [value(name, None) for name in outputs],
        list(weights),
        value_info=more.pop("value_info", []),
    )
    sets = [helper.make_opsetid("", more.pop("opset", 18))]
    sets += [helper.make_opsetid(domain, 1) for domain in (MICROSOFT, "com.me", "ai.onnx.ml")]
    return helper.make_model(graph, ir_version=10, opset_imports=sets, **more)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(5, 12),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    groups=st.integers(1, 3),
    wide=st.integers(1, 3),
)
def test_a_convolution_costs_outputs_times_inputs_of_its_group_times_kernel(
    size: int, kernel: int, stride: int, pad: int, groups: int, wide: int
) -> None:
    channels, made = groups * wide, groups * 2
    graph = model(
        [node("Conv", ["x", "w", "b"], ["y"], strides=[stride] * 2, pads=[pad] * 4, group=groups)],
        {"x": ["n", channels, size, size]},
        [weight("w", made, wide, kernel, kernel), weight("b", made)],
    )
    side = (size + 2 * pad - kernel) // stride + 1
    assert macs_per_row(graph) == side * side * made * wide * kernel * kernel
    assert parameters_of(graph) == made * wide * kernel * kernel + made


@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.integers(1, 4), max_size=2), m=st.integers(1, 6), k=st.integers(1, 6), n=st.integers(1, 6)
)
def test_a_matrix_product_costs_the_three_sizes_and_the_batch(batch: list[int], m: int, k: int, n: int) -> None:
    graph = model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, *batch, m, k]}, [weight("w", k, n)])
    assert macs_per_row(graph) == math.prod(batch) * m * k * n
    flipped = model([node("Gemm", ["x", "w"], ["y"], transA=1, transB=1)], {"x": [k, m]}, [weight("w", n, k)])
    assert cost_of(flipped).nodes[0].macs == m * k * n


class Watched:
    """A number that counts how often it was multiplied."""

    products = 0

    def __mul__(self, _: Any) -> Watched:
        Watched.products += 1
        return self

    def __add__(self, _: Any) -> Watched:
        return self

    __radd__ = __add__


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_einsum_of_two_costs_what_numpy_multiplies(data: st.DataObject) -> None:
    sizes = dict(zip("abcde", data.draw(st.lists(st.integers(1, 3), min_size=5, max_size=5)), strict=True))
    labels = st.lists(st.sampled_from("abcde"), min_size=1, max_size=3, unique=True)
    left, right = "".join(data.draw(labels)), "".join(data.draw(labels))
    # A label of one operand alone is kept: what is only summed up is no product.
    kept = sorted(set(left) ^ set(right)) + [x for x in sorted(set(left) & set(right)) if data.draw(st.booleans())]
    equation = f"{left},{right}->{''.join(kept)}"
    operands = []
    for term in (left, right):
        filled = np.empty([sizes[x] for x in term], object)
        filled.fill(Watched())
        operands.append(filled)
    Watched.products = 0
    np.einsum(equation, *operands)
    elementwise = not (set(left) & set(right)) - set(kept)
    want = 0 if elementwise else Watched.products
    assert einsum_macs(equation, [operand.shape for operand in operands], "e") == want


@pytest.mark.parametrize(
    ("equation", "shapes", "want"),
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 120),
        # Without an arrow, labels that occur twice are summed up: b and j.
        ("bij,bjk", [(2, 3, 4), (2, 4, 5)], 120),
        ("ij,jk", [(3, 4), (4, 5)], 60),
        ("...ij,...jk->...ik", [(7, 2, 3, 4), (2, 4, 5)], 840),
        ("...ij,jk", [(7, 3, 4), (4, 5)], 420),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 24 + 40),
        ("ij,k->k", [(2, 3), (4,)], 0),
        # x is summed up before the product.
        ("ijx,jk->ik", [(2, 3, 7), (3, 4)], 24),
        ("ij->ji", [(2, 3)], 0),
        ("ij,ij->ij", [(2, 3), (2, 3)], 0),
    ],
)
def test_einsum_handles_dots_chains_and_no_arrow(equation: str, shapes: list[Any], want: int) -> None:
    assert einsum_macs(equation, shapes, "e") == want


def test_an_equation_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ExportError, match=r"cost of e: got equation ijk,jk"):
        einsum_macs("ijk,jk", [(2, 3), (3, 4)], "e")


Q = TensorProto.UINT8
SINGLE: dict[str, tuple[Any, dict[str, Any], list[Any], int, dict[str, Any]]] = {
    "ConvTranspose": (
        node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
        {"x": [1, 3, 5, 5]},
        [weight("w", 3, 4, 2, 2)],
        3 * 25 * 4 * 4,
        {},
    ),
    "ConvInteger": (
        node("ConvInteger", ["x", "w"], ["y"]),
        {"x": [1, 2, 6, 6]},
        [weight("w", 3, 2, 3, 3, kind=np.int8)],
        3 * 16 * 18,
        {"kind": Q},
    ),
    "MatMulInteger": (
        node("MatMulInteger", ["x", "w"], ["y"]),
        {"x": [1, 4, 6]},
        [weight("w", 6, 5, kind=np.uint8)],
        4 * 6 * 5,
        {"kind": Q},
    ),
    "vector": (node("MatMul", ["x", "w"], ["y"]), {"x": [1, 6]}, [weight("w", 6)], 6, {}),
    "LSTM": (
        node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4, direction="bidirectional"),
        {"x": [7, "n", 3]},
        [weight("w", 2, 16, 3), weight("r", 2, 16, 4)],
        7 * 2 * 16 * (3 + 4),
        {},
    ),
    "GRU": (
        node("GRU", ["x", "w", "r"], ["y"], hidden_size=4),
        {"x": [7, "n", 3]},
        [weight("w", 1, 12, 3), weight("r", 1, 12, 4)],
        7 * 12 * (3 + 4),
        {},
    ),
    "attention, four axes": (
        node("Attention", ["x", "k", "v"], ["y"]),
        {"x": [1, 2, 5, 8], "k": [1, 2, 9, 8], "v": [1, 2, 9, 6]},
        [],
        2 * 5 * 9 * (8 + 6),
        {"opset": 23},
    ),
    "attention, three axes, shared heads": (
        node("Attention", ["x", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=2),
        {"x": [1, 5, 32], "k": [1, 9, 16], "v": [1, 9, 12]},
        [],
        5 * 9 * (32 + 4 * 6),
        {"opset": 23},
    ),
    "attention with projections": (
        node("Attention", ["x", "w", "b"], ["y"], domain=MICROSOFT, num_heads=2),
        {"x": [1, 5, 8]},
        [weight("w", 8, 24), weight("b", 24)],
        5 * 8 * 24 + 5 * 5 * (8 + 8),
        {},
    ),
    "attention without projections": (
        node("MultiHeadAttention", ["x", "k", "v"], ["y"], domain=MICROSOFT, num_heads=2),
        {"x": [1, 5, 8], "k": [1, 9, 8], "v": [1, 9, 6]},
        [],
        5 * 9 * (8 + 6),
        {},
    ),
    "transposed product": (
        node("FusedMatMul", ["x", "w"], ["y"], domain=MICROSOFT, transA=1, transB=1),
        {"x": [1, 6, 4]},
        [weight("w", 5, 6)],
        4 * 6 * 5,
        {},
    ),
    "packed weights": (
        node("MatMulNBits", ["x", "w", "s"], ["y"], domain=MICROSOFT, K=32, N=7, bits=4, block_size=32),
        {"x": [1, 3, 32]},
        [weight("w", 7, 1, 16, kind=np.uint8), weight("s", 7)],
        3 * 32 * 7,
        {},
    ),
    "linear classifier": (
        node(
            "LinearClassifier",
            ["x"],
            ["l", "y"],
            domain="ai.onnx.ml",
            coefficients=[0.5] * 12,
            intercepts=[0.0] * 3,
            classlabels_ints=[0, 1, 2],
        ),
        {"x": [1, 4]},
        [],
        12,
        {},
    ),
}


@pytest.mark.parametrize("case", list(SINGLE))
def test_an_operator_costs_what_its_definition_says(case: str) -> None:
    only, inputs, weights, want, more = SINGLE[case]
    # What follows must have found the operator's output shape, or the last product is refused.
    assert cost_of(model([only], inputs, weights, **more)).macs_per_row == want


def test_shapes_go_on_behind_operators_of_onnx_runtime() -> None:
    graph = model(
        [
            node("Attention", ["x", "w", "b"], ["a"], domain=MICROSOFT, num_heads=2),
            node(
                "SkipLayerNormalization", ["a", "x", "gamma"], ["n", "", "", "sum"], domain=MICROSOFT, epsilon=1e-5
            ),
            node("BiasGelu", ["n", "gamma"], ["g"], domain=MICROSOFT),
            node("FusedMatMul", ["g", "sum"], ["p"], domain=MICROSOFT, transB=1),
            node("MatMul", ["p", "x"], ["y"]),
        ],
        {"x": ["n", 5, 8]},
        [weight("w", 8, 24), weight("b", 24), weight("gamma", 8)],
    )
    assert macs_per_row(graph) == (5 * 8 * 24 + 5 * 5 * 16) + 5 * 5 * 8 + 5 * 5 * 8


@pytest.mark.parametrize("operator", ["Relu", "Softmax", "LayerNormalization", "GlobalAveragePool", "Mul", "Add"])
def test_what_sums_no_products_is_free(operator: str) -> None:
    inputs = {"Mul": ["x", "x"], "Add": ["x", "x"], "LayerNormalization": ["x", "s"]}.get(operator, ["x"])
    assert macs_per_row(model([node(operator, inputs, ["y"])], {"x": [1, 3, 4, 4]}, [weight("s", 4)])) == 0


@pytest.mark.parametrize(
    ("operator", "domain"),
    [
        ("Mystery", "com.me"),
        ("Mystery", ""),
        ("DFT", ""),
        ("Det", ""),
        ("TreeEnsembleRegressor", "ai.onnx.ml"),
        ("MoE", MICROSOFT),
    ],
)
def test_work_that_is_not_known_is_refused_and_never_free(operator: str, domain: str) -> None:
    graph = model([node(operator, ["x"], ["y"], domain=domain, name="odd")], {"x": ["n", 4]})
    with pytest.raises(ExportError, match=f"cost of odd: got operator .*{operator}"):
        macs_per_row(graph)


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


def with_preprocess() -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["preprocess/rows", "x"], ["preprocess/a"], name="preprocess/vertical"),
        node("MatMul", ["preprocess/a", "preprocess/columns"], ["preprocess/image"], name="preprocess/horizontal"),
        node("Conv", ["preprocess/image", "w"], ["y"], name="stem"),
    ]
    weights = [weight("preprocess/rows", 4, 8), weight("preprocess/columns", 8, 4), weight("w", 2, 3, 3, 3)]
    return model(nodes, {"x": ["batch", 3, 8, 8]}, weights)


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
    with pytest.raises(ExportError, match=r"input x: got sizes that are not fixed: h, w_px, .* --shape x="):
        macs_per_row(graph)
    assert cost_of(graph, {"x": [2, 3, 5, 5]}).macs_per_row == 9 * 2 * 27
    assert cost_of(graph, {"x": [2, 3, 5, 5]}).rows == 2
    with pytest.raises(ExportError, match="--shape: got input z, expected one of x"):
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


def run_optimised(graph: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def small_network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    sizes = {"w": (4, 3, 3, 3), "b": (4,), "w2": (4, 4, 3, 3), "dense": (4 * 36, 5)}
    weights = [
        numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name) for name, size in sizes.items()
    ]
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], name="relu"),
        node("Conv", ["r", "w2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r"], ["s"], name="add"),
        node("Flatten", ["s"], ["f"], name="flatten"),
        node("MatMul", ["f", "dense"], ["y"], name="dense"),
    ]
    graph = model(nodes, {"x": ["n", 3, 6, 6]}, weights, opset=17)
    graph.graph.output[0].CopyFrom(value("y", ["n", 5]))
    return graph


def test_what_onnx_runtime_fuses_costs_the_same(tmp_path: Path) -> None:
    graph = small_network()
    fused = run_optimised(graph, tmp_path / "fused.onnx")
    assert "FusedConv" in {part.op_type for part in fused.graph.node}
    assert macs_per_row(fused) == macs_per_row(graph) == 36 * 4 * 27 + 36 * 4 * 36 + 4 * 36 * 5
    assert parameters_of(fused) == parameters_of(graph)


class Feed:
    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._rows = iter([{"x": rng.normal(size=(2, 3, 6, 6)).astype(np.float32)} for _ in range(2)])

    def get_next(self) -> Any:
        return next(self._rows, None)


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_a_quantised_network_costs_and_weighs_what_it_did_before(form: str, tmp_path: Path) -> None:
    from onnxruntime import quantization

    graph = small_network()
    onnx.save(graph, tmp_path / "a.onnx")
    if form == "dynamic":
        quantization.quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx")
    else:
        quantization.quantize_static(
            tmp_path / "a.onnx", tmp_path / "b.onnx", Feed(), quant_format=quantization.QuantFormat[form]
        )
    quantised = onnx.load(tmp_path / "b.onnx")
    assert macs_per_row(quantised) == macs_per_row(graph)
    # The dynamic form multiplies by its scales in plain nodes, where nothing tells them from weights.
    assert parameters_of(quantised) == parameters_of(graph) + (3 if form == "dynamic" else 0)


def test_weights_in_a_missing_file_do_not_matter(tmp_path: Path) -> None:
    graph = small_network()
    onnx.save(graph, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    read = graph_from_path(tmp_path / "m.onnx")
    assert macs_per_row(read) == macs_per_row(graph)
    assert parameters_of(read) == parameters_of(graph)


@pytest.mark.parametrize("there", [True, False])
def test_a_shape_in_a_file_of_its_own_is_read_where_the_file_is_there(there: bool, tmp_path: Path) -> None:
    weights = [weight("w", 4, 5), numpy_helper.from_array(np.array([-1, 2, 4]), "sizes")]
    nodes = [node("Reshape", ["x", "sizes"], ["r"]), node("MatMul", ["r", "w"], ["y"], name="product")]
    graph = model(nodes, {"x": ["n", 8]}, weights)
    path = tmp_path / "m.onnx"
    onnx.save(graph, path, save_as_external_data=True, location="m.data", size_threshold=0)
    if there:
        assert macs_per_row(graph_from_path(path)) == 2 * 4 * 5
        return
    (tmp_path / "m.data").unlink()
    with pytest.raises(ExportError, match="cost of product: got tensor y without a fixed shape"):
        macs_per_row(graph_from_path(path))


def test_counting_leaves_the_model_as_it_was() -> None:
    graph = with_preprocess()
    before = graph.SerializeToString(deterministic=True)
    cost_of(graph)
    parameters_of(graph)
    assert graph.SerializeToString(deterministic=True) == before


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
