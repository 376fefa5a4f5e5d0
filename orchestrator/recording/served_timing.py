"""What a cascade adds as served: requests to one, with its members' own requests taken off.

A request that the first stage answers shows what that adds; one that the second has to answer shows what a later
one does. A model that hands every request to the first member shows how much of the first stage is the way from
one process to the other and back.
"""

import contextlib
import dataclasses
import itertools
import tempfile
import time
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
from orchestrator.repository.derive import derived_spec
from orchestrator.repository.files import copy_model, write_all
from orchestrator.repository.index import plan_of
from orchestrator.repository.members import adopted_spec, facts_of_manifest
from orchestrator.repository.render import render
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec, Member, Stage, manifest_from_path
from orchestrator.spec.cascade import UNKNOWN_INPUT
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.rows import AnyRows, Array, is_ragged, rows_at
from orchestrator.spec.timing import PausedRequest

# What is timed beside members, whose names have no blanks: answers by a stage, and a request that is handed on.
FIRST, LATER, PASSED, DEFERRED = "first stage", "later stage", "passed on", "deferring"
# The same of stages whose members run in the cascade's own process.
FIRST_HERE, LATER_HERE = "first stage, in process", "later stage, in process"
# The second stage of the cascade whose first answers the other requests, so that it is asked between them.
RARE = "later stage, rarely"
# Their names in the repository of a server of our own.
PASS_THROUGH = "timed_pass_through"
# No score is below the one threshold or above the other: the first stage answers every row, or the second.
_THRESHOLDS = {FIRST: -1.0, LATER: 2.0, FIRST_HERE: -1.0, LATER_HERE: 2.0}
# Milliseconds without a request before one is timed, and how often in each round.
_PAUSES_MS, _PAUSED = (1.0, 3.0, 10.0, 30.0), 4
# Rows differ in length: so many are asked about in turn.
TURNED_ROWS = 64
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
    """Cascades whose requests are timed.

    Args:
        url: of their server.
        asked: by what they show, Triton models and what makes the stage answer that is to.
        stages: models that are asked in these stages: members, and what makes tensors for them.
        pass_through: model that hands its requests to the first member; None where there is none.
        pid: of a server of our own.
    """

    url: str | Endpoint
    asked: Mapping[str, tuple[str, Policy | None]]
    stages: tuple[tuple[str, ...], ...]
    pass_through: str | None = None
    pid: int | None = None


def cascade_of(repository: Path, name: str, url: str | Endpoint, models: Sequence[str]) -> ServedCascade:
    """A cascade that a server has already, by its plan in the repository.

    Raises:
        RepositoryError, SpecError: there is no such plan.
        DataError: a model that its first two stages ask is not timed.
    """
    stages = _asked_models(plan_of(repository, name))
    missing = [model for stage in stages for model in stage if model not in models]
    if missing:
        got, fix = f"models {', '.join(models)}", f"time {', '.join(missing)} too"
        raise DataError(f"cascade {name}", got=got, expected="those of its first two stages", fix=fix)
    places = {FIRST: 0, LATER: 1, RARE: 1}
    asked = {
        key: (name, Policy(min_stage=place, max_stage=place))
        for key, place in places.items()
        if place < len(stages)
    }
    return ServedCascade(url=url, asked=asked, stages=stages)


def _asked_models(spec: CascadeSpec) -> tuple[tuple[str, ...], ...]:
    """Members of the first two stages, and deriving models that are asked for the first time there."""
    found, before = [], set[str]()
    for place, stage in enumerate(spec.stages[:2]):
        derived = [one.name for one in spec.derived_for(place) if one.name not in before]
        before |= set(derived)
        found.append((*(member.name for member in stage.members), *derived))
    return tuple(found)


@contextlib.contextmanager
def own_server(members: Sequence[str], repository: Path, *, derive: Sequence[str] = ()) -> Iterator[ServedCascade]:
    """A server of members and deriving models, with cascades of the two members that take the least, or the one.

    Raises:
        CommitteeError: a member is missing, or the server does not start.
    """
    require_exported(members, repository)
    with tempfile.TemporaryDirectory(prefix="committee-time-") as temporary:
        folder = Path(temporary)
        for name in (*members, *derive):
            copy_model(repository / name, folder / name)
        cascades = cascades_of(members, repository, derive)
        for spec in cascades.values():
            render(spec, folder, standalone=True)
        write_all(folder / PASS_THROUGH, _pass_through(cascades[FIRST]))
        options = ServeOptions(repository=folder, http_port=0, grpc_port=0, metrics_port=0)
        with EmbeddedServer(options) as server:
            yield ServedCascade(
                url=server.grpc_address,
                asked=_asked(cascades),
                stages=_asked_models(cascades[FIRST]),
                pass_through=PASS_THROUGH,
                pid=server.pid,
            )


def _asked(cascades: Mapping[str, CascadeSpec]) -> dict[str, tuple[str, Policy | None]]:
    asked: dict[str, tuple[str, Policy | None]] = {key: (spec.name, None) for key, spec in cascades.items()}
    if LATER in cascades:
        asked[RARE] = cascades[FIRST].name, Policy(min_stage=1, max_stage=1)
    return asked


