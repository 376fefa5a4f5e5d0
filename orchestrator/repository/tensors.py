"""Names, dtypes and shapes of tensors, from configs and from ONNX graphs, in one form.

An unknown size is -1. Shapes from a config have no batch axis, shapes from a graph have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto
from tritonclient.grpc.model_config_pb2 import DataType


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as a file states it, right or wrong: a damaged file may name it nothing at all."""

    name: str
    dtype: str
    dims: tuple[int, ...]


Tensors = dict[str, Tensor]
# (shape in a configuration, shape in a file) -> whether the one describes the other
Agree = Callable[[Sequence[int], Sequence[int]], bool]
_FROM_ONNX: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.STRING: "BYTES",
}


def tensors_from_config(entries: Iterable[Any]) -> Tensors:
    """The inputs or the outputs of a config, as the model itself sees them (after any reshape)."""
    return {
        entry.name: _stated(entry, entry.reshape.shape if entry.HasField("reshape") else entry.dims)
        for entry in entries
    }


def served_tensors(entries: Iterable[Any]) -> Tensors:
    """The same as clients and other models see them, before any reshape; optional inputs are left out."""
    return {entry.name: _stated(entry, entry.dims) for entry in entries if not getattr(entry, "optional", False)}


def tensors_from_graph(graph: onnx.GraphProto) -> tuple[Tensors, Tensors]:
    """The inputs and outputs of an ONNX graph, batch axis first."""
    # Before IR version 4 weights are listed among the inputs too.
    weights = {weight.name for weight in graph.initializer}
    inputs = {str(value.name): _tensor(value) for value in graph.input if value.name not in weights}
    return inputs, {str(value.name): _tensor(value) for value in graph.output}


def fits(got: Sequence[int], expected: Sequence[int]) -> bool:
    """True where two shapes can be the same, unknown sizes being any."""
    return len(got) == len(expected) and all(a == b or -1 in (a, b) for a, b in zip(got, expected, strict=True))


def may_be(config: Sequence[int], graph: Sequence[int]) -> bool:
    """True where Triton's ONNX Runtime backend takes an input: what the graph leaves free may be fixed."""
    return len(config) == len(graph) and all(b in (a, -1) for a, b in zip(config, graph, strict=True))


def equals(config: Sequence[int], graph: Sequence[int]) -> bool:
    """True where that backend takes an output: what the graph leaves free stays free."""
    return tuple(config) == tuple(graph)


def _stated(entry: Any, dims: Iterable[int]) -> Tensor:
    dtype = DataType.Name(entry.data_type).removeprefix("TYPE_")
    return Tensor(name=entry.name, dtype="BYTES" if dtype == "STRING" else dtype, dims=tuple(dims))


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Tensor(name=str(value.name), dtype=_FROM_ONNX.get(kind.elem_type, "unknown"), dims=dims)
