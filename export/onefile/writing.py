"""From a plan to a model folder: the graph, its config and labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper
from tritonclient.grpc import model_config_pb2 as pb

from export.members import MODEL_FILE, check_overwrite, require_room
from export.onefile.graph import common_opsets, converted, nested_graph, read_member
from orchestrator.errors import ExportError
from orchestrator.graphs.combining import IR_VERSION
from orchestrator.graphs.editing import PRODUCER
from orchestrator.graphs.onefile import OneFile, answering, metadata_from_onefile, onefile_from_model, onefile_name
from orchestrator.pbtxt import CONFIG, text_from_config
from orchestrator.repository.configs import LABELS, cascade_config, triton_type
from orchestrator.repository.files import disk_errors, may_replace, write_all
from orchestrator.repository.index import named_spec, onnx_from_path
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import ANSWER_COLUMNS

# One protobuf message holds less than 2 GiB; a little of it is left for nodes, names and the plan.
MAX_BYTES = 2**31 - 2**24


@dataclass(frozen=True, kw_only=True)
class WrittenOnefile:
    """A one-file model on disk, with the stages and members inside; unchanged where all of it was there."""

    name: str
    folder: Path
    changed: bool
    size_bytes: int
    stages: int
    members: tuple[str, ...]


def write_onefile(
    spec: CascadeSpec,
    repository: Path,
    *,
    output: Path | None = None,
    name: str | None = None,
    stages: int | None = None,
    force: bool = False,
) -> WrittenOnefile:
    """Writes a cascade as one plain ONNX model into the repository of its members, or into `output`.

    It holds the whole cascade, or so many leading stages, whose members' outputs it then gives. Its name is the
    cascade's with "_onefile" or "_lead" behind it where none is given. `force` writes over what is not ours.

    Raises:
        ExportError: the cascade cannot be one graph, or the name is taken.
        RepositoryError: a member cannot be read, or the disk refuses.
    """
    _require_possible(spec, stages)
    spec, target = named_spec(spec, repository), output or repository
    called = onefile_name(spec, stages) if name is None else name
    if called in (spec.name, *(member.name for member in spec.members)):
        raise ExportError("`name`", got=f"{called}, a model of the cascade itself", expected="a name of its own")
    own = "no such model, or an earlier one of this command that nobody has edited"
    check_overwrite(target, [called], foreign=_foreign_files, expected=own, force=force)
    model, onefile = onefile_model(spec, repository, stages=stages)
    data = model.SerializeToString(deterministic=True)
    files: dict[str, bytes | str] = {MODEL_FILE: data}
    with disk_errors(f"repository {target}"):
        require_room(target, len(data))
    if spec.labels is not None and stages is None:
        files[LABELS] = "".join(f"{label}\n" for label in spec.labels)
    # The config comes last, so that a half-written folder is not served.
    files[CONFIG] = text_from_config(onefile_config(onefile, called))
    return WrittenOnefile(
        name=called,
        folder=target / called,
        changed=bool(write_all(target / called, files).written),
        size_bytes=len(data),
        stages=len(onefile.covered),
        members=tuple(member.name for stage in onefile.covered for member in stage.members),
    )


def onefile_model(
    spec: CascadeSpec, repository: Path, *, stages: int | None = None
) -> tuple[onnx.ModelProto, OneFile]:
    """The model alone, and what it says of itself; without `stages` it holds the whole cascade.

    Raises:
        ExportError: the cascade cannot be one graph.
        RepositoryError: a member cannot be read.
    """
    _require_possible(spec, stages)
    wanted = [member for stage in spec.stages[:stages] for member in stage.members]
    parts = {member.name: read_member(spec, member, repository) for member in wanted}
    weights = {name: part.model.graph.initializer for name, part in parts.items()}
    require_fits(
        {name: sum(len(one.raw_data) or one.ByteSize() for one in own) for name, own in weights.items()}, spec
    )
    opsets = common_opsets(parts.values())
    parts = {name: converted(part, opsets[""]) for name, part in parts.items()}
    hashes = {name: part.sha256 for name, part in parts.items()}
    onefile = OneFile(spec=answering(spec), stages=stages, sha256=hashes)
    model = helper.make_model(
        nested_graph(spec, parts, stages=stages),
        producer_name=PRODUCER,
        ir_version=max(IR_VERSION, *(part.model.ir_version for part in parts.values())),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())],
    )
    helper.set_model_props(model, metadata_from_onefile(onefile))
    try:
        onnx.checker.check_model(model, full_check=True)
    # Faults of the checker and of shape inference share no base of their own.
    except Exception as error:
        raise ExportError(
            f"cascade {spec.name} as one graph", got=error, expected="a graph the ONNX checker accepts",
            fix="check each member with `committee check`",
        ) from error  # fmt: skip
    return model, onefile


def onefile_config(onefile: OneFile, name: str) -> pb.ModelConfig:
    """The configuration that serves it: a plain ONNX model with the cascade's input and batch limit."""
    config = cascade_config(onefile.spec)
    config.name, config.backend = name, "onnxruntime"
    # Other models run beside it; more threads of ONNX Runtime would compete for the cores.
    config.parameters["intra_op_thread_count"].string_value = "1"
    if onefile.stages is not None:
        del config.output[:]
        for member in (member for stage in onefile.covered for member in stage.members):
            config.output.add(name=member.name, data_type=triton_type("FP32"), dims=[onefile.spec.classes])
    return config


def _require_possible(spec: CascadeSpec, stages: int | None) -> None:
    if stages is not None and not 1 <= stages <= len(spec.stages):
        raise ExportError("`stages`", got=stages, expected=f"1 to {len(spec.stages)}, the stages of {spec.name}")
    outputs = set(ANSWER_COLUMNS) if stages is None else {member.name for member in spec.members}
    if spec.input.name in outputs:
        raise ExportError(
            f"cascade {spec.name} input",
            got=f"{spec.input.name}, which is an output too",
            expected="another name: one graph cannot use it twice",
            fix="export the members with another input name and plan again",
        )


def require_fits(sizes: Mapping[str, int], spec: CascadeSpec) -> None:
    """Refuses weights that one ONNX file cannot hold; `sizes` are bytes by member.

    Raises:
        ExportError: they are too many.
    """
    total = sum(sizes.values())
    if total > MAX_BYTES:
        raise ExportError(
            f"cascade {spec.name}",
            got=f"{total / 1e9:.1f} GB of weights, most of them in {max(sizes, key=lambda name: sizes[name])}",
            expected="less than 2 GB in one file",
            fix="serve it by `committee serve`, or write the leading stages alone with `stages`",
        )


def _foreign_files(folder: Path) -> str | None:
    """What lies in a model's folder that this command did not write, or that was edited since."""
    file = folder / MODEL_FILE
    theirs = [path for path in folder.glob("*/*") if path.is_file() and path != file]
    if file.is_file() and onefile_from_model(onnx_from_path(file), subject=str(file)) is None:
        theirs.append(file)
    return "a model that this command did not write" if theirs or not may_replace(folder / CONFIG) else None
