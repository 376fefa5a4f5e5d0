"""What a cascade adds as served: requests to one, with its members' own requests taken off.

A request that may go no further than the first stage shows what that adds; one that has to be answered by the
second shows what a later one does. A model that hands every request to the first member shows how much of the
first stage is the way from one process to the other and back.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2 as pb

from orchestrator.client.endpoint import Endpoint
from orchestrator.client.over_grpc import GrpcClient
from orchestrator.decision import Policy
from orchestrator.errors import DataError
from orchestrator.pbtxt import CONFIG, text_from_config
from orchestrator.recording.scores import require_exported
from orchestrator.repository.configs import cascade_config
from orchestrator.repository.files import copy_model, write_all
from orchestrator.repository.index import plan_of
from orchestrator.repository.members import adopted_spec, facts_of_manifest
from orchestrator.repository.render import render
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec, Member, Stage, manifest_from_path
from orchestrator.spec.cascade import UNKNOWN_INPUT
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.rows import AnyRows, Array, rows_at

# What is timed beside members, whose names have no blanks: answers by a stage, and a request that is handed on.
FIRST, LATER, PASSED, DEFERRED = "first stage", "later stage", "passed on", "deferring"
# Their names in the repository of a server of our own.
CASCADE, PASS_THROUGH = "timed_cascade", "timed_pass_through"
Floats = npt.NDArray[np.float64]
_PASS_THROUGH_CODE = '''"""Hands every request to one model."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The model to ask, its tensors and its output are parameters of config.pbtxt."""

    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.member, self.output = (parameters[key]["string_value"] for key in ("member", "output"))
        self.tensors = json.loads(parameters["tensors"]["string_value"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {theirs: pb_utils.get_input_tensor_by_name(request, ours) for theirs, ours in self.tensors.items()}
        inputs = [pb_utils.Tensor(name, tensor.as_numpy()) for name, tensor in given.items()]
        asked = pb_utils.InferenceRequest(
            model_name=self.member, requested_output_names=[self.output], inputs=inputs
        ).exec()
        if asked.has_error():
            return pb_utils.InferenceResponse(error=asked.error())
        return pb_utils.InferenceResponse(asked.output_tensors())


'''


@dataclass(frozen=True, kw_only=True)
class ServedCascade:
    """A cascade whose requests are timed.

    Args:
        url: of its server.
        name: Triton model name.
        stages: the members of its first two stages, or of its only one.
        pass_through: model that hands its requests to the first member; None where there is none.
    """

    url: str | Endpoint
    name: str
    stages: tuple[tuple[str, ...], ...]
    pass_through: str | None = None


def cascade_of(repository: Path, name: str, url: str | Endpoint, members: Sequence[str]) -> ServedCascade:
    """A cascade that a server has already, by its plan in the repository.

    Raises:
        RepositoryError, SpecError: there is no such plan.
        DataError: a member of its first two stages is not timed.
    """
    stages = tuple(tuple(one.name for one in stage.members) for stage in plan_of(repository, name).stages[:2])
    missing = [member for stage in stages for member in stage if member not in members]
    if missing:
        got, fix = f"members {', '.join(members)}", f"time {', '.join(missing)} too"
        raise DataError(f"cascade {name}", got=got, expected="those of its first two stages", fix=fix)
    return ServedCascade(url=url, name=name, stages=stages)


@contextlib.contextmanager
def own_server(members: Sequence[str], repository: Path) -> Iterator[ServedCascade]:
    """A server of members, with a cascade of the two that take the least, or of the only one.

    Raises:
        CommitteeError: a member is missing, or the server does not start.
    """
    require_exported(members, repository)
    with tempfile.TemporaryDirectory(prefix="committee-time-") as temporary:
        folder = Path(temporary)
        for name in members:
            copy_model(repository / name, folder / name)
        spec = _cascade(members, repository)
        render(spec, folder, standalone=True)
        write_all(folder / PASS_THROUGH, _pass_through(spec))
        options = ServeOptions(repository=folder, http_port=0, grpc_port=0, metrics_port=0)
        with EmbeddedServer(options) as server:
            yield ServedCascade(
                url=server.grpc_address,
                name=CASCADE,
                stages=tuple((one.name,) for one in spec.members),
                pass_through=PASS_THROUGH,
            )


def _cascade(members: Sequence[str], repository: Path) -> CascadeSpec:
    manifests = {name: manifest_from_path(repository / name / MANIFEST) for name in members}
    two = sorted(manifests.values(), key=lambda one: (one.macs, one.name))[:2]
    stages = tuple(
        Stage(
            members=(Member(name=one.name, output=one.output.name, output_kind=one.output_kind),),
            threshold=None if one is two[-1] else 0.5,
        )
        for one in two
    )
    spec = CascadeSpec(name=CASCADE, inputs=(UNKNOWN_INPUT,), classes=two[0].output.dims[0], stages=stages)
    return adopted_spec(spec, {one.name: facts_of_manifest(one) for one in two})


def _pass_through(spec: CascadeSpec) -> dict[str, bytes | str]:
    first = spec.members[0]
    tensors = spec.tensors_of(first)
    read = tuple(one for one in spec.inputs if one.name in tensors.values())
    alone = dataclasses.replace(spec, name=PASS_THROUGH, inputs=read, stages=(Stage(members=(first,)),))
    config = cascade_config(alone)
    config.max_batch_size = first.max_batch_size
    del config.output[:]
    config.output.append(pb.ModelOutput(name=first.output, data_type=pb.TYPE_FP32, dims=[spec.classes]))
    listed = ", ".join(f'"{theirs}": "{ours}"' for theirs, ours in tensors.items())
    for key, text in (("member", first.name), ("output", first.output), ("tensors", f"{{{listed}}}")):
        config.parameters[key].string_value = text
    return {"1/model.py": _PASS_THROUGH_CODE, CONFIG: text_from_config(config, source="committee time")}


def cascade_calls(
    client: GrpcClient, cascade: ServedCascade, batches: Sequence[int], *, rows_for: Callable[[str], AnyRows]
) -> dict[tuple[str, int], Callable[[], object]]:
    """Requests to a cascade that its first or its second stage answers, and to its pass-through.

    `rows_for` gives rows that a model of the server takes. Batches that it does not take in one request are left
    out.
    """
    places = zip((FIRST, LATER), range(len(cascade.stages)), strict=False)
    asked: list[tuple[str, str, Policy | None]] = [
        (key, cascade.name, Policy(min_stage=place, max_stage=place)) for key, place in places
    ]
    if cascade.pass_through is not None:
        asked.append((PASSED, cascade.pass_through, None))
    return {
        (key, batch): _asking(client, name, rows, policy)
        for key, name, policy in asked
        for batch, rows in _by_batch(client, name, batches, rows_for(name)).items()
    }


def parts_of(
    found: Mapping[tuple[str, int], Floats], stages: Sequence[Sequence[str]]
) -> dict[str, dict[int, Floats]]:
    """What each part adds, per batch: FIRST and LATER beyond their members, PASSED beyond the first member's own.

    DEFERRED is what deferring a whole batch adds to FIRST, before anybody else is asked.

    `found` has milliseconds per round of members and requests, `stages` the members of the first two. A member
    that takes fewer rows in one call has its largest so many times.
    """
    parts: dict[str, dict[int, Floats]] = {FIRST: {}, LATER: {}, PASSED: {}, DEFERRED: {}}
    beyond = {FIRST: stages[0], LATER: (FIRST, *stages[-1]), PASSED: stages[0], DEFERRED: (FIRST,)}
    for (key, batch), whole in found.items():
        if key in parts:
            parts[key][batch] = whole - sum(_taken(found, name, batch) for name in beyond[key])
    return parts


def _taken(found: Mapping[tuple[str, int], Floats], name: str, batch: int) -> Floats:
    largest = max(size for one, size in found if one == name and size <= batch)
    return np.asarray(found[name, largest] * -(-batch // largest), np.float64)


def _by_batch(client: GrpcClient, name: str, batches: Sequence[int], rows: AnyRows) -> Mapping[int, AnyRows]:
    limit = client.metadata(name).max_batch_size
    given: AnyRows | Array = next(iter(rows.values())) if isinstance(rows, Mapping) else rows
    return {batch: rows_at(rows, np.arange(batch) % len(given)) for batch in batches if batch <= limit}


def _asking(client: GrpcClient, name: str, rows: AnyRows, policy: Policy | None) -> Callable[[], object]:
    if policy is None:
        return lambda: client.outputs(name, rows)
    return lambda: client.infer(name, rows, policy=policy)
