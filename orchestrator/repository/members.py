"""What the files of members say: tensors, batch limits, versions, hashes; and plans completed from that.

Models that were not exported here have no manifest, so their configuration is read. For ONNX files without one,
Triton's rules of completing it are applied. An unknown size is -1. Shapes from a configuration have no batch axis,
shapes from a graph have one.

Records may come from anywhere, so a plan can be made where the members are not. Placeholders then stand for its
input and for the members' outputs, and no model is asked before they are replaced.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from onnx import TensorProto
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.combining import ONNX_TYPES
from orchestrator.graphs.editing import given_inputs
from orchestrator.pbtxt import json_from_config
from orchestrator.repository.files import sha256_of_path
from orchestrator.repository.index import (
    config_of,
    external_files,
    model_file,
    onnx_from_path,
    readable_config,
    versions_served,
)
from orchestrator.spec import (
    CascadeSpec,
    Derived,
    FusedPrefix,
    InputSpec,
    Manifest,
    Member,
    RowLength,
    manifest_from_path,
)
from orchestrator.spec.cascade import UNKNOWN_INPUT, UNKNOWN_OUTPUT
from orchestrator.spec.manifest import MANIFEST, Tensor
from orchestrator.spec.output_kind import SCORE_DTYPES
from orchestrator.spec.planned_models import data_files_of
from orchestrator.spec.request import INPUT_DTYPES, TEXT
from orchestrator.spec.served_model import listed_tensors
from orchestrator.spec.triton import BACKEND_OF_FILE, COMPLETED_BATCH, stated_instances, usual_file, versions_in
from orchestrator.spec.validation import MOST_SIZE

Tensors = dict[str, Tensor]
# (shape in a configuration, shape in a file) -> whether they agree
Agree = Callable[[Sequence[int], Sequence[int]], bool]
_FROM_ONNX: dict[int, str] = {
    **{number: dtype for dtype, number in ONNX_TYPES.items()},
    TensorProto.BFLOAT16: "BF16",
    TensorProto.STRING: "STRING",
}


def tensors_from_config(entries: Sequence[Any]) -> Tensors:
    """The inputs or the outputs of a configuration as the model gets them, after any reshape."""
    reshaped = {one.name: one.reshape.shape if one.HasField("reshape") else one.dims for one in entries}
    return {one.name: _stated(one, reshaped[one.name]) for one in entries}


def tensors_from_graph(graph: onnx.GraphProto) -> tuple[Tensors, Tensors]:
    """The inputs and outputs of an ONNX graph, batch axis first."""
    inputs, outputs = map(_tensor, given_inputs(graph)), map(_tensor, graph.output)
    return {one.name: one for one in inputs}, {one.name: one for one in outputs}


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
    return Tensor(name=entry.name, dtype=dtype, dims=tuple(dims))


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Tensor(name=str(value.name), dtype=_FROM_ONNX.get(kind.elem_type, "unknown"), dims=dims)


@dataclass(frozen=True, kw_only=True)
class MemberFacts:
    """A model as clients see it."""

    inputs: Tensors | None  # without the batch axis; None where no file says
    outputs: Tensors | None  # without the batch axis; None where no file says
    # most rows of one request, 0 for a model without batch axis; None where no file says
    max_batch_size: int | None
    # how many requests it runs at once; None where its configuration leaves that to the server
    instances: int | None
    # of rows whose length varies; None where no manifest says
    length: RowLength | None = None

    def scores(self, classes: int) -> list[str]:
        """Names of outputs that may hold k class scores; those of unknown size only if no size fits exactly."""
        fitting = [one for one in (self.outputs or {}).values() if self.may_hold_scores(one.name, classes)]
        exact = [one.name for one in fitting if one.dims == (classes,)]
        return exact or [one.name for one in fitting]

    def may_hold_scores(self, name: str, classes: int) -> bool:
        """Whether the output of that name exists and may hold k class scores."""
        one = (self.outputs or {}).get(name)
        return one is not None and one.dtype in SCORE_DTYPES and fits(one.dims, (classes,))

    def completed_from(self, other: "MemberFacts") -> "MemberFacts":
        """The same facts, with those of `other` where nothing is known."""
        missing = [one.name for one in dataclasses.fields(self) if getattr(self, one.name) is None]
        return dataclasses.replace(self, **{key: getattr(other, key) for key in missing})


def facts_from_folder(folder: Path) -> MemberFacts:
    """What the files of a model say; RepositoryError where its configuration or its ONNX file cannot be read."""
    config = config_of(folder)
    graph = None
    if config is None or not (config.input and config.output):
        file = model_file(folder, config)
        if file is not None and file.suffix == ".onnx" and file.is_file():
            graph = onnx_from_path(file).graph
    return facts_of(config, graph)


def facts_of(config: ModelConfig | None, graph: onnx.GraphProto | None) -> MemberFacts:
    """What a configuration says, completed from the graph of an ONNX file."""
    config = config or ModelConfig()
    sides = (None, None) if graph is None else tensors_from_graph(graph)
    limit = _batch_limit(config, *sides)

    def tensors(stated: Sequence[Any], real: Tensors | None) -> Tensors | None:
        if stated:
            # As clients and other models see them, before any reshape.
            required = (entry for entry in stated if not getattr(entry, "optional", False))
            return {entry.name: _stated(entry, entry.dims) for entry in required}
        if real is None:
            return None
        start = 1 if limit else 0
        return {name: dataclasses.replace(one, dims=one.dims[start:] or (1,)) for name, one in real.items()}

    return MemberFacts(
        inputs=tensors(config.input, sides[0]),
        outputs=tensors(config.output, sides[1]),
        max_batch_size=limit,
        instances=stated_instances(json_from_config(config)),
    )


def _batch_limit(config: ModelConfig, inputs: Tensors | None, outputs: Tensors | None) -> int | None:
    if config.max_batch_size > 0 or (config.input and config.output):
        return int(config.max_batch_size)
    if inputs is None or outputs is None:
        return None
    # Triton sets a limit of its own where the ONNX file completes a configuration that leaves tensors out.
    batched = all(tensor.dims[:1] == (-1,) for tensor in (*inputs.values(), *outputs.values()))
    return COMPLETED_BATCH if batched else 0


def facts_of_member(folder: Path) -> MemberFacts:
    """What a member's manifest, else its other files, say of requests to it.

    Raises:
        SpecError: the manifest is wrong.
        RepositoryError: another file cannot be read.
    """
    if not (folder / MANIFEST).is_file():
        return facts_from_folder(folder)
    return facts_of_manifest(manifest_from_path(folder / MANIFEST))


def facts_of_manifest(manifest: Manifest) -> MemberFacts:
    """What a manifest says of requests to an exported member; its configuration decides the instances."""
    return MemberFacts(
        inputs={one.name: one for one in manifest.inputs},
        outputs={manifest.output.name: manifest.output},
        max_batch_size=manifest.max_batch_size,
        instances=None,
        length=manifest.length,
    )


def adopted_spec(spec: CascadeSpec, facts: Mapping[str, MemberFacts]) -> CascadeSpec:
    """A plan with its placeholders replaced, and batch limits lowered to those of its members.

    Members that are not in `facts` stay as they are.

    Raises:
        RepositoryError: a member's output is unknown, and none of its outputs, or several, may be the one; members
            take unlike tensors of one name.
    """
    if UNKNOWN_INPUT in spec.inputs:
        spec = dataclasses.replace(spec, inputs=_inputs_of(facts))
    return spec.with_members(lambda one: _adopted(one, facts[one.name], spec) if one.name in facts else one)


def require_known_input(spec: CascadeSpec, facts: Mapping[str, MemberFacts]) -> None:
    """Refuses a plan that still has the placeholder for its input because its members take rows of any shape.

    The configurations of such members agree with any shape, so nothing else would notice.

    Raises:
        RepositoryError: with the members' inputs.
    """
    taken = {name: tensor for name, one in facts.items() if (tensor := _only_input(one)) is not None}
    if UNKNOWN_INPUT in spec.inputs and any(-1 in tensor.dims for tensor in taken.values()):
        listed = listed_tensors((f"{name} {one.name}", one.dtype, one.dims) for name, one in taken.items())
        got = f"members that take rows of any shape ({listed})"
        fix = 'write them there, such as "inputs": [{"name": "x", "dtype": "FP32", "dims": [4]}]'
        raise RepositoryError(f"plan {spec.name}, input", got=got, expected="fixed dims in cascade.json", fix=fix)


def _inputs_of(facts: Mapping[str, MemberFacts]) -> tuple[InputSpec, ...]:
    """What requests bring: everything that members take, or the only input of members with one of fixed shape."""
    tensors = {name: one.inputs or {} for name, one in facts.items()}
    is_several = any(len(one) > 1 or TEXT in {tensor.dtype for tensor in one.values()} for one in tensors.values())
    if not is_several and all(one.length is None for one in facts.values()):
        return (_input_of(facts.values()),)
    found: dict[str, dict[str, InputSpec]] = {}
    try:
        for member, one in facts.items():
            for tensor in tensors[member].values():
                found.setdefault(tensor.name, {})[member] = _as_input(tensor, one.length)
    except SpecError:
        # Tensors that no request can bring, such as of two free sizes: the plan's author has to say more.
        return (UNKNOWN_INPUT,)
    return tuple(_common_input(name, specs) for name, specs in found.items())


# The first of the lengths that rows are grouped by; each next one is twice as long.
_LEAST_BUCKET = 32


def _as_input(tensor: Tensor, length: RowLength | None) -> InputSpec:
    """A member's tensor as an input; rows longer than the member takes are refused."""
    spec = InputSpec(name=tensor.name, dtype=tensor.dtype, dims=tensor.dims)
    if length is None or tensor.name not in length.pad:
        return spec
    doubled = (_LEAST_BUCKET << power for power in range(length.longest.bit_length()))
    below = (size for size in doubled if size < length.longest)
    return dataclasses.replace(spec, pad=length.pad[tensor.name], buckets=(*below, length.longest))


