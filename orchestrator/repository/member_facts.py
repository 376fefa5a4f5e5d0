"""How a model of a repository is asked, as its own files say: tensors, batch limit, instances.

Models that were not exported here have no manifest; their configuration says it, and for ONNX files without one
Triton's own rules of completion do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.repository.index import config_of, model_file, onnx_from_path
from orchestrator.repository.tensors import Tensor, Tensors, fits, served_tensors, tensors_from_graph
from orchestrator.spec.output_kind import SCORE_DTYPES
from orchestrator.spec.triton import COMPLETED_BATCH, stated_instances


@dataclass(frozen=True, kw_only=True)
class MemberFacts:
    """A model as clients see it.

    Args:
        inputs, outputs: without the batch axis; None where no file says.
        max_batch_size: most rows of one request, 0 for a model without batches; None where no file says.
        instances: how many requests it runs at once; None where its configuration leaves that to the server.
    """

    inputs: Tensors | None
    outputs: Tensors | None
    max_batch_size: int | None
    instances: int | None

    def scores(self, classes: int) -> list[str]:
        """Names of the outputs that may hold a score for each of k classes; of free size only if no other does."""
        fitting = [one for one in (self.outputs or {}).values() if self.may_hold_scores(one.name, classes)]
        exact = [one.name for one in fitting if one.dims == (classes,)]
        return exact or [one.name for one in fitting]

    def may_hold_scores(self, name: str, classes: int) -> bool:
        """Whether there is an output of this name that may hold a score for each of k classes."""
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
    """The same from a configuration, and the graph of an ONNX file that it may leave things to."""
    limit = batch_limit(config, graph)
    sides: list[Tensors | None] = []
    for side in ("input", "output"):
        stated = [] if config is None else getattr(config, side)
        sides.append(served_tensors(stated) if stated else _completed(graph, side, batched=bool(limit)))
    stated_config = {} if config is None else MessageToDict(config, preserving_proto_field_name=True)
    return MemberFacts(
        inputs=sides[0], outputs=sides[1], max_batch_size=limit, instances=stated_instances(stated_config)
    )


def batch_limit(config: ModelConfig | None, graph: onnx.GraphProto | None) -> int | None:
    """Most rows of one request that a server lets a model take, 0 for a model without batches.

    Where an ONNX file completes a configuration that names not all tensors, it gets a limit of its own.
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
