"""Multiply-accumulates of one node, operator by operator; what is not known to be cheap is refused, never 0."""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

import onnx

from export.images import PREFIX
from orchestrator.errors import ExportError

Shape = tuple[int, ...]
MICROSOFT = "com.microsoft::"
# In a one-file cascade the names of a member's image processing follow the member's name.
_PREPROCESS = re.compile(rf"(member/[^/]+/)?{re.escape(PREFIX)}")


@dataclass(frozen=True)
class NodeView:
    """One node, its name for messages, and the shapes of every value it can see that has a fixed one."""

    node: onnx.NodeProto
    subject: str
    shapes: Mapping[str, Shape]

    def shape(self, index: int) -> Shape:
        """Shape of an input."""
        return self._shape(self.node.input[index])

    def output(self, index: int = 0) -> Shape:
        """Shape of an output."""
        return self._shape(self.node.output[index])

    def has(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def attribute(self, name: str, default: Any) -> Any:
        """Value of an attribute."""
        found = [part for part in self.node.attribute if part.name == name]
        return onnx.helper.get_attribute_value(found[0]) if found else default

    def _shape(self, name: str) -> Shape:
        if name not in self.shapes:
            raise ExportError(
                f"cost of {self.subject}",
                got=f"tensor {name} without a fixed shape",
                expected="shapes that follow from the inputs' shapes",
                fix="fix all axes but the batch with `shapes` INPUT=1,3,224,224, or count the graph before it was "
                "optimised for one runtime",
            )
        return self.shapes[name]


Rule = Callable[[NodeView], int]


def operator_of(node: onnx.NodeProto) -> str:
    """Operator with its domain, the standard domain left out."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def is_preprocess(name: str) -> bool:
    """Whether a node or constant of that name is image processing in front of the network, not the network."""
    return _PREPROCESS.match(name) is not None


def macs_of(view: NodeView) -> int:
    """Multiply-accumulates of a node without graphs inside.

    Raises:
        ExportError: its operator's work is not known, or a shape is missing.
    """
    operator = operator_of(view.node)
    if operator in RULES:
        return RULES[operator](view)
    if _is_light(operator):
        return 0
    before = "before it was optimised for one runtime" if operator.startswith("com.m") else None
    raise ExportError(
        f"cost of {view.subject}",
        got=f"operator {operator}",
        expected="operators whose multiply-accumulates are known",
        fix=f"count the graph {before}" if before else "count it in the framework it comes from",
    )


@functools.cache
def _is_light(operator: str) -> bool:
    """Whether an operator is known to multiply and accumulate nothing; the standard ones have no domain."""
    if operator in _LIGHT or "::" in operator or operator in _HEAVY:
        return operator in _LIGHT
    return any(onnx.defs.has(operator, opset) for opset in range(1, _REVIEWED_OPSET + 1))


def _convolution(weight: int) -> Rule:
    # A weight is (out, in / groups, *kernel), so one output value takes size / out products.
    return lambda view: math.prod(view.output()) * math.prod(view.shape(weight)[1:])


def _transposed_convolution(view: NodeView) -> int:
    return math.prod(view.shape(0)) * math.prod(view.shape(1)[1:])


def _gemm(view: NodeView) -> int:
    axis: int = 0 if view.attribute("transA", 0) else 1
    return math.prod(view.output()) * view.shape(0)[axis]


def _matmul(view: NodeView) -> int:
    axis = -1
    if view.attribute("transA", 0):
        axis = 0 if view.attribute("transBatchA", 0) else -2
    return math.prod(view.output()) * view.shape(0)[axis]


def _einsum(view: NodeView) -> int:
    shapes = [view.shape(index) for index in range(len(view.node.input))]
    return einsum_macs(view.attribute("equation", b"").decode(), shapes, view.subject)


def _attention(view: NodeView) -> int:
    """The standard operator: q k^T, then times v; (n, heads, length, width) or (n, length, heads * width)."""
    query, key, value = view.shape(0), view.shape(1), view.shape(2)
    past = view.shape(4)[2] if view.has(4) else 0
    if len(query) == 4:
        return math.prod(query[:3]) * (key[2] + past) * (query[3] + value[3])
    heads: int = view.attribute("q_num_heads", 1)
    value_heads: int = view.attribute("kv_num_heads", 1)
    widths = query[2] + heads * value[2] // value_heads
    return query[0] * query[1] * (key[1] + past) * widths


def _projected_attention(past_index: int) -> Rule:
    """ONNX Runtime's Attention, which holds the projections to q, k and v too."""

    def rule(view: NodeView) -> int:
        (rows, length, _), weight = view.shape(0), view.shape(1)
        sizes: list[int] = view.attribute("qkv_hidden_sizes", None) or [weight[1] // 3] * 3
        past = view.shape(past_index)[3] if view.has(past_index) else 0
        return rows * length * (math.prod(weight) + (length + past) * (sizes[0] + sizes[2]))

    return rule


def _multi_head_attention(view: NodeView) -> int:
    query = view.shape(0)
    past = view.shape(6)[2] if view.has(6) else 0
    hidden = query[2] * query[4] if len(query) == 5 else query[2]
    if not view.has(1):
        length, values = query[1], hidden
    else:
        key = view.shape(1)
        length = key[2] if len(key) == 4 else key[1]
        value = view.shape(2) if view.has(2) else None
        values = hidden if value is None else value[2] if len(value) == 3 else value[1] * value[3]
    return query[0] * query[1] * (length + past) * (hidden + values)


def _recurrent(view: NodeView) -> int:
    """Every step multiplies the input by one matrix and the state by another, all gates and directions in them."""
    return math.prod(view.shape(0)[:2]) * (math.prod(view.shape(1)) + math.prod(view.shape(2)))


def _linear_model(view: NodeView) -> int:
    """The products of a row with the support vectors, or with one vector per class where the kernel is linear."""
    rows = view.shape(0)[0] if len(view.shape(0)) > 1 else 1
    return rows * len(view.attribute("support_vectors", []) or view.attribute("coefficients", []))


# Rule -> standard operators, and those of ONNX Runtime.
_OPERATORS: tuple[tuple[Rule, str, str], ...] = (
    (_convolution(1), "Conv ConvInteger DeformConv", "FusedConv NhwcConv NhwcFusedConv"),
    (_convolution(3), "QLinearConv", "QLinearConv"),
    (_transposed_convolution, "ConvTranspose", ""),
    (_gemm, "Gemm", "FusedGemm QGemm"),
    (
        _matmul,
        "MatMul MatMulInteger QLinearMatMul",
        "FusedMatMul TransposeMatMul GemmFastGelu MatMulIntegerToFloat DynamicQuantizeMatMul MatMulInteger16 "
        "MatMulNBits MatMulBnb4",
    ),
    (_einsum, "Einsum", ""),
    (_attention, "Attention", ""),
    (_projected_attention(4), "", "Attention"),
    (_projected_attention(8), "", "QAttention"),
    (_multi_head_attention, "", "MultiHeadAttention"),
    (_recurrent, "LSTM GRU RNN", "DynamicQuantizeLSTM"),
    (_linear_model, "ai.onnx.ml::LinearClassifier ai.onnx.ml::LinearRegressor", ""),
    (_linear_model, "ai.onnx.ml::SVMClassifier ai.onnx.ml::SVMRegressor", ""),
)
RULES: dict[str, Rule] = {
    prefix + name: rule
    for rule, standard, own in _OPERATORS
    for prefix, names in (("", standard), (MICROSOFT, own))
    for name in names.split()
}

# Operators up to this opset were reviewed; a later one may do any work.
_REVIEWED_OPSET = 28
_HEAVY = frozenset(("CausalConvWithState", "DFT", "Det", "LinearAttention", "STFT", "ImageDecoder"))
# By domain; those of the standard one are ONNX Runtime's own.
_LIGHT_IN = {
    "": "SimplifiedLayerNormalization MemcpyFromHost MemcpyToHost",
    MICROSOFT: "BiasAdd BiasGelu BiasSoftmax BiasSplitGelu FastGelu Gelu QuickGelu SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization SkipGroupNorm GroupNorm EmbedLayerNormalization RotaryEmbedding "
    "QuantizeLinear DequantizeLinear MulInteger QLinearAdd QLinearMul QLinearConcat QLinearSigmoid "
    "QLinearLeakyRelu QLinearWhere QLinearSoftmax QLinearAveragePool QLinearGlobalAveragePool QLinearReduceMean "
    "NhwcMaxPool GridSample ExpandDims GatherND Pad Trilu Range Unique Tokenizer",
    "ai.onnx.ml::": "ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer "
    "Imputer LabelEncoder Normalizer OneHotEncoder Scaler ZipMap",
}
_LIGHT = frozenset(prefix + name for prefix, names in _LIGHT_IN.items() for name in names.split())


def einsum_macs(equation: str, shapes: Sequence[tuple[int, ...]], subject: str) -> int:
    """Multiply-accumulates of an Einsum on operands of these shapes.

    A label of only one operand that no later term needs is summed up before the product: additions, which are not
    counted. A product that sums up nothing is elementwise, and not counted either.

    Raises:
        ExportError: equation and shapes do not fit.
    """
    terms, result = _labels(equation.replace(" ", ""), shapes, subject)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for label, size in zip(term, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    left, total = set(terms[0]), 0
    for index, term in enumerate(terms[1:], start=1):
        right, needed = set(term), set(result).union(*terms[index + 1 :])
        summed = (left & right) - needed
        kept = (left | right) & needed
        if summed:
            total += math.prod(sizes[label] for label in kept | summed)
        left = kept
    return total


def _labels(equation: str, shapes: Sequence[tuple[int, ...]], subject: str) -> tuple[list[str], str]:
    """Labels of each operand and of the result, the axes of "..." spelled out."""
    inputs, arrow, result = equation.partition("->")
    terms = inputs.split(",")
    spare = [letter for letter in ascii_letters if letter not in equation]
    # How many axes each "..." stands for.
    widths = [
        max(0, len(shape) - len(term.replace("...", ""))) if "..." in term else 0
        for term, shape in zip(terms, shapes, strict=False)
    ]
    # They are matched from the right, as in broadcasting.
    common = "".join(spare[: max(widths, default=0)])
    spelled = [
        term.replace("...", common[len(common) - width :]) for term, width in zip(terms, widths, strict=False)
    ]
    if len(terms) != len(shapes) or any(len(t) != len(s) for t, s in zip(spelled, shapes, strict=True)):
        got = f"equation {equation} on shapes {list(shapes)}"
        raise ExportError(f"cost of {subject}", got=got, expected="one that fits them")
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        result = "..." + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return spelled, result.replace("...", common)
