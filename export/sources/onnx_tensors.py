"""Which rows an ONNX file takes, which tensor holds its scores, and how both become a member's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.sources import ExportOptions, Rows
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import DEFAULT_DOMAINS, given_inputs

TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.DOUBLE: "FP64",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
}
# Names of the nodes that join a member's tensors to the file's begin with it.
ADDED = "adapted/"
BATCH = "batch"
_FLOATS = {"FP32": np.float32, "FP16": np.float16, "FP64": np.float64}
# Numbers of channels that pictures have; they tell the layout where no option does.
_CHANNELS = (1, 3, 4)
_TO_LAST = (0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class FileInput:
    """The one input of a file."""

    name: str  # in the file
    dtype: str  # Triton's word for its type
    dims: tuple[int, ...]  # of one row in the file's own layout, all fixed
    behind_processing: bool = False  # whether the exporter puts an image processing in front
    channels_last: bool = False  # whether the file takes [H, W, channels] where the member takes [channels, H, W]

    @property
    def member_dims(self) -> tuple[int, ...]:
        """Dims of a row as the network of the member takes it."""
        return (self.dims[2], *self.dims[:2]) if self.channels_last else self.dims

    @property
    def member_dtype(self) -> str:
        """Dtype of such a row; what comes out of an image processing is FP32."""
        return "FP32" if self.behind_processing else self.dtype

    def file_rows(self, rows: Rows) -> Rows:
        """Rows (n, *member_dims) as the file takes them."""
        if self.behind_processing:
            rows = rows.astype(_FLOATS[self.dtype], copy=False)
        return np.ascontiguousarray(rows.transpose(_TO_LAST)) if self.channels_last else rows

    def changes(self) -> list[str]:
        """What `adapt` does, and what is left as no other member has it, in words."""
        words = ["input cast from FP32 to " + self.dtype] if self.dtype != self.member_dtype else []
        if self.channels_last:
            words.append(f"channels first made channels last, as the file takes {list(self.dims)} (NHWC)")
        elif not self.behind_processing and _looks_channels_last(self.dims):
            words.append(f"takes {list(self.dims)} as the file does, channels last (NHWC)")
        return words

    def adapt(self, graph: onnx.GraphProto, name: str) -> None:
        """Makes the graph take the member's rows, of fixed dims, instead of the file's.

        `name` is that of the file's input by now; no other in the graph, changed in place, begins with ADDED.
        """
        onnx_types = {word: key for key, word in TYPES.items()}
        steps: list[tuple[str, dict[str, Any]]] = []
        if self.dtype != self.member_dtype:
            steps.append(("Cast", {"to": onnx_types[self.dtype]}))
        if self.channels_last:
            steps.append(("Transpose", {"perm": _TO_LAST}))
        names = [f"{ADDED}input_{index}" for index in range(len(steps))] + [name]
        for index, (kind, attributes) in enumerate(steps):
            node = helper.make_node(kind, [names[index]], [names[index + 1]], name=names[index], **attributes)
            graph.node.insert(index, node)
        del graph.input[:]
        graph.input.append(
            helper.make_tensor_value_info(names[0], onnx_types[self.member_dtype], [BATCH, *self.member_dims])
        )


def _looks_channels_last(dims: Sequence[int]) -> bool:
    return len(dims) == 3 and dims[2] in _CHANNELS and dims[0] not in _CHANNELS


def input_of(model: onnx.ModelProto, options: ExportOptions, subject: str) -> FileInput:
    """The input of a file, free dims as asked for; ExportError where it cannot be a member's input."""
    inputs = given_inputs(model.graph)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ExportError(subject, got=f"{len(inputs)} inputs ({names})", expected="one")
    name, what = inputs[0].name, f"{subject} input {inputs[0].name}"
    dtype = dtype_of(inputs[0].type, what)
    declared = _declared(inputs[0].type.tensor_type, options, what)
    dims = _filled(declared, options, what)
    if options.mean is None and options.std is None:
        return FileInput(name=name, dtype=dtype, dims=dims)
    if dtype not in _FLOATS or len(dims) != 3:
        raise ExportError(
            what,
            got=f"{dtype} {list(dims)}",
            expected="FP32 (channels, height, width) behind `mean` and `std`",
            fix="leave them out: the file takes its rows as they are" if dtype not in _FLOATS else None,
        )
    last = _channel_axis(dims, options) == 2
    return FileInput(name=name, dtype=dtype, dims=dims, behind_processing=True, channels_last=last)


