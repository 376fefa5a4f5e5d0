"""What a plan does not know of its members, filled in from their files: tensors, batch limits, versions, hashes.

Records may come from anywhere, so a plan can be made where the members are not. Placeholders then stand for its
input and for the members' outputs, and no model is asked before they are replaced.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.repository.files import sha256_of_path
from orchestrator.repository.index import (
    external_files,
    model_file,
    onnx_from_path,
    readable_config,
    versions_served,
)
from orchestrator.repository.member_facts import MemberFacts, Tensor, facts_from_folder
from orchestrator.spec import CascadeSpec, FusedPrefix, InputSpec, Manifest, Member, TensorSpec, manifest_from_path
from orchestrator.spec.cascade import UNKNOWN_INPUT, UNKNOWN_OUTPUT
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.planned_models import data_files_of
from orchestrator.spec.request import INPUT_DTYPES
from orchestrator.spec.served_model import listed_tensors
from orchestrator.spec.triton import BACKEND_OF_FILE, usual_file, versions_in


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
        inputs={manifest.input.name: _tensor(manifest.input)},
        outputs={manifest.output.name: _tensor(manifest.output)},
        max_batch_size=manifest.max_batch_size,
        instances=None,
    )


def adopted_spec(spec: CascadeSpec, facts: Mapping[str, MemberFacts]) -> CascadeSpec:
    """A plan with its placeholders replaced, and batch limits lowered to those of its members.

    Members that are not in `facts` stay as they are.

    Raises:
        RepositoryError: a member's output is unknown, and none of its outputs, or several, may be the one.
    """
    if spec.input == UNKNOWN_INPUT:
        spec = dataclasses.replace(spec, input=_input_of(facts.values()))
    stages = tuple(
        dataclasses.replace(
            stage,
            members=tuple(
                _adopted(member, facts[member.name], spec) if member.name in facts else member
                for member in stage.members
            ),
        )
        for stage in spec.stages
    )
    return dataclasses.replace(spec, stages=stages)


def require_known_input(spec: CascadeSpec, facts: Mapping[str, MemberFacts]) -> None:
    """Refuses a plan that still has the placeholder for its input because its members take rows of any shape.

    The configurations of such members agree with any shape, so nothing else would notice.

    Raises:
        RepositoryError: with the members' inputs.
    """
    taken = {name: tensor for name, one in facts.items() if (tensor := _only_input(one)) is not None}
    if spec.input == UNKNOWN_INPUT and any(-1 in tensor.dims for tensor in taken.values()):
        listed = listed_tensors((f"{name} {one.name}", one.dtype, one.dims) for name, one in taken.items())
        raise RepositoryError(
            f"plan {spec.name}, input",
            got=f"members that take rows of any shape ({listed})",
            expected="fixed dims in cascade.json",
            fix='write them there, such as "input": {"name": "x", "dtype": "FP32", "dims": [4]}',
        )


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
    tensor = _only_input(facts)
    own_name = None if tensor is None or tensor.name == spec.input.name else tensor.name
    return dataclasses.replace(
        member,
        input=member.input or own_name,
        output=_output(member, facts, classes=spec.classes),
        max_batch_size=min(member.max_batch_size, facts.max_batch_size or member.max_batch_size),
        instances=facts.instances or member.instances,
    )


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
    raise RepositoryError(
        f"member {member.name}",
        got=f"outputs {listed}",
        expected=f"one of {classes} floating-point scores",
        fix=f'{named}, or as its "output" in the records\' meta' if found else None,
    )


def _tensor(spec: TensorSpec) -> Tensor:
    return Tensor(name=spec.name, dtype=spec.dtype, dims=spec.dims)


def planned_version(planned: Member | FusedPrefix, folder: Path, *, config: ModelConfig | None) -> int | None:
    """The version that a plan means: the one it names, else the newest served one with the planned file.

    Where no version has that file, or the plan has no hash, it is the newest served one; None if none is served.

    Raises:
        RepositoryError: a file cannot be read.
    """
    if planned.version is not None:
        return planned.version
    served = versions_served(folder, config)[::-1]
    fitting = (
        version
        for version in served
        if planned.sha256 in (None, sha256_of_version(folder, config, version=version))
    )
    return next(fitting, next(iter(served), None))


def sha256_of_version(folder: Path, config: ModelConfig | None, *, version: int) -> str | None:
    """Hash of a version's model file; None where there is no such file.

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
    stages = tuple(
        dataclasses.replace(stage, members=tuple(_pinned_member(one, repository) for one in stage.members))
        for stage in spec.stages
    )
    return dataclasses.replace(spec, stages=stages, fused_prefix=_pinned_prefix(spec.fused_prefix, repository))


def _pinned_member(member: Member, repository: Path) -> Member:
    folder = repository / member.name
    config = readable_config(folder)
    version = planned_version(member, folder, config=config)
    sha256, data_files = member.sha256, member.data_files or _data_files(member, folder)
    path = None if version is None else model_file(folder, config, version=version)
    is_adopted = sha256 is None and not (folder / MANIFEST).exists()
    if is_adopted and path is not None and _is_whole_model(path, config):
        sha256, data_files = sha256_of_path(path), data_files or _files_beside(path)
    return dataclasses.replace(member, version=version, sha256=sha256, data_files=data_files)


def _pinned_prefix(prefix: FusedPrefix | None, repository: Path) -> FusedPrefix | None:
    if prefix is None:
        return None
    folder = repository / prefix.name
    config = readable_config(folder)
    version = planned_version(prefix, folder, config=config)
    # A fused prefix is made from the plan, which `check` compares, so the file that is there is the right one.
    sha256 = prefix.sha256 or (None if version is None else sha256_of_version(folder, config, version=version))
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
        try:
            names = external_files(onnx_from_path(path))
        except RepositoryError:  # `check` reports it
            return {}
    paths = [PurePosixPath(name) for name in sorted(names)]
    return {
        str(name): sha256_of_path(path.parent / name)
        for name in paths
        if not name.is_absolute() and ".." not in name.parts and (path.parent / name).is_file()
    }


def _data_files(member: Member, folder: Path) -> dict[str, str]:
    """The manifest's `data_files`, for a plan that is older than that field."""
    try:
        manifest = manifest_from_path(folder / MANIFEST)
    except SpecError:
        return {}
    return data_files_of(manifest.data_files) if manifest.sha256 == member.sha256 else {}