def cascades_of(members: Sequence[str], repository: Path, derive: Sequence[str]) -> dict[str, CascadeSpec]:
    """By what they show, cascades of the two members that take the least; of one member without later stages."""
    manifests = {name: manifest_from_path(repository / name / MANIFEST) for name in members}
    two = sorted(manifests.values(), key=lambda one: (one.macs, one.name))[:2]
    # Without a hash no member is run in process.
    asked = tuple(
        Member(name=one.name, output=one.output.name, output_kind=one.output_kind, sha256=one.sha256)
        for one in two
    )
    stages = tuple(Stage(members=(one,)) for one in asked)
    spec = CascadeSpec(name="timed", inputs=(UNKNOWN_INPUT,), classes=two[0].output.dims[0], stages=stages)
    spec = adopted_spec(spec, {one.name: facts_of_manifest(one) for one in two})
    spec = derived_spec(spec, repository, derive, skip_unread=True) if derive else spec
    made = {}
    for place, (key, threshold) in enumerate(_THRESHOLDS.items()):
        if len(two) > 1:
            first = dataclasses.replace(spec.stages[0], threshold=threshold)
            made[key] = dataclasses.replace(spec, stages=(first, *spec.stages[1:]))
        elif key in (FIRST, FIRST_HERE):
            made[key] = spec
        if key in made:
            here = len(two) if key in (FIRST_HERE, LATER_HERE) else 0
            made[key] = dataclasses.replace(made[key], name=f"timed_cascade_{place}", in_process=here)
    return made


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
    asked: list[tuple[str, str, Policy | None]] = [(key, *one) for key, one in cascade.asked.items()]
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
    beyond = {FIRST: stages[0], LATER: (FIRST, *stages[-1]), PASSED: stages[0], DEFERRED: (FIRST,)}
    beyond |= {FIRST_HERE: stages[0], LATER_HERE: (FIRST_HERE, *stages[-1])}
    parts: dict[str, dict[int, Floats]] = {key: {} for key in beyond}
    for (key, batch), whole in found.items():
        if key in parts:
            parts[key][batch] = whole - sum(_taken(found, name, batch) for name in beyond[key])
    return parts


def paused_requests(
    calls: Mapping[tuple[str, int], Callable[[], object]],
    found: Mapping[tuple[str, int], Floats],
    *,
    rounds: int,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[PausedRequest, ...]:
    """Requests of one row after pauses, by the stage that answers; none where no cascade was asked about one.

    `found` has milliseconds of the same calls one after another.
    """
    keys = [(key, 1) for key in (FIRST, LATER, RARE) if (key, 1) in calls]
    longer: dict[float, dict[str, float]] = {}

    def busy(seconds: float) -> None:
        begun = clock()
        while clock() - begun < seconds:
            calls[FIRST, 1]()

    for pause_ms in _PAUSES_MS if keys else ():
        taken: dict[str, list[float]] = {key: [] for key, _ in keys}
        for _, key in itertools.product(range(rounds * _PAUSED), taken):
            (busy if key == RARE else pause)(pause_ms / 1000)
            begun = clock()
            calls[key, 1]()
            taken[key].append(1000 * (clock() - begun))
        longer[pause_ms] = {key: float(np.median(each) - np.median(found[key, 1])) for key, each in taken.items()}
    return tuple(
        PausedRequest(
            pause_ms=pause_ms,
            first_ms=_rounded(parts[FIRST]),
            later_ms=_rounded(parts.get(LATER, parts[FIRST]) - parts[FIRST]),
            rare_ms=_rounded(parts.get(RARE, 0.0)),
        )
        for pause_ms, parts in longer.items()
    )


def _rounded(ms: float) -> float:
    return float(f"{ms:.6g}")


def _taken(found: Mapping[tuple[str, int], Floats], name: str, batch: int) -> Floats:
    largest = max(size for one, size in found if one == name and size <= batch)
    return np.asarray(found[name, largest] * -(-batch // largest), np.float64)


def in_turn(rows: AnyRows, batch: int, *, pad: Mapping[str, float] | None = None) -> Iterator[AnyRows]:
    """Batches of rows, others each time as long as there are some, round and round.

    Shorter rows of the tensors of `pad` are filled up with these values, as a cascade does for its members: a
    client would send those of each length apart.
    """
    there = len(next(iter(rows.values())) if isinstance(rows, Mapping) else rows)
    starts = range(0, max(min(TURNED_ROWS, there) - batch, 0) + 1, batch)
    parts = [rows_at(rows, (start + np.arange(batch)) % there) for start in starts]
    return itertools.cycle([_padded(part, pad) if pad and isinstance(part, Mapping) else part for part in parts])


def _padded(rows: Mapping[str, Array], pad: Mapping[str, float]) -> dict[str, Array]:
    return {name: _filled(array, pad[name]) if name in pad else array for name, array in rows.items()}


def _filled(array: Array, value: float) -> Array:
    if not is_ragged(array):
        return array
    whole = np.full((len(array), *np.max([row.shape for row in array], axis=0)), value, array[0].dtype)
    for place, row in enumerate(array):
        part = (place, *(slice(size) for size in row.shape))
        whole[part] = row
    return whole


def _by_batch(
    client: GrpcClient, name: str, batches: Sequence[int], rows: AnyRows
) -> Mapping[int, Iterator[AnyRows]]:
    limit = client.metadata(name).max_batch_size
    return {batch: in_turn(rows, batch) for batch in batches if batch <= limit}


def _asking(
    client: GrpcClient, name: str, turns: Iterator[AnyRows], policy: Policy | None
) -> Callable[[], object]:
    if name == PASS_THROUGH:
        return lambda: client.outputs(name, next(turns))
    return lambda: client.infer(name, next(turns), policy=policy)