def _common_input(name: str, specs: Mapping[str, InputSpec]) -> InputSpec:
    """One input for all members that take a tensor of that name, as long as each of them takes.

    Raises:
        RepositoryError: their tensors differ in more than the longest row.
    """
    said = {member: _in_words(one) for member, one in specs.items()}
    if len(set(said.values())) > 1:
        got = ", ".join(f"{text} for {member}" for member, text in said.items())
        expected = "the same for every member that reads it"
        fix = "give one of them another name with `python -m export member --input THEIRS=OURS`"
        raise RepositoryError(f"input {name}", got=got, expected=expected, fix=fix)
    return min(specs.values(), key=lambda one: one.buckets[-1:] or (MOST_SIZE,))


def _in_words(spec: InputSpec) -> str:
    padded = "" if spec.length_axis is None else f" padded with {spec.pad:g}"
    return f"{spec.dtype} {list(spec.dims)}{padded}"


def _input_of(known: Iterable[MemberFacts]) -> InputSpec:
    """The input of the first member that takes rows of a fixed shape, else the placeholder."""
    for facts in known:
        tensor = _only_input(facts)
        if tensor is not None and tensor.dtype in INPUT_DTYPES and tensor.dims and min(tensor.dims) > 0:
            return InputSpec(name=tensor.name, dtype=tensor.dtype, dims=tensor.dims)
    return UNKNOWN_INPUT


