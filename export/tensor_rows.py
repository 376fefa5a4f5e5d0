"""Rows of several tensors, whose length may vary: made up, cut into batches and padded.

One length per row is the first axis of every tensor whose first dim is -1. A batch is as long as its longest row;
what fills up the shorter rows is each tensor's padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from orchestrator.graphs.editing import all_graphs
from orchestrator.spec import TensorSpec
from orchestrator.spec.request import INPUT_DTYPES, TEXT, is_named_mask

# Made-up rows are this long at most: work grows with the square of the length, and kernels repeat themselves.
USUAL_LENGTH = 48


@dataclass(frozen=True, kw_only=True)
class TensorRows:
    """Rows (n, *dims) of each tensor, in the order in which a model takes them.

    Args:
        arrays: tensor -> its rows, shorter ones filled up.
        lengths: (n,), of every row; 0 where no tensor's length varies.
        pad: tensor whose length varies -> what fills up its shorter rows.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    lengths: npt.NDArray[np.int64]
    pad: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, part: Any) -> "TensorRows":
        """Some of the rows, as long as the longest of them."""
        lengths = self.lengths[part]
        longest = int(lengths.max(initial=0))
        arrays = {
            name: rows[part][:, :longest] if name in self.pad else rows[part] for name, rows in self.arrays.items()
        }
        return replace(self, arrays=arrays, lengths=lengths)

    def padded(self, length: int) -> "TensorRows":
        """The same rows, filled up to a length of at least their longest."""

        def grown(name: str, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
            missing = [(0, 0)] * rows.ndim
            missing[1] = (0, length - rows.shape[1])
            return np.pad(rows, missing, constant_values=self.pad[name])

        return replace(
            self,
            arrays={name: grown(name, rows) if name in self.pad else rows for name, rows in self.arrays.items()},
        )


AnyRows = npt.NDArray[Any] | TensorRows


def feed_of(session: Any, rows: AnyRows) -> dict[str, npt.NDArray[Any]]:
    """What an ONNX Runtime session is asked with for rows; an array is for its only input."""
    return dict(rows.arrays) if isinstance(rows, TensorRows) else {session.get_inputs()[0].name: rows}


# Of texts where nothing tells which words a model knows.
_WORDS = ("a", "word", "or", "two")


@dataclass(frozen=True, kw_only=True)
class TensorKind:
    """A tensor, and which values rows of it are made up of."""

    spec: TensorSpec
    pad: float = 0  # what fills up shorter rows, where its length varies
    below: int = 2  # of whole numbers: they are from 0 up to this, without it
    is_mask: bool = False  # ones wherever a row has something
    words: tuple[str, ...] = ()  # of texts

    @property
    def varies(self) -> bool:
        """Whether its length differs from row to row."""
        return self.spec.dims[:1] == (-1,)

    def values(self, rng: np.random.Generator, length: int) -> npt.NDArray[Any]:
        """A made-up row."""
        dims = tuple(length if size == -1 else size for size in self.spec.dims)
        if self.spec.dtype == TEXT:
            return np.array([" ".join(rng.choice(self.words or _WORDS, rng.integers(1, 13)))])
        dtype = np.dtype(INPUT_DTYPES[self.spec.dtype])
        values: npt.NDArray[Any]
        if self.is_mask:
            values = np.ones(dims)
        elif dtype.kind == "f":
            values = rng.normal(size=dims) * rng.uniform(0.4, 1.6)
        else:
            values = rng.integers(0, self.below, dims)
            if self.varies and self.below > 2:
                # A padding's value ends a row in models that have no mask, so no row has it inside.
                values = np.where(values == self.pad, (values + 1) % self.below, values)
        return values.astype(dtype)


def made_up_rows(kinds: Sequence[TensorKind], n: int, *, longest: int = 1, seed: int = 0) -> TensorRows:
    """Rows that differ in values and, where it varies, in length: from 1 to USUAL_LENGTH, or to `longest`."""
    rng = np.random.default_rng(seed)
    most = min(longest, USUAL_LENGTH)
    lengths = np.exp(rng.uniform(0, np.log(most + 1), n)).astype(np.int64).clip(1, most)
    # Both ends are there.
    lengths[: min(n, 2)] = (1, most)[: min(n, 2)]
    return rows_of_lengths(kinds, lengths, seed=seed)


def rows_of_lengths(kinds: Sequence[TensorKind], lengths: npt.NDArray[np.int64], *, seed: int = 0) -> TensorRows:
    """Made-up rows of these lengths."""
    rng = np.random.default_rng(seed)
    varying = {kind.spec.name: kind.pad for kind in kinds if kind.varies}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for kind in kinds:
        rows = [kind.values(rng, int(length)) for length in lengths]
        if kind.varies:
            shape = (len(rows), int(lengths.max(initial=0)), *rows[0].shape[1:])
            filled = np.full(shape, kind.pad, rows[0].dtype)
            for place, row in enumerate(rows):
                filled[place, : len(row)] = row
            arrays[kind.spec.name] = filled
        else:
            arrays[kind.spec.name] = np.stack(rows)
    return TensorRows(arrays=arrays, lengths=lengths if varying else np.zeros_like(lengths), pad=varying)


def lengths_of(arrays: Mapping[str, npt.NDArray[Any]], pad: Mapping[str, float]) -> npt.NDArray[np.int64]:
    """The lengths of rows that are filled up already: what follows is padding in every tensor; at least 1."""
    rows = len(next(iter(arrays.values())))
    if not pad:
        return np.zeros(rows, np.int64)
    is_used = np.zeros((rows, next(arrays[name].shape[1] for name in pad)), bool)
    for name, value in pad.items():
        used = arrays[name] != value
        is_used |= used.reshape(*used.shape[:2], -1).any(axis=2)
    return np.where(is_used.any(axis=1), is_used.shape[1] - is_used[:, ::-1].argmax(axis=1), 1).astype(np.int64)


# Operators that hand whole numbers on as they are, but for the shape.
_HANDING_ON = ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten")


def kinds_from_graph(
    graph: onnx.GraphProto, tensors: Sequence[TensorSpec], pad: Mapping[str, float]
) -> list[TensorKind]:
    """Which values a graph's inputs take: whole numbers below the size of the table that they are looked up in.

    Texts are made of the words that the graph has among its constants, and of others. A tensor is a mask where its
    name says so. `pad` is 0 where it does not name a tensor.
    """
    words = _words_of(graph) if TEXT in {one.dtype for one in tensors} else ()
    return [
        TensorKind(
            spec=one,
            pad=pad.get(one.name, 0),
            below=_table_size(graph, one.name),
            is_mask=is_named_mask(one.name) and one.dtype != TEXT,
            words=words,
        )
        for one in tensors
    ]


# Words of a vocabulary that made-up texts draw on.
_MOST_WORDS = 5000


def _words_of(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Texts among the attributes and constants of a graph, each once, and words that are none of them."""
    found = dict.fromkeys(_WORDS)
    for one in (graph, *all_graphs(graph.node)):
        for node in one.node:
            for part in node.attribute:
                texts = (*part.strings, *(part.t.string_data if part.HasField("t") else ()))
                found |= dict.fromkeys(text.decode("utf-8", "replace") for text in texts)
        for weight in one.initializer:
            found |= dict.fromkeys(text.decode("utf-8", "replace") for text in weight.string_data)
    return tuple(word for word in found if word.strip())[:_MOST_WORDS]


def _table_size(graph: onnx.GraphProto, name: str) -> int:
    """Rows of the smallest table that an input is looked up in; 2 where there is none."""
    tables = {weight.name: weight.dims for weight in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for source in node.input:
            readers.setdefault(source, []).append(node)
        # A table of lower precision is widened before it is read.
        if node.op_type in ("Cast", "DequantizeLinear", "Identity") and node.input[0] in tables:
            tables[node.output[0]] = tables[node.input[0]]
    found, names = [], [name]
    for source in names:
        for node in readers.get(source, []):
            if node.op_type == "Gather" and node.input[1] == source and node.input[0] in tables:
                axis = next((part.i for part in node.attribute if part.name == "axis"), 0)
                found.append(tables[node.input[0]][axis])
            elif node.op_type in _HANDING_ON and node.input[0] == source:
                names.append(node.output[0])
    return min(found, default=2)