def dtype_of(kind: onnx.TypeProto, what: str) -> str:
    """Triton's word for the type of a tensor; ExportError for what is none, or of a type that no member takes."""
    if not kind.HasField("tensor_type"):
        word = (kind.WhichOneof("value") or "value without a type").removesuffix("_type").replace("_", " ")
        raise ExportError(what, got=f"a {word}", expected=f"a tensor of {', '.join(TYPES.values())}")
    if kind.tensor_type.elem_type not in TYPES:
        word = TensorProto.DataType.Name(kind.tensor_type.elem_type)
        raise ExportError(what, got=word, expected=", ".join(TYPES.values()))
    return TYPES[kind.tensor_type.elem_type]


def _declared(tensor: onnx.TypeProto.Tensor, options: ExportOptions, what: str) -> tuple[int, ...]:
    """Dims of a row as the file has them, -1 where it leaves them free."""
    if not tensor.HasField("shape"):
        if options.dims is None:
            fix = "give the dims of a row with `dims`, as in `dims` 3,224,224"
            raise ExportError(what, got="no shape", expected="a batch axis first, then the dims of a row", fix=fix)
        return (-1,) * len(options.dims)
    # Some exporters write -1 for a free size.
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1 for dim in tensor.shape.dim]
    if len(sizes) < 2:
        raise ExportError(what, got=f"shape {sizes}", expected="a batch axis first, then the dims of a row")
    if sizes[0] >= 0:
        got, fix = f"a batch axis fixed at {sizes[0]}", "export it again with a dynamic first axis"
        raise ExportError(what, got=got, expected="a free one", fix=fix)
    if 0 in sizes:
        raise ExportError(what, got=f"dims {sizes[1:]}", expected="sizes of at least 1")
    return tuple(sizes[1:])


def _channel_axis(dims: Sequence[int], options: ExportOptions) -> int | None:
    """Where a row has its channels, None where it is no picture: first, unless the means or the sizes say last."""
    if len(dims) != 3:
        return None
    given = options.mean or options.std
    if given is not None and len(given) in (dims[0], dims[2]):
        return 0 if len(given) == dims[0] else 2
    return 2 if _looks_channels_last(dims) else 0


def _filled(dims: tuple[int, ...], options: ExportOptions, what: str) -> tuple[int, ...]:
    """The dims of a row, free ones as asked for; none may stay free or differ from the file's."""
    channels = _channel_axis(dims, options)
    for argument, given in _given(dims, channels, options, what):
        pairs = list(zip(dims, given, strict=False))
        if len(given) != len(dims) or any(-1 not in pair and pair[0] != pair[1] for pair in pairs):
            shown = [size for size in given if size != -1] if argument == "resolution_px" else list(given)
            expected = f"what the file takes, {_shown(dims)}"
            raise ExportError(f"{what} `{argument}`", got=shown, expected=expected)
        dims = tuple(max(pair) for pair in pairs)
    if -1 in dims:
        sides_only = channels is not None and dims[channels] != -1
        fix = "give `resolution_px` or `dims`" if sides_only else "give `dims`, as in `dims` 3,224,224"
        got = f"dims {_shown(dims)} after the batch axis"
        raise ExportError(what, got=got, expected="fixed sizes", fix=fix)
    return dims


def _given(
    dims: tuple[int, ...], channels: int | None, options: ExportOptions, what: str
) -> list[tuple[str, tuple[int, ...]]]:
    """Argument -> the dims that it says, -1 where it says nothing."""
    found = [("dims", options.dims)] if options.dims is not None else []
    if options.resolution_px is not None:
        if channels is None:
            expected = f"none, as the file takes no picture but {_shown(dims)}"
            raise ExportError(f"{what} `resolution_px`", got=options.resolution_px, expected=expected)
        sides = (1, 2) if channels == 0 else (0, 1)
        found.append(("resolution_px", tuple(options.resolution_px if axis in sides else -1 for axis in range(3))))
    given = options.mean or options.std
    if given is not None and channels is not None and dims[channels] == -1:
        found.append(("mean", tuple(len(given) if axis == channels else -1 for axis in range(3))))
    return found


def _shown(shape: Iterable[Any]) -> str:
    return f"[{', '.join({-1: 'free', None: '?'}.get(size, str(size)) for size in shape)}]"


_SCORE_TYPES = {"tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64"}
_WORDS = {**_SCORE_TYPES, "tensor(bfloat16)": "BF16", "tensor(bool)": "BOOL", "tensor(string)": "STRING"}
_ANOTHER = "name another output, or a tensor inside the graph, with `output_name`"
_ML = "ai.onnx.ml"
# Words that the names of score outputs tend to have.
_LIKELY = ("logit", "prob", "score", "class", "output")


