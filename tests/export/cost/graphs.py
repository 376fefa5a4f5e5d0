"""Graphs whose cost can be told by hand."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.onnx_models import node, value

MICROSOFT = "com.microsoft"


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


def with_preprocess() -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["preprocess/rows", "x"], ["preprocess/a"], name="preprocess/vertical"),
        node("MatMul", ["preprocess/a", "preprocess/columns"], ["preprocess/image"], name="preprocess/horizontal"),
        node("Conv", ["preprocess/image", "w"], ["y"], name="stem"),
    ]
    weights = [weight("preprocess/rows", 4, 8), weight("preprocess/columns", 8, 4), weight("w", 2, 3, 3, 3)]
    return model(nodes, {"x": ["batch", 3, 8, 8]}, weights)


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
