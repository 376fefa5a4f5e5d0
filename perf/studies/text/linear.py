"""TF-IDF of words, marks and their neighbours, then logistic regression: one ONNX graph from text to logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import StringTensorType
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import Pipeline, make_pipeline

from orchestrator.graphs.combining import IR_VERSION, OPSET

# Words, numbers and marks, those of ASCII, which Python's re and the RE2 of ONNX Runtime cut alike.
_WORDS = r"[a-zA-Z0-9]+|[!-/:-@\[-`{-~]"
# Of the operator that makes letters small; en_US.UTF-8, what it takes otherwise, is not on every machine.
_LOCALE = "C.UTF-8"


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One size: the most frequent `features` of single words and, up to `longest`, of neighbours."""

    features: int
    longest: int = 1
    penalty: float = 4e-6

    def trained(self, texts: Sequence[str], labels: npt.NDArray[np.int64]) -> Pipeline:
        """The fitted pipeline; the same rows give the same one."""
        # Not sublinear_tf: skl2onnx makes log(1 + tf) of scikit-learn's 1 + log(tf).
        settings: dict[str, Any] = {
            "token_pattern": _WORDS,
            "ngram_range": (1, self.longest),
            "min_df": 2,
            "dtype": np.float32,
        }
        frequent = TfidfVectorizer(max_features=self.features, **settings).fit(texts).vocabulary_
        # skl2onnx takes a pair for one word where it does not know both.
        known = sorted(term for term in frequent if all(word in frequent for word in term.split(" ")))
        words = TfidfVectorizer(vocabulary=known, **settings)
        regression = SGDClassifier(
            loss="log_loss", alpha=self.penalty, max_iter=10, tol=None, average=True, random_state=0
        )
        pipeline = make_pipeline(words, regression).fit(texts, labels)
        # What is written down, and what the graph then says, are these weights.
        words.idf_ = words.idf_.astype(np.float16).astype(np.float64)
        idf = words.idf_[None, :]
        regression.coef_ = ((idf * regression.coef_).astype(np.float16) / idf).astype(np.float32)
        return pipeline


def onnx_from_pipeline(pipeline: Pipeline) -> onnx.ModelProto:
    """The graph: text STRING (n, 1) -> logits float32 (n, k); weights are kept in half precision."""
    words, regression = pipeline
    proto = to_onnx(
        words,
        initial_types=[("text", StringTensorType([None, 1]))],
        options={id(words): {"tokenexp": _WORDS, "locale": _LOCALE}},
        target_opset={"": OPSET, "ai.onnx.ml": 3},
    )
    graph = proto.graph
    # Those of scikit-learn's graph that weigh and normalise work on all features, nearly all of which are 0.
    counting = next(place for place, node in enumerate(graph.node) if node.op_type == "TfIdfVectorizer")
    del graph.node[counting + 1 :]
    read = {name for node in graph.node for name in node.input}
    for unused in [one for one in graph.initializer if one.name not in read]:
        graph.initializer.remove(unused)
    _add_regression(graph, graph.node[counting].output[0], words, regression)
    classes = len(regression.intercept_)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]))
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.name = "linear"
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _add_regression(
    graph: onnx.GraphProto, counts: str, words: TfidfVectorizer, regression: SGDClassifier
) -> None:
    """From counts (n, features) to logits (n, k), by the features that a text has.

    Each adds its weights to its text's sums, and the square of its own weight to a last one: the length of the
    text's vector is the root of that.
    """
    rows = np.column_stack([words.idf_[:, None] * regression.coef_.T, words.idf_])
    classes = len(regression.intercept_)
    constants = {
        "weight": rows.astype(np.float16),
        "bias": regression.intercept_.astype(np.float32),
        "nothing": np.array([0], np.float32),
        "least": np.array([1e-12], np.float32),
        "width": np.array([classes + 1], np.int64),
        "sizes": np.array([classes, 1], np.int64),
        "last": np.array([1], np.int64),
        "first": np.array([0], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    node = helper.make_node
    graph.node.extend([
        node("Cast", ["weight"], ["weight_fp32"], to=TensorProto.FLOAT),
        node("NonZero", [counts], ["found"]),
        node("Transpose", ["found"], ["places"], perm=[1, 0]),
        node("GatherND", [counts, "places"], ["times"]),
        node("Unsqueeze", ["times", "last"], ["times_column"]),
        node("Split", ["found"], ["text_row", "feature_row"], axis=0, num_outputs=2),
        node("Squeeze", ["feature_row", "first"], ["features"]),
        node("Transpose", ["text_row"], ["texts"], perm=[1, 0]),
        node("Gather", ["weight_fp32", "features"], ["weights"]),
        node("Mul", ["weights", "times_column"], ["terms"]),
        node("Split", ["terms", "sizes"], ["term_logits", "term_lengths"], axis=1),
        node("Mul", ["term_lengths", "term_lengths"], ["term_squares"]),
        node("Concat", ["term_logits", "term_squares"], ["parts"], axis=1),
        node("Shape", [counts], ["texts_shape"], end=1),
        node("Concat", ["texts_shape", "width"], ["sums_shape"], axis=0),
        node("Expand", ["nothing", "sums_shape"], ["none"]),
        node("ScatterND", ["none", "texts", "parts"], ["sums"], reduction="add"),
        node("Split", ["sums", "sizes"], ["sum_logits", "sum_squares"], axis=1),
        node("Sqrt", ["sum_squares"], ["length"]),
        node("Max", ["length", "least"], ["divisor"]),
        node("Div", ["sum_logits", "divisor"], ["scaled"]),
        node("Add", ["scaled", "bias"], ["logits"]),
    ])  # fmt: skip


def logits_of_pipeline(pipeline: Pipeline, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """What the pipeline says of texts, float32 (n, k)."""
    found: npt.NDArray[np.float32] = pipeline.decision_function(texts).astype(np.float32)
    return found
