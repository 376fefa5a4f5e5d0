"""TF-IDF of words and of neighbours, then logistic regression: one ONNX graph from text to logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import StringTensorType
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from orchestrator.graphs.combining import IR_VERSION, OPSET

# Python's re and the RE2 of ONNX Runtime cut it alike.
_WORDS = "[a-zA-Z0-9_]+"
# Of the operator that makes letters small; en_US.UTF-8, what it takes otherwise, is not on every machine.
_LOCALE = "C.UTF-8"


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One size: the most frequent `features` of single words and, up to `longest`, of neighbours."""

    features: int
    longest: int = 1
    inverse_penalty: float = 10.0

    def trained(self, texts: Sequence[str], labels: npt.NDArray[np.int64]) -> Pipeline:
        """The fitted pipeline; the same rows give the same one."""
        # Not sublinear_tf: skl2onnx makes log(1 + tf) of scikit-learn's 1 + log(tf).
        words = TfidfVectorizer(
            token_pattern=_WORDS,
            ngram_range=(1, self.longest),
            min_df=2,
            max_features=self.features,
            dtype=np.float32,
        )
        regression = LogisticRegression(C=self.inverse_penalty, max_iter=100)
        pipeline = make_pipeline(words, regression).fit(texts, labels)
        # What is written down, and what the graph then says, are these weights.
        regression.coef_ = regression.coef_.astype(np.float16).astype(np.float32)
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
    (features,) = graph.output
    weights = {"weight": regression.coef_.T.astype(np.float16), "bias": regression.intercept_.astype(np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    graph.node.append(helper.make_node("Cast", ["weight"], ["weight_fp32"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Gemm", [features.name, "weight_fp32", "bias"], ["logits"]))
    classes = len(regression.intercept_)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]))
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.name = "linear"
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def logits_of_pipeline(pipeline: Pipeline, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """What the pipeline says of texts, float32 (n, k)."""
    found: npt.NDArray[np.float32] = pipeline.decision_function(texts).astype(np.float32)
    return found