def _only_input(facts: MemberFacts) -> Tensor | None:
    inputs = list((facts.inputs or {}).values())
    return inputs[0] if len(inputs) == 1 else None


def _adopted(member: Member, facts: MemberFacts, spec: CascadeSpec) -> Member:
    return dataclasses.replace(
        member,
        inputs=member.inputs or _tensor_map(facts, spec),
        output=_output(member, facts, classes=spec.classes),
        max_batch_size=min(member.max_batch_size, facts.max_batch_size or member.max_batch_size),
        instances=facts.instances or member.instances,
    )


def _tensor_map(facts: MemberFacts, spec: CascadeSpec) -> dict[str, str]:
    """Which of the plan's tensors a member reads where the plan does not say: those of its tensors' names."""
    own, inputs = list(facts.inputs or ()), [one.name for one in spec.inputs]
    if not own or set(own) == set(inputs):
        return {}
    if set(own) <= set(spec.tensors):
        return {name: name for name in own}
    # The only tensor of each side is the same, whatever it is called.
    return {own[0]: inputs[0]} if len(own) == len(inputs) == 1 and not spec.derived else {}


def _output(member: Member, facts: MemberFacts, *, classes: int) -> str:
    if member.output != UNKNOWN_OUTPUT or facts.outputs is None:
        return member.output
    # A model may really have an output with the placeholder's name.
    if facts.may_hold_scores(member.output, classes):
        return member.output
    found = facts.scores(classes)
    if len(found) == 1:
        return found[0]
    listed = listed_tensors((one.name, one.dtype, one.dims) for one in facts.outputs.values())
    named = f"name it when recording (`committee record --output-tensor {member.name}=NAME`)"
    fix = f'{named}, or as its "output" in the records\' meta' if found else None
    expected = f"one of {classes} floating-point scores"
    raise RepositoryError(f"member {member.name}", got=f"outputs {listed}", expected=expected, fix=fix)


def planned_version(
    planned: Member | FusedPrefix | Derived, folder: Path, *, config: ModelConfig | None
) -> int | None:
    """The version that a plan means: the one it names, else the newest served one with the planned file.

    Where no version has that file, or the plan has no hash, it is the newest served one; None if none is served.

    Raises:
        RepositoryError: a file cannot be read.
    """
    if planned.version is not None:
        return planned.version
    served = versions_served(folder, config)[::-1]
    for version in served:
        if planned.sha256 in (None, sha256_of_version(folder, config, version=version)):
            return version
    return served[0] if served else None


def sha256_of_version(folder: Path, config: ModelConfig | None, *, version: int | None) -> str | None:
    """Hash of a version's model file, None meaning the served version; None where there is no such file.

    Raises:
        RepositoryError: the file cannot be read.
    """
    path = model_file(folder, config, version=version)
    return sha256_of_path(path) if path is not None and path.is_file() else None


def pinned_spec(spec: CascadeSpec, repository: Path) -> CascadeSpec:
    """The plan with the version and the hashes of every model that it calls, as they are in the repository.

    What the plan says already is kept; `check` reports where that does not fit. Members that were not exported get
    the hashes of the files that are there, if the server runs those files and nothing else.

    Raises:
        RepositoryError: a file cannot be read.
    """
    spec = dataclasses.replace(
        spec,
        fused_prefix=_pinned_prefix(spec.fused_prefix, repository),
        derived=tuple(_pinned_derived(one, repository) for one in spec.derived),
    )
    return spec.with_members(lambda one: _pinned_member(one, repository))


def _pinned_member(member: Member, repository: Path) -> Member:
    folder = repository / member.name
    config = readable_config(folder)
    version = planned_version(member, folder, config=config)
    sha256, data_files = member.sha256, member.data_files or _data_files(member, folder)
    path = model_file(folder, config, version=version)
    is_adopted = sha256 is None and not (folder / MANIFEST).exists()
    if is_adopted and path is not None and _is_whole_model(path, config):
        sha256, data_files = sha256_of_path(path), data_files or _files_beside(path)
    return dataclasses.replace(member, version=version, sha256=sha256, data_files=data_files)


def _pinned_derived(model: Derived, repository: Path) -> Derived:
    folder = repository / model.name
    return dataclasses.replace(model, version=planned_version(model, folder, config=readable_config(folder)))


def _pinned_prefix(prefix: FusedPrefix | None, repository: Path) -> FusedPrefix | None:
    if prefix is None:
        return None
    folder = repository / prefix.name
    config = readable_config(folder)
    version = planned_version(prefix, folder, config=config)
    # A fused prefix is made from the plan, which `check` compares, so the file that is there is the right one.
    sha256 = prefix.sha256 or sha256_of_version(folder, config, version=version)
    return dataclasses.replace(prefix, version=version, sha256=sha256)


def _is_whole_model(path: Path, config: ModelConfig | None) -> bool:
    """Whether a model is this file, with weights beside it, and the runtime takes no other file for it.

    A Python model may read any files, and the serving machine chooses among several engines. The runtime does not
    read configurations: it looks for files with the usual names.
    """
    if path.suffix == ".py" or (config is not None and config.cc_model_filenames) or not path.is_file():
        return False
    folder = path.parent.parent
    versions = [folder / str(version) for version in versions_in(folder)]
    usual = {name for name in BACKEND_OF_FILE for one in versions if (one / name).exists()}
    return usual <= {path.name}


def _files_beside(path: Path) -> dict[str, str]:
    """Path in the version folder -> hash, for the files beside a model file that hold its weights."""
    names = {"model.bin"} if path.name == usual_file("openvino") else set[str]()
    if path.suffix == ".onnx":
        with suppress(RepositoryError):  # `check` reports it
            names = external_files(onnx_from_path(path))
    inside = (one for one in map(PurePosixPath, sorted(names)) if not one.is_absolute() and ".." not in one.parts)
    beside = {str(one): path.parent / one for one in inside}
    return {name: sha256_of_path(file) for name, file in beside.items() if file.is_file()}


def _data_files(member: Member, folder: Path) -> dict[str, str]:
    """The manifest's `data_files`, for a plan that is older than that field."""
    try:
        manifest = manifest_from_path(folder / MANIFEST)
    except SpecError:
        return {}
    return data_files_of(manifest.data_files) if manifest.sha256 == member.sha256 else {}
