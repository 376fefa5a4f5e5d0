"""Pipelines of scikit-learn that begin with the words of a text: as graphs on STRING that split it likewise."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import StringTensorType
from sklearn.feature_extraction.text import CountVectorizer

from export.compat import with_one_import
from export.sources import Rows
from export.sources.onnx_tensors import BATCH, declare_output
from orchestrator.graphs import editing

TEXT, LOGITS = "text", "logits"
_USUAL_PATTERN = r"(?u)\b\w\w+\b"
# The same words for ONNX Runtime, whose \w has no letters but those of ASCII.
_SAME_WORDS = r"[\p{L}\p{N}_]{2,}"
# The converter writes en_US.UTF-8, which images of servers seldom have; this one is part of the C library.
_LOCALE = "C.UTF-8"
# What stands between words of made-up texts, and words that no vocabulary has.
_BETWEEN = (" ", " ", " ", ", ", ". ", "\n", "-", "'", " (", "\u00a0", "\u2028")
_OTHERS = ("qzxv", "a", "x", "GRÜSSE", "naïve", "Ελληνικά", "ИЮЛЬ", "日本語", "42", "don't", "e_mail", "🎉")


def reads_text(classifier: Any) -> bool:
    """Whether a classifier is a pipeline whose first step counts words."""
    steps: Any = getattr(classifier, "steps", None) or [("", None)]
    return isinstance(steps[0][1], CountVectorizer)


def graph_of_text(classifier: Any, name: str, probabilities: str, *, opsets: dict[str, int]) -> onnx.ModelProto:
    """The pipeline as a graph: `name` STRING [n, 1] in, logits FP32 [n, k] out.

    `probabilities` is what the converter calls the output that is wanted; it raises whatever it meets.
    """
    vectorizer = classifier.steps[0][1]
    if vectorizer.stop_words and vectorizer.ngram_range[1] > 1:
        # The converter drops them from whole texts alone, so that words on both sides would be no neighbours.
        raise ValueError("stop words together with sequences of words; fit it without one of the two")
    pattern = _SAME_WORDS if vectorizer.token_pattern == _USUAL_PATTERN else vectorizer.token_pattern
    model: onnx.ModelProto = to_onnx(
        classifier,
        initial_types=[(name, StringTensorType([None, 1]))],
        options={id(classifier): {"zipmap": False}, id(vectorizer): {"tokenexp": pattern}},
        target_opset=opsets,
    )
    for node in model.graph.node:
        if node.op_type == "StringNormalizer":
            kept = [part for part in node.attribute if part.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("locale", _LOCALE)])
    if getattr(vectorizer, "sublinear_tf", False):
        _mend_sublinear(model.graph)
    declare_output(model.graph, probabilities, np.zeros((1, len(classifier.classes_)), np.float32))
    editing.keep_needed(model.graph)
    with_one_import(model)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, onnx.TensorProto.STRING, [BATCH, 1]))
    editing.rename_tensors(model.graph, {probabilities: LOGITS})
    return model


def _mend_sublinear(graph: onnx.GraphProto) -> None:
    """Makes log(1 + count), as the converter writes it, 1 + log(count) for words that are there, in place."""
    makers = {node.output[0]: node for node in graph.node}
    for place, log in enumerate(graph.node):
        add = makers.get(log.input[0]) if log.op_type == "Log" else None
        if add is None or add.op_type != "Add" or makers[add.input[0]].op_type not in ("TfIdfVectorizer", "Cast"):
            continue
        count, one, result = add.input[0], add.input[1], log.output[0]
        # A word that is not there has 0 in both parts: log(max(0, 1)) and min(0, 1).
        add.op_type, log.output[0] = "Max", f"{result}_log"
        is_there = helper.make_node("Min", [count, one], [f"{result}_there"])
        total = helper.make_node("Add", [log.output[0], is_there.output[0]], [result])
        graph.node.insert(place + 1, is_there)
        graph.node.insert(place + 2, total)
        return


def texts_of(classifier: Any) -> Callable[[int, int], Rows]:
    """A function that draws n texts (n, 1), by a seed, from the words that a pipeline knows and some others."""
    # A text with a zero byte never comes to a member.
    known = [word for word in sorted(classifier.steps[0][1].vocabulary_) if "\0" not in word]

    def draw(n: int, seed: int) -> npt.NDArray[np.str_]:
        rng = np.random.default_rng(seed)
        texts = []
        for _ in range(n):
            words = [str(known[place]) for place in rng.integers(0, len(known), int(rng.integers(0, 40)))]
            words += [str(word) for word in rng.choice(_OTHERS, int(rng.integers(0, 4)))]
            rng.shuffle(words)
            words = [word.upper() if rng.random() < 0.1 and _is_usual(word) else word for word in words]
            texts.append("".join(word + str(rng.choice(_BETWEEN)) for word in words))
        return np.array(texts, np.str_).reshape(-1, 1)

    return draw


def _is_usual(word: str) -> bool:
    """Whether a word in capital letters becomes small letter for letter, as a graph does it, as in Python."""
    capitals = word.upper()
    small = [letter.lower() for letter in capitals]
    return capitals.lower() == "".join(small) and max(map(len, small), default=1) == 1


def changes_of(classifier: Any) -> list[str]:
    """What the graph of a pipeline reads otherwise than the pipeline does."""
    if not classifier.steps[0][1].lowercase:
        return []
    return [
        "makes letters small one by one: \u0130, and \u03a3 at the end of a word, otherwise than scikit-learn does"
    ]


def remedy_of(classifier: Any) -> str:
    """What may be done where the graph says something else."""
    vectorizer = classifier.steps[0][1]
    if vectorizer.ngram_range[0] == 1 and (lacks := _lacking_words(vectorizer.vocabulary_)):
        dropped = f"some of sequences it has ({', '.join(lacks[:3])}); max_df, min_df and max_features drop such"
        return f"fit it on a vocabulary with every word, it lacks {dropped}"
    said = ["the usual token_pattern"] if vectorizer.token_pattern != _USUAL_PATTERN else []
    said += ["lowercase=False on texts in small letters"] if vectorizer.lowercase else []
    return f"fit it with {' or with '.join(said or ['settings that are usual'])}"


def _lacking_words(vocabulary: Iterable[str]) -> list[str]:
    """Words in a vocabulary's sequences that it lacks by themselves; the converter numbers those wrongly."""
    known = set(vocabulary)
    return sorted({word for one in known for word in one.split(" ")} - known)


def words_work(graph: onnx.GraphProto) -> float | None:
    """Products of a row with the coefficients of a linear model, all of them; None where the graph has none."""
    found = [part for node in graph.node if node.op_type == "LinearClassifier" for part in node.attribute]
    sizes = [len(part.floats) for part in found if part.name == "coefficients"]
    return float(sum(sizes)) if sizes else None
