"""Tiny networks with the parts that precisions and fusing care about, made without any framework."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.images import Processing, with_preprocess
from orchestrator.spec import Member, TensorSpec
from tests.onnx_models import array, model_of
from tests.repository.builders import add_member

CLASSES = 5
IMAGE_PX = 24


class Builder:
    """A graph whose nodes follow each other; every operation goes on from the last tensor unless told."""

    def __init__(self, dims: list[int], *, seed: int = 0, name: str = "image") -> None:
        self.rng = np.random.default_rng(seed)
        self.input = {name: ["batch", *dims]}
        self.last = name
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, value: Any, dtype: type = np.float32) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(array(np.asarray(value, dtype), name))
        return name

    def random(self, *shape: int) -> str:
        return self.weight(self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        self.last = output
        return output

    def model(self, classes: int = CLASSES, output: str = "logits") -> onnx.ModelProto:
        self.nodes[-1].output[0] = output
        model = model_of(self.nodes, self.input, {output: ["batch", classes]}, self.weights)
        onnx.checker.check_model(model, full_check=True)
        return model


def conv_network(seed: int = 0, side: int = 12, classes: int = CLASSES) -> onnx.ModelProto:
    """Convolution, batch normalisation, a second convolution, pooling, a dense head."""
    b = Builder([3, side, side], seed=seed)
    b.op("Conv", b.last, b.random(8, 3, 3, 3), kernel_shape=[3, 3])
    shift = b.weight(b.rng.normal(size=8))
    spread = b.weight(b.rng.uniform(0.5, 2, 8))
    b.op("BatchNormalization", b.last, spread, shift, b.weight(np.zeros(8)), b.weight(np.ones(8)))
    b.op("Relu", b.last)
    b.op("Conv", b.last, b.random(8, 8, 3, 3), kernel_shape=[3, 3], strides=[2, 2])
    b.op("Relu", b.last)
    b.op("GlobalAveragePool", b.last)
    b.op("Flatten", b.last)
    b.op("Gemm", b.last, b.weight(3 * b.rng.normal(size=(8, classes))), b.weight(np.zeros(classes)))
    return b.model(classes)


def attention_network(seed: int = 0, tokens: int = 6, width: int = 8) -> onnx.ModelProto:
    """One attention layer and a head, made of MatMul; an epsilon that half precision cannot hold."""
    b = Builder([tokens, width], seed=seed)
    x = b.last
    q = b.op("MatMul", x, b.random(width, width))
    k = b.op("Transpose", b.op("MatMul", x, b.random(width, width)), perm=[0, 2, 1])
    v = b.op("MatMul", x, b.random(width, width))
    shares = b.op("Softmax", b.op("MatMul", q, k), axis=-1)
    mixed = b.op("MatMul", shares, v)
    mean = b.op("ReduceMean", mixed, b.weight([1], np.int64), keepdims=0)
    squares = b.op("ReduceSum", b.op("Mul", mean, mean), b.weight([1], np.int64), keepdims=1)
    size = b.op("Sqrt", b.op("Add", squares, b.weight([1e-12])))
    b.op("MatMul", b.op("Div", mean, size), b.random(width, CLASSES))
    return b.model()


def image_model(seed: int = 0, side: int = 12, **changes: Any) -> onnx.ModelProto:
    """`conv_network` behind its image processing, uint8 (n, 3, 24, 24)."""
    processing = Processing(resize_px=(side, side), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    return with_preprocess(conv_network(seed, side), processing, height_px=IMAGE_PX, width_px=IMAGE_PX)


IMAGE_INPUT = TensorSpec(name="image", dtype="UINT8", dims=(3, IMAGE_PX, IMAGE_PX))
SCORES = TensorSpec(name="logits", dtype="FP32", dims=(CLASSES,))


def add_image_member(repository: Path, name: str, *, seed: int = 0, side: int = 12, **changes: Any) -> Member:
    """An image member on disk."""
    model = image_model(seed, side)
    return add_member(repository, name, model=model, inputs=(IMAGE_INPUT,), output=SCORES, **changes)


def answers(model: onnx.ModelProto | Path, rows: np.ndarray, output: str | None = None) -> np.ndarray:
    """What ONNX Runtime makes of the rows."""
    import onnxruntime

    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None if output is None else [output], {session.get_inputs()[0].name: rows})[0]


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with one of its inner float32 tensors among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy
