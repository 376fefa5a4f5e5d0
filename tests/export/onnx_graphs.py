"""Classifiers as ONNX files that any tool may write: inner graphs, functions, odd names, outputs and opsets."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.onnx_models import FLOAT, array, node, value

FEATURES, CLASSES, SIDE = 3, 4, 8
# Names that mean something here, and those that are made up on the way to a member.
NAMES = ("image", "logits", "batch", "preprocess/image", "preprocess/float", "inner/image", "adapted/output",
         "adapted/input_0", "adapted/file_input", "x", "y")  # fmt: skip
INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


@dataclass
class Foreign:
    """One file, and what is known of it.

    Args:
        model: the file.
        output: the output that has the scores.
        several: whether it has others too.
        free: whether height and width are open.
        picture: "", "NCHW" or "NHWC".
        easy: whether nothing about it is a reason to refuse it.
    """

    model: onnx.ModelProto
    output: str
    several: bool
    free: bool
    picture: str
    easy: bool


@dataclass
class Drawn:
    """A graph while it is drawn; `last` is (n, FEATURES) from the start on."""

    draw: Any
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    easy: bool = True
    last: str = ""

    def name(self) -> str:
        """A name nobody has in the outermost graph, often one that means something."""
        spare = [name for name in NAMES if name not in self.names]
        made = f"t{len(self.names)}"
        name = self.draw(st.sampled_from([made, *spare]))
        self.names.append(name)
        return name

    def weight(self, value: Any) -> str:
        name = self.name()
        self.weights.append(array(value, name))
        return name

    def random(self, *shape: int) -> np.ndarray:
        rng = np.random.default_rng(self.draw(st.integers(0, 99)))
        return rng.normal(size=shape).astype(np.float32)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = self.name()
        label = self.draw(st.sampled_from(["", output]))
        self.nodes.append(node(kind, list(inputs), [output], name=label, **attributes))
        return output

    def inner(self) -> str:
        """A name inside, which the outer graph does not make."""
        spare = [name for name in NAMES if name not in self.names]
        name = self.draw(st.sampled_from([f"i{len(self.names)}", *spare]))
        self.names.append(name)
        return name


def plain(d: Drawn) -> None:
    kinds = ["Relu", "Tanh", "Identity", "Softmax", "HardSigmoid", "Selu"]
    d.last = d.op(d.draw(st.sampled_from(kinds)), d.last)


def dense(d: Drawn) -> None:
    d.last = d.op("MatMul", d.last, d.weight(d.random(FEATURES, FEATURES)))


def versioned(d: Drawn) -> None:
    """An operator that newer opsets changed or brought."""
    choices = ["Cast", "Reshape", "Clip"] + ["LayerNormalization"] * (d.opset >= 17)
    kind = d.draw(st.sampled_from(choices + ["Gelu"] * (d.opset >= 20) + ["RMSNormalization"] * (d.opset >= 23)))
    if kind == "Cast":
        d.last = d.op("Cast", d.last, to=FLOAT)
    elif kind == "Reshape":
        d.last = d.op("Reshape", d.last, d.weight(np.array([0, FEATURES])))
    elif kind == "Clip":
        d.last = d.op("Clip", d.last, d.weight(np.float32(-1)), d.weight(np.float32(1)))
    elif kind == "Gelu":
        d.last = d.op("Gelu", d.last)
    else:
        d.easy &= kind != "RMSNormalization"
        d.last = d.op(kind, d.last, d.weight(d.random(FEATURES)))


def branching(d: Drawn) -> None:
    """An If on a constant or on the rows, whose branches read outer tensors and bring weights of their own."""
    if d.draw(st.booleans()):
        condition = d.weight(d.draw(st.booleans()))
    else:
        largest = d.op("ReduceMax", d.last, keepdims=0)
        condition = d.op("Greater", largest, d.weight(np.float32(d.draw(st.sampled_from([-1e9, 0.3])))))
        d.easy = False
    branches = []
    for kind in (d.draw(st.sampled_from(["Relu", "Neg"])), "Tanh"):
        first = d.inner()
        weight = d.draw(st.sampled_from([f"w{len(d.names)}", *(w.name for w in d.weights[:1])]))
        second = next(name for name in (d.inner(), "second") if name not in (first, weight))
        nodes = [node("MatMul", [d.last, weight], [first]), node(kind, [first], [second])]
        if first == weight:
            nodes = [node(kind, [d.last], [second])]
        own = [array(d.random(FEATURES, FEATURES), weight)]
        branches.append(helper.make_graph(nodes, kind, [], [value(second, None)], initializer=own))
    d.last = d.op("If", condition, then_branch=branches[0], else_branch=branches[1])


def looping(d: Drawn) -> None:
    """A Loop of a few turns whose body reads an outer tensor."""
    kept = ["turn", "go", d.inner()]
    made = next(name for name in (d.inner(), "made") if name not in kept)
    body = helper.make_graph(
        [node("Add", [kept[2], d.last], [made]), node("Identity", ["go"], ["go_on"])],
        "body",
        [value(kept[0], [], INT64), value(kept[1], [], BOOL), value(kept[2], None)],
        [value("go_on", [], BOOL), value(made, None)],
    )
    d.last = d.op("Loop", d.weight(np.int64(d.draw(st.integers(1, 3)))), "", d.last, body=body)


def scanning(d: Drawn) -> None:
    """A Scan over the features."""
    taken = d.inner()
    given = next(name for name in (d.inner(), "given") if name != taken)
    body = helper.make_graph(
        [node("Sigmoid", [taken], [given])], "body", [value(taken, ["n"])], [value(given, ["n"])]
    )
    axes = {"num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]}
    d.last = d.op("Scan", d.last, body=body, **axes)


def calling(d: Drawn) -> None:
    """A local function, called once or twice, perhaps through another one, perhaps of another opset."""
    opset = d.draw(st.sampled_from([d.opset, d.opset, max(d.opset - 1, 13)]))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    inside = [node("Mul", ["a", "a"], ["image"], name="square"), node("Tanh", ["image"], ["logits"])]
    made = helper.make_function("mine", f"F{len(d.functions)}", ["a"], ["logits"], inside, imports)
    d.functions.append(made)
    if d.draw(st.booleans()):
        twice = [node(made.name, ["a"], ["b"], domain="mine"), node(made.name, ["b"], ["c"], domain="mine")]
        made = helper.make_function("mine", f"F{len(d.functions)}", ["a"], ["c"], twice, imports)
        d.functions.append(made)
    d.last = d.op(made.name, d.last, domain="mine")


STEPS = (plain, dense, versioned, branching, looping, scanning, calling)


@st.composite
def foreign(draw: Any) -> Foreign:
    """A classifier with CLASSES columns that ONNX Runtime most likely runs."""
    d = Drawn(draw, draw(st.integers(13, 23)))
    picture = draw(st.sampled_from(["", "NCHW", "NHWC"]))
    free = bool(picture) and draw(st.booleans())
    source = d.name()
    sides = ["h", "w"] if free else [SIDE, SIDE]
    dims = {"": [FEATURES], "NCHW": [FEATURES, *sides], "NHWC": [*sides, FEATURES]}[picture]
    d.last = source
    if picture:
        first = d.op("Transpose", source, perm=[0, 3, 1, 2]) if picture == "NHWC" else source
        d.last = d.op("Flatten", d.op("GlobalAveragePool", first))
    for step in draw(st.lists(st.sampled_from(STEPS), max_size=4)):
        step(d)
    d.last = d.op("MatMul", d.last, d.weight(d.random(FEATURES, CLASSES)))
    outputs, scores = _outputs(d, source, picture)
    order = draw(st.permutations(outputs))
    graph = helper.make_graph(d.nodes, "g", [value(source, ["n", *dims])], order, initializer=d.weights)
    imports = [helper.make_opsetid("", d.opset), helper.make_opsetid("ai.onnx.ml", 3)]
    if d.functions:
        imports.append(helper.make_opsetid("mine", 1))
    model = helper.make_model(
        graph, opset_imports=imports, functions=d.functions, ir_version=draw(st.sampled_from([8, 10, 11]))
    )
    return Foreign(model, scores, len(outputs) > 1, free, picture, d.easy)


def _outputs(d: Drawn, source: str, picture: str) -> tuple[list[onnx.ValueInfoProto], str]:
    """Declared outputs, and the name of the one with the scores."""
    scores = d.last
    shape = d.draw(st.sampled_from([["n", CLASSES], ["n", CLASSES], None]))
    declared = onnx.ValueInfoProto(name=scores) if shape is None else value(scores, shape)
    if d.draw(st.integers(0, 3)) == 0:
        axes = d.weight(np.array([2, 3]))
        scores = d.op("Unsqueeze", scores, axes)
        declared = value(scores, ["n", CLASSES, 1, 1])
    elif d.draw(st.integers(0, 3)) == 0:
        maps = d.name()
        d.nodes.append(
            node("ZipMap", [scores], [maps], domain="ai.onnx.ml", classlabels_int64s=list(range(CLASSES)))
        )
        kind = helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, []))
        scores, declared = maps, helper.make_value_info(maps, helper.make_sequence_type_proto(kind))
    others = []
    if d.draw(st.booleans()):
        others.append(value(d.op("ArgMax", d.last, axis=1, keepdims=0), ["n"], INT64))
    if not picture and d.draw(st.booleans()):
        others.append(value(source, ["n", FEATURES]))
    return [declared, *others], scores
