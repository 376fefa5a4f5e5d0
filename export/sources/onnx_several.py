"""What an ONNX file takes that has several inputs, or rows whose length varies; names as the user maps them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from export.sources import ExportOptions, renamed_inputs
from export.sources.onnx_tensors import ADDED, BATCH, TYPES, dtype_of
from export.tensor_rows import TensorRows, kinds_from_graph, rows_of_lengths
from orchestrator.errors import ExportError
from orchestrator.graphs import editing
from orchestrator.spec import TensorSpec
from orchestrator.spec.request import TEXT

LENGTH = "length"
# Arguments that speak of the only input of a file.
_OF_ONE = ("dims", "mean", "std", "resolution_px")


def takes_several(model: onnx.ModelProto, options: ExportOptions) -> bool:
    """Whether a file is read as one with tensors under names of their own, and lengths that may vary."""
    given = editing.given_inputs(model.graph)
    several = len(given) > 1 or any(map(_is_text, given))
    return several or bool(options.inputs or options.pads) or options.max_length is not None


class FileInputs:
    """The inputs of a file: under its names, and under those that the member has.

    Args:
        model: the file's, not changed.
        options: names, paddings and the longest row.
        subject: the source, for errors.

    Raises:
        ExportError: an input cannot be a member's, or an option does not fit.
    """

    def __init__(self, model: onnx.ModelProto, options: ExportOptions, subject: str) -> None:
        given = editing.given_inputs(model.graph)
        names = [value.name for value in given]
        wrong = [name for name in _OF_ONE if getattr(options, name) is not None]
        if wrong:
            got = f"it beside {len(given)} inputs ({', '.join(names)}) or a length that varies"
            raise ExportError(f"{subject} `{wrong[0]}`", got=got, expected="one input of fixed dims, and no names")
        unknown = sorted(set(options.pads) - set(names))
        if unknown:
            raise ExportError(f"{subject} `pads`", got=", ".join(unknown), expected=f"some of {', '.join(names)}")
        specs = [_spec(value, options, subject) for value in given]
        self.theirs = tuple(kinds_from_graph(model.graph, specs, options.pads))
        self.ours = renamed_inputs(self.theirs, options.inputs, subject=subject)
        varies = any(kind.varies for kind in self.theirs)
        if options.max_length is not None and not varies:
            shown = ", ".join(f"{one.name} {list(one.dims)}" for one in specs)
            expected = "none: every row has the same length"
            raise ExportError(f"{subject} `max_length`", got=f"it with inputs {shown}", expected=expected)
        self.longest = options.max_length or 1

    def file_rows(self, rows: TensorRows) -> TensorRows:
        """Rows under the member's names as the file takes them."""
        names = {ours.spec.name: theirs.spec.name for ours, theirs in zip(self.ours, self.theirs, strict=True)}
        return replace(
            rows,
            arrays={names[name]: array for name, array in rows.arrays.items()},
            pad={names[name]: value for name, value in rows.pad.items()},
        )

    def rows(self, n: int) -> TensorRows:
        """Made-up rows of one length under the member's names: none of them is padded."""
        return rows_of_lengths(self.ours, np.full(n, min(self.longest, 7)), seed=3)

    def inside(self) -> dict[str, str]:
        """Names for the file's inputs that no other tensor of a member has."""
        return {kind.spec.name: f"{ADDED}file_input_{place}" for place, kind in enumerate(self.theirs)}

    def declare(self, graph: onnx.GraphProto) -> dict[str, str]:
        """Makes a graph, in place, take the member's rows where it has the names of `inside` by now.

        Returns:
            those names -> the member's.
        """
        types = {word: key for key, word in TYPES.items()} | {TEXT: onnx.TensorProto.STRING}
        names = list(self.inside().values())
        del graph.input[:]
        for name, kind in zip(names, self.ours, strict=True):
            dims: Sequence[int | str] = [LENGTH if size == -1 else size for size in kind.spec.dims]
            graph.input.append(helper.make_tensor_value_info(name, types[kind.spec.dtype], [BATCH, *dims]))
        return {name: kind.spec.name for name, kind in zip(names, self.ours, strict=True)}

    def changes(self) -> list[str]:
        """Names that are others than in the file, in words."""
        pairs = [(one.spec.name, two.spec.name) for one, two in zip(self.theirs, self.ours, strict=True)]
        return [f"input {theirs} called {ours}" for theirs, ours in pairs if theirs != ours]


def _is_text(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == onnx.TensorProto.STRING


def _spec(value: onnx.ValueInfoProto, options: ExportOptions, subject: str) -> TensorSpec:
    """An input as a member's tensor: a free batch axis first, then a length or a fixed size, then fixed sizes."""
    what = f"{subject} input {value.name}"
    dtype, shape = TEXT if _is_text(value) else dtype_of(value.type, what), value.type.tensor_type.shape
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1 for dim in shape.dim]
    if len(sizes) < 2 or 0 in sizes:
        raise ExportError(what, got=f"shape {sizes}", expected="a batch axis first, then the dims of a row")
    if sizes[0] >= 0:
        fix = "export it again with a dynamic first axis"
        raise ExportError(what, got=f"a batch axis fixed at {sizes[0]}", expected="a free one", fix=fix)
    if dtype == TEXT and sizes[1:] != [1]:
        got = f"texts of dims {sizes[1:]} after the batch axis, -1 where free"
        raise ExportError(what, got=got, expected="[1]: a row's text is one element")
    if -1 in sizes[2:]:
        expected = "one free axis behind the batch, the first of a row: its length"
        raise ExportError(what, got=f"dims {sizes[1:]} after the batch axis, -1 where free", expected=expected)
    if sizes[1] == -1 and options.max_length is None:
        got = "a row of any length"
        raise ExportError(what, got=got, expected="the most that it may be", fix="give it with `max_length`")
    return TensorSpec(name=value.name, dtype=dtype, dims=tuple(sizes[1:]))
