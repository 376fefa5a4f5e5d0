"""What a model's own files say of requests to it: tensors, batch limit, instances.

Models that were not exported here have no manifest, so their configuration is read. For ONNX files without one,
Triton's rules of completing it are applied. An unknown size is -1. Shapes from a configuration have no batch axis,
shapes from a graph have one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from orchestrator.pbtxt import json_from_config
from orchestrator.repository.index import config_of, model_file, onnx_from_path
from orchestrator.spec.output_kind import SCORE_DTYPES
from orchestrator.spec.triton import COMPLETED_BATCH, stated_instances


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as a file states it, right or wrong; in a damaged file the name may be empty."""

    name: str
    dtype: str
    dims: tuple[int, ...]


Tensors = dict[str, Tensor]
# (shape in a configuration, shape in a file) -> whether they agree
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
    """The inputs or the outputs of a configuration as the model gets them, after any reshape."""
    return {
        entry.name: _stated(entry, entry.reshape.shape if entry.HasField("reshape") else entry.dims)
        for entry in entries
    }


def served_tensors(entries: Iterable[Any]) -> Tensors:
    """The same as clients and other models see them, before any reshape; optional inputs are left out."""
    return {entry.name: _stated(entry, entry.dims) for entry in entries if not getattr(entry, "optional", False)}


def tensors_from_graph(graph: onnx.GraphProto) -> tuple[Tensors, Tensors]:
    """The inputs and outputs of an ONNX graph, batch axis first."""
    # Before IR version 4 weights are listed among the inputs, too.
    weights = {weight.name for weight in graph.initializer}
    inputs = {str(value.name): _tensor(value) for value in graph.input if value.name not in weights}
    return inputs, {str(value.name): _tensor(value) for value in graph.output}


def fits(got: Sequence[int], expected: Sequence[int]) -> bool:
    """True where two shapes can be the same; an unknown size fits any."""
    return len(got) == len(expected) and all(a == b or -1 in (a, b) for a, b in zip(got, expected, strict=True))


def may_be(config: Sequence[int], graph: Sequence[int]) -> bool:
    """True where Triton's ONNX Runtime backend accepts an input: sizes that the graph leaves free may be fixed."""
    return len(config) == len(graph) and all(b in (a, -1) for a, b in zip(config, graph, strict=True))


def equals(config: Sequence[int], graph: Sequence[int]) -> bool:
    """True where that backend accepts an output: sizes that the graph leaves free must stay free."""
    return tuple(config) == tuple(graph)


def _stated(entry: Any, dims: Iterable[int]) -> Tensor:
    dtype = DataType.Name(entry.data_type).removeprefix("TYPE_")
    return Tensor(name=entry.name, dtype="BYTES" if dtype == "STRING" else dtype, dims=tuple(dims))


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Tensor(name=str(value.name), dtype=_FROM_ONNX.get(kind.elem_type, "unknown"), dims=dims)


@dataclass(frozen=True, kw_only=True)
class MemberFacts:
    """A model as clients see it.

    Args:
        inputs, outputs: without the batch axis; None where no file says.
        max_batch_size: most rows of one request, 0 for a model without batch axis; None where no file says.
        instances: how many requests it runs at once; None where its configuration leaves that to the server.
    """

    inputs: Tensors | None
    outputs: Tensors | None
    max_batch_size: int | None
    instances: int | None

    def scores(self, classes: int) -> list[str]:
        """Names of outputs that may hold k class scores; those of unknown size only if no size fits exactly."""
        fitting = [one for one in (self.outputs or {}).values() if self.may_hold_scores(one.name, classes)]
        exact = [one.name for one in fitting if one.dims == (classes,)]
        return exact or [one.name for one in fitting]

    def may_hold_scores(self, name: str, classes: int) -> bool:
        """Whether the output of that name exists and may hold k class scores."""
        one = (self.outputs or {}).get(name)
        return one is not None and one.dtype in SCORE_DTYPES and fits(one.dims, (classes,))


def facts_from_folder(folder: Path) -> MemberFacts:
    """What the files of a model say.

    Raises:
        RepositoryError: its configuration or its ONNX file cannot be read.
    """
    config = config_of(folder)
    graph = None
    if config is None or not (config.input and config.output):
        file = model_file(folder, config)
        if file is not None and file.suffix == ".onnx" and file.is_file():
            graph = onnx_from_path(file).graph
    return facts_of(config, graph)


def facts_of(config: ModelConfig | None, graph: onnx.GraphProto | None) -> MemberFacts:
    """What a configuration says, completed from the graph of an ONNX file."""
    limit = batch_limit(config, graph)
    sides: list[Tensors | None] = []
    for side in ("input", "output"):
        stated = [] if config is None else getattr(config, side)
        sides.append(served_tensors(stated) if stated else _completed(graph, side, batched=bool(limit)))
    stated_config = {} if config is None else json_from_config(config)
    return MemberFacts(
        inputs=sides[0], outputs=sides[1], max_batch_size=limit, instances=stated_instances(stated_config)
    )


def batch_limit(config: ModelConfig | None, graph: onnx.GraphProto | None) -> int | None:
    """Most rows of one request that the server sends to a model, 0 for a model without batch axis.

    Triton sets a limit of its own where the ONNX file completes a configuration that leaves tensors out.
    """
    if config is not None and (config.max_batch_size > 0 or (config.input and config.output)):
        return int(config.max_batch_size)
    if graph is None:
        return None
    inputs, outputs = tensors_from_graph(graph)
    return COMPLETED_BATCH if _have_batch_axis((*inputs.values(), *outputs.values())) else 0


def _have_batch_axis(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.dims[:1] == (-1,) for tensor in tensors)


def _completed(graph: onnx.GraphProto | None, side: str, *, batched: bool) -> Tensors | None:
    if graph is None:
        return None
    found = tensors_from_graph(graph)[side == "output"]
    return {
        name: Tensor(name=name, dtype=one.dtype, dims=(one.dims[1:] if batched else one.dims) or (1,))
        for name, one in found.items()
    }