@dataclass(frozen=True, kw_only=True)
class FileOutput:
    """The tensor that holds the scores."""

    name: str  # in the file's graph
    asked: str  # name of the output that stands for it, another where that is a map made of it
    labels: tuple[str, ...] | None = None  # class names where the graph has them beside the scores

    def changes(self, answer: Rows) -> list[str]:
        """Changes to the output, in words; `answer` is what the file gives for some rows."""
        words = []
        if self.name != self.asked:
            words.append(f"output {self.asked} taken as the tensor {self.name} it is made of")
        if answer.ndim > 2:
            words.append(f"output of shape {_shown(('n', *answer.shape[1:]))} flattened")
        return words


def output_of(model: onnx.ModelProto, outputs: Sequence[Any], wanted: str | None, subject: str) -> FileOutput:
    """The output to take: the wanted one, which may be a tensor inside the graph, or the only one.

    `outputs` is what ONNX Runtime says of the file's: name, type and shape of each. Raises ExportError where
    several are there and none is chosen, or the chosen one is not there or cannot be scores.
    """
    found = {one.name: one for one in outputs}
    made = {name: node for node in model.graph.node for name in node.output}
    fix = _suggestion(outputs, made)
    if wanted is None and len(found) > 1:
        shown = ", ".join(map(_described, outputs))
        choose = f"choose with `output_name`{fix and f', {fix}'}"
        raise ExportError(subject, got=f"outputs {shown}", expected="one", fix=choose)
    name = wanted or outputs[0].name
    if name not in found and name not in made:
        raise ExportError(f"{subject} `output_name`", got=name, expected=" or ".join(found), fix=fix or None)
    node = made.get(name)
    while node is not None and node.op_type == "Identity" and node.domain in DEFAULT_DOMAINS:
        node = made.get(node.input[0])
    if node is not None and (node.op_type, node.domain) == ("ZipMap", _ML):
        return FileOutput(name=node.input[0], asked=name, labels=_labels(node))
    if name in found and found[name].type not in _SCORE_TYPES:
        kind = found[name].type
        other = f"choose another with `output_name`, {fix}" if fix else _ANOTHER
        if not fix and "map" in kind:
            other = (
                "convert it again without maps (zipmap off), or name a tensor inside the graph with `output_name`"
            )
        expected = "scores, a float tensor"
        raise ExportError(f"{subject} output {name}", got=_kind(kind), expected=expected, fix=other)
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
        got = f"shape {list(answer.shape)} for {rows} rows"
        raise ExportError(what, got=got, expected="a row of scores per row")


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
    likely = [
        one.name
        for one in outputs
        if _may_be_scores(one) or getattr(made.get(one.name), "op_type", "") == "ZipMap"
    ]
    named = [name for name in likely if any(word in name.lower() for word in _LIKELY)]
    best = next(iter(named or likely), None)
    return f"most likely `output_name` {best}" if best is not None else ""


def _may_be_scores(one: Any) -> bool:
    sizes = [size for size in one.shape[1:] if size != 1]
    return one.type in _SCORE_TYPES and len(one.shape) != 1 and len(sizes) <= 1


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


def declare_output(graph: onnx.GraphProto, name: str, answer: Rows | None = None) -> None:
    """Makes a tensor of a graph its only output, in place.

    Its type and dims are those of the `answer` (n, ...) to some rows; None leaves them to inference.
    """
    value = onnx.ValueInfoProto(name=name)
    if answer is not None:
        kind = helper.np_dtype_to_tensor_dtype(answer.dtype)
        value = helper.make_tensor_value_info(name, kind, [BATCH, *answer.shape[1:]])
    del graph.output[:]
    graph.output.append(value)


def adapt_output(graph: onnx.GraphProto, name: str, answer: Rows) -> None:
    """Makes a tensor (n, ...) of a graph its output (n, classes), in place; `answer` is what it is for some rows.

    No name in the graph begins with ADDED but those of its input and of this tensor.
    """
    made = {output for node in graph.node for output in node.output}
    if answer.ndim > 2 or name not in made:
        # An output that is an input too cannot be renamed.
        kind, source, name = "Flatten" if answer.ndim > 2 else "Identity", name, f"{ADDED}output"
        graph.node.append(helper.make_node(kind, [source], [name], name=name))
    declare_output(graph, name, answer.reshape(len(answer), -1))
