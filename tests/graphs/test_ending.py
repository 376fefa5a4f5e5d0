"""What graphs end in, built node by node; and that the answer is never wrong where their values can tell."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from orchestrator.graphs.combining import GraphBuilder
from orchestrator.graphs.ending import LOGITS, PROBABILITIES, SIGMOID, ending_of
from tests.onnx_models import model_of


def dense(g: GraphBuilder, x: str, size: int = 4) -> str:
    return g.op("MatMul", x, g.constant(np.ones((4, size))))


def softmax_apart(g: GraphBuilder, z: str) -> str:
    powers = g.op("Exp", z)
    return g.op("Div", powers, g.over("ReduceSum", powers, 1, keep=True))


def sigmoid_apart(g: GraphBuilder, z: str) -> str:
    return g.op("Div", g.constant(1), g.op("Add", g.op("Exp", g.op("Neg", z)), g.constant(1)))


def behind(g: GraphBuilder, x: str) -> str:
    """Operators that change no value."""
    x = g.op("Cast", x, to=TensorProto.FLOAT16)
    x = g.op("Squeeze", g.op("Unsqueeze", x, g.constant([2], np.int64)), g.constant([2], np.int64))
    return g.op("Identity", g.op("Reshape", g.op("Cast", x, to=TensorProto.FLOAT), g.constant([-1, 4], np.int64)))


def attended(g: GraphBuilder, x: str) -> str:
    """A layer behind an attention, whose softmax is none of the scores'."""
    shares = g.op("Softmax", g.op("MatMul", x, g.op("Transpose", x, perm=[1, 0])), axis=1)
    return dense(g, g.op("Add", g.op("MatMul", shares, dense(g, x)), x))


ENDINGS: dict[str, tuple[Callable[[GraphBuilder, str], str], str | None]] = {
    "a softmax": (lambda g, x: g.op("Softmax", dense(g, x), axis=1), PROBABILITIES),
    "a softmax in another shape": (lambda g, x: behind(g, g.op("Softmax", x, axis=1)), PROBABILITIES),
    "a softmax taken apart": (softmax_apart, PROBABILITIES),
    "the powers of a log softmax": (lambda g, x: g.op("Exp", g.op("LogSoftmax", x, axis=1)), PROBABILITIES),
    "a sigmoid": (lambda g, x: g.op("Sigmoid", x), SIGMOID),
    "a hard sigmoid in another shape": (lambda g, x: behind(g, g.op("HardSigmoid", x)), SIGMOID),
    "a sigmoid taken apart": (sigmoid_apart, SIGMOID),
    "logarithms of sigmoids": (lambda g, x: g.op("Log", g.op("Sigmoid", x)), SIGMOID),
    "a log softmax": (lambda g, x: g.op("LogSoftmax", x, axis=1), LOGITS),
    "logarithms of a softmax": (lambda g, x: g.op("Log", g.op("Softmax", x, axis=1)), LOGITS),
    "logarithms of a softmax taken apart": (lambda g, x: g.op("Log", softmax_apart(g, x)), LOGITS),
    "a layer": (dense, LOGITS),
    "a layer and a temperature": (lambda g, x: g.op("Div", dense(g, x), g.constant(2)), LOGITS),
    "a layer and a rectifier": (lambda g, x: behind(g, g.op("Relu", dense(g, x))), LOGITS),
    "a layer behind a gate": (lambda g, x: dense(g, g.op("Mul", x, g.op("Sigmoid", dense(g, x)))), LOGITS),
    "a layer behind an attention": (attended, LOGITS),
    # What the values have to tell.
    "a layer that mixes a softmax": (lambda g, x: dense(g, g.op("Softmax", x, axis=1)), None),
    "a mean of softmaxes": (
        lambda g, x: g.op("Mean", g.op("Softmax", x, axis=1), g.op("Softmax", dense(g, x), axis=1)), None,
    ),
    "a layer beside a clipped input": (lambda g, x: g.op("Add", dense(g, x), g.op("Clip", x)), None),
    "percentages": (lambda g, x: g.op("Mul", g.op("Softmax", x, axis=1), g.constant(100)), None),
    "half of a hyperbolic tangent": (
        lambda g, x: g.op("Mul", g.op("Add", g.op("Tanh", dense(g, x)), g.constant(1)), g.constant(0.5)), None,
    ),
    "the input itself": (lambda g, x: g.op("Identity", x), None),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_the_last_operators_say_what_is_certain_and_no_more(name: str) -> None:
    make, expected = ENDINGS[name]
    g = GraphBuilder()
    output = make(g, "x")
    model = model_of(g.nodes, {"x": ["n", 4]}, {output: ["n", None]}, g.constants)
    onnx.checker.check_model(model)
    found = ending_of(model.graph, output)
    assert (None if found is None else found[0]) == expected
