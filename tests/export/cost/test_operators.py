import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from export.cost.counting import cost_of, macs_per_row, parameters_of
from export.cost.rules import einsum_macs
from orchestrator.errors import ExportError
from tests.export.cost.graphs import MICROSOFT, model, node, weight


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


def single(
    operator: str,
    want: int,
    inputs: dict[str, Any],
    *weights: Any,
    outputs: Any = ("y",),
    more: Any = None,
    **settings: Any,
) -> tuple[onnx.ModelProto, int]:
    """A graph of one operator that reads inputs and weights in their order, and what it costs."""
    names = [*inputs, *(one.name for one in weights)]
    return model([node(operator, names, list(outputs), **settings)], inputs, list(weights), **(more or {})), want


BYTES, OPSET = {"kind": TensorProto.UINT8}, {"opset": 23}
OWN = {"domain": MICROSOFT, "num_heads": 2}
LINEAR = {"coefficients": [0.5] * 12, "intercepts": [0.0] * 3, "classlabels_ints": [0, 1, 2]}
X, ROW = {"x": [1, 5, 8]}, {"x": [7, "n", 3]}
Q4, KV4 = [1, 2, 5, 8], {"k": [1, 2, 9, 8], "v": [1, 2, 9, 6]}
SINGLE = {
    "ConvTranspose": single(
        "ConvTranspose", 3 * 25 * 16, {"x": [1, 3, 5, 5]}, weight("w", 3, 4, 2, 2), strides=[2, 2]
    ),
    "ConvInteger": single(
        "ConvInteger", 3 * 16 * 18, {"x": [1, 2, 6, 6]}, weight("w", 3, 2, 3, 3, kind=np.int8), more=BYTES
    ),
    "MatMulInteger": single(
        "MatMulInteger", 4 * 6 * 5, {"x": [1, 4, 6]}, weight("w", 6, 5, kind=np.uint8), more=BYTES
    ),
    "vector": single("MatMul", 6, {"x": [1, 6]}, weight("w", 6)),
    "LSTM": single(
        "LSTM",
        7 * 2 * 16 * 7,
        ROW,
        weight("w", 2, 16, 3),
        weight("r", 2, 16, 4),
        hidden_size=4,
        direction="bidirectional",
    ),
    "GRU": single("GRU", 7 * 12 * (3 + 4), ROW, weight("w", 1, 12, 3), weight("r", 1, 12, 4), hidden_size=4),
    "attention, four axes": single("Attention", 2 * 5 * 9 * (8 + 6), {"x": Q4, **KV4}, more=OPSET),
    "attention, three axes, shared heads": single(
        "Attention",
        5 * 9 * (32 + 4 * 6),
        {"x": [1, 5, 32], "k": [1, 9, 16], "v": [1, 9, 12]},
        more=OPSET,
        q_num_heads=4,
        kv_num_heads=2,
    ),
    "attention with projections": single(
        "Attention", 5 * 8 * 24 + 5 * 5 * (8 + 8), X, weight("w", 8, 24), weight("b", 24), **OWN
    ),
    "attention without projections": single(
        "MultiHeadAttention", 5 * 9 * (8 + 6), {**X, "k": [1, 9, 8], "v": [1, 9, 6]}, **OWN
    ),
    "transposed product": single(
        "FusedMatMul", 4 * 6 * 5, {"x": [1, 6, 4]}, weight("w", 5, 6), domain=MICROSOFT, transA=1, transB=1
    ),
    "packed weights": single(
        "MatMulNBits",
        3 * 32 * 7,
        {"x": [1, 3, 32]},
        weight("w", 7, 1, 16, kind=np.uint8),
        weight("s", 7),
        domain=MICROSOFT,
        K=32,
        N=7,
        bits=4,
        block_size=32,
    ),
    "linear classifier": single(
        "LinearClassifier", 12, {"x": [1, 4]}, outputs=("l", "y"), domain="ai.onnx.ml", **LINEAR
    ),
}


@pytest.mark.parametrize("case", list(SINGLE))
def test_an_operator_costs_what_its_definition_says(case: str) -> None:
    graph, want = SINGLE[case]
    # What follows must have found the operator's output shape, or the last product is refused.
    assert cost_of(graph).macs_per_row == want


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


class Watched:
    """A number that counts how often it was multiplied."""

    products = 0

    def __mul__(self, _: Any) -> "Watched":
        Watched.products += 1
        return self

    def __add__(self, _: Any) -> "Watched":
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
