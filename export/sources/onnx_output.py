"""Which tensor of an ONNX file holds the scores, and how they become (rows, classes)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from export.sources.base import Rows
from export.sources.onnx_input import ADDED, BATCH
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import DEFAULT_DOMAINS

_FLOATS = {"tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64"}
_WORDS = {**_FLOATS, "tensor(bfloat16)": "BF16", "tensor(bool)": "BOOL", "tensor(string)": "STRING"}
_ANOTHER = "name another output, or a tensor inside the graph, with `output_name`"
_ML = "ai.onnx.ml"
# Words that the names of score outputs tend to have.
_LIKELY = ("logit", "prob", "score", "class", "output")


@dataclass(frozen=True, kw_only=True)
class FileOutput:
    """The tensor that holds the scores.

    Args:
        name: in the file's graph.
        asked: name of the output that stands for it, another where that is a map made of it.
        labels: class names where the graph has them beside the scores.
    """

    name: str
    asked: str
    labels: tuple[str, ...] | None = None

    def changes(self, answer: Rows) -> list[str]:
        """Changes to the output, in words; `answer` is what the file gives for some rows."""
        words = (
            []
            if self.name == self.asked
            else [f"output {self.asked} taken as the tensor {self.name} it is made of"]
        )
        if answer.ndim > 2:
            words.append(f"output of shape {_shown(('n', *answer.shape[1:]))} flattened")
        return words


def output_of(model: onnx.ModelProto, outputs: Sequence[Any], wanted: str | None, subject: str) -> FileOutput:
    """The output to take.

    Args:
        model: as it is in the file.
        outputs: ONNX Runtime's description of its outputs: name, type and shape of each.
        wanted: name asked for; a tensor inside the graph will do too.
        subject: the source, for messages.

    Raises:
        ExportError: several and none chosen, or none of the chosen name, or one that cannot be scores.
    """
    found = {one.name: one for one in outputs}
    made = {name: node for node in model.graph.node for name in node.output}
    fix = _suggestion(outputs, made)
    if wanted is None and len(found) > 1:
        shown = ", ".join(map(_described, outputs))
        raise ExportError(
            subject, got=f"outputs {shown}", expected="one", fix=f"choose with `output_name`{fix and f', {fix}'}"
        )
    name = wanted or outputs[0].name
    if name not in found and name not in made:
        raise ExportError(f"{subject} `output_name`", got=name, expected=" or ".join(found), fix=fix or None)
    maps = _behind_identities(name, made)
    if maps is not None and (maps.op_type, maps.domain) == ("ZipMap", _ML):
        return FileOutput(name=maps.input[0], asked=name, labels=_labels(maps))
    if name in found and found[name].type not in _FLOATS:
        other = f"choose another with `output_name`, {fix}" if fix else _without_scores(found[name].type)
        raise ExportError(
            f"{subject} output {name}", got=_kind(found[name].type), expected="scores, a float tensor", fix=other
        )
    return FileOutput(name=name, asked=name)


def require_scores(answer: Any, *, rows: int, subject: str, name: str) -> None:
    """Raises ExportError where a file's answer is not (rows, classes), ignoring axes of size 1."""
    what = f"{subject} output {name}"
    expected = "2 axes, rows and classes"
    if not isinstance(answer, np.ndarray) or answer.dtype.kind != "f":
        got = answer.dtype.name if isinstance(answer, np.ndarray) else f"a {type(answer).__name__}"
        raise ExportError(what, got=got, expected="scores, a float tensor", fix=_ANOTHER)
    if answer.ndim < 2 or (answer.ndim > 2 and sum(size != 1 for size in answer.shape[1:]) != 1):
        shape = _shown(("n", *answer.shape[1:]))
        raise ExportError(what, got=f"{answer.ndim} axes, {shape}", expected=expected, fix=_ANOTHER)
    if len(answer) != rows:
        raise ExportError(
            what, got=f"shape {list(answer.shape)} for {rows} rows", expected="a row of scores per row"
        )


def _behind_identities(name: str, made: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The node that makes a tensor, looking through nodes that hand it on."""
    node = made.get(name)
    while node is not None and node.op_type == "Identity" and node.domain in DEFAULT_DOMAINS:
        node = made.get(node.input[0])
    return node


def _labels(zip_map: onnx.NodeProto) -> tuple[str, ...] | None:
    """Class names of a ZipMap in order; None where they are the numbers from 0 on."""
    for part in zip_map.attribute:
        if part.name == "classlabels_strings" and part.strings:
            return tuple(text.decode("utf-8", "replace") for text in part.strings)
        if part.name == "classlabels_int64s" and list(part.ints) != list(range(len(part.ints))):
            return tuple(map(str, part.ints))
    return None


def _suggestion(outputs: Sequence[Any], made: dict[str, onnx.NodeProto]) -> str:
    """The output that most likely holds the scores, as a hint; empty where none looks like it."""
    likely = [one.name for one in outputs if _may_be_scores(one) or _is_zip_map(made.get(one.name))]
    named = [name for name in likely if any(word in name.lower() for word in _LIKELY)]
    best = next(iter(named or likely), None)
    return f"most likely `output_name` {best}" if best is not None else ""


def _may_be_scores(one: Any) -> bool:
    sizes = [size for size in one.shape[1:] if size != 1]
    return one.type in _FLOATS and len(one.shape) != 1 and len(sizes) <= 1


def _is_zip_map(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "ZipMap"


def _described(one: Any) -> str:
    known = f" {_shown(one.shape)}" if one.type.startswith("tensor") and one.shape else ""
    return f"{one.name} ({_kind(one.type)}{known})"


def _kind(word: str) -> str:
    """ONNX Runtime's word for a type, "seq(map(int64,tensor(float)))", in words."""
    if word.startswith("tensor("):
        return _WORDS.get(word, word[7:-1].upper())
    starts = {"seq(map": "a sequence of maps", "seq": "a sequence of tensors", "map": "a map"}
    starts |= {"optional": "an optional value", "sparse": "a sparse tensor"}
    return next((text for start, text in starts.items() if word.startswith(start)), word)


def _without_scores(kind: str) -> str:
    if "map" in kind:
        return "convert it again without maps (zipmap off), or name a tensor inside the graph with `output_name`"
    return _ANOTHER


def _shown(shape: Iterable[Any]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def declare_output(graph: onnx.GraphProto, name: str, answer: Rows | None = None) -> None:
    """Makes a tensor of a graph its only output.

    Args:
        graph: changed in place.
        name: of the tensor.
        answer: (n, ...) to some rows, whose type and dims are then declared; None leaves them to inference.
    """
    value = onnx.ValueInfoProto(name=name)
    if answer is not None:
        kind = helper.np_dtype_to_tensor_dtype(answer.dtype)
        value = helper.make_tensor_value_info(name, kind, [BATCH, *answer.shape[1:]])
    del graph.output[:]
    graph.output.append(value)


def adapt_output(graph: onnx.GraphProto, name: str, answer: Rows) -> None:
    """Makes a tensor (n, ...) of a graph its output (n, classes).

    Args:
        graph: changed in place; no name in it begins with ADDED but that of its input, and this one.
        name: of the tensor.
        answer: to some rows.
    """
    made = {output for node in graph.node for output in node.output}
    if answer.ndim > 2 or name not in made:
        # An output that is an input too cannot be renamed.
        kind, source, name = "Flatten" if answer.ndim > 2 else "Identity", name, f"{ADDED}output"
        graph.node.append(helper.make_node(kind, [source], [name], name=name))
    declare_output(graph, name, answer.reshape(len(answer), -1))
