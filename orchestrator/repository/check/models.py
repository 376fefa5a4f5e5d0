"""A model folder by itself: whether its config describes its files. Faults and notes are gathered here, too."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx
from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.ending import LOGITS, SIGMOID, ending_of
from orchestrator.pbtxt import config_from_path
from orchestrator.repository.files import sha256_of_path
from orchestrator.repository.index import config_of, external_files, model_file, onnx_from_path, served_version
from orchestrator.repository.members import (
    Agree,
    MemberFacts,
    Tensors,
    equals,
    facts_of,
    fits,
    may_be,
    tensors_from_config,
    tensors_from_graph,
)
from orchestrator.spec import Manifest, manifest_from_path
from orchestrator.spec.deriving import DerivingManifest, deriving_from_path, is_deriving
from orchestrator.spec.manifest import MANIFEST, Tensor
from orchestrator.spec.output_kind import PARAMETER
from orchestrator.spec.processor import lacks_flags, processor_flags
from orchestrator.spec.triton import ENSEMBLE


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, or worth knowing."""

    model: str  # name of the model, which is its folder's
    field: str  # the part concerned, e.g. "config.pbtxt" or "member small".
    text: str  # got, expected and what to do, on one line


@dataclass(frozen=True)
class Findings:
    """Faults and notes gathered so far, each once; what is added is about `model`."""

    model: str = ""
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)

    def of(self, model: str) -> "Findings":
        """The same lists, to add to for another model."""
        return dataclasses.replace(self, model=model)

    def fault(self, part: str, text: object) -> None:
        """Adds a fault."""
        self._add(self.faults, part, text)

    def note(self, part: str, text: object) -> None:
        """Adds a note."""
        self._add(self.notes, part, text)

    def each(self, error: SpecError, prefix: str = "") -> None:
        """Adds a fault per field of a description that cannot be read."""
        for name, text in error.faults.items():
            self.fault(f"{prefix}{name}", text if error.fix is None else f"{text}; {error.fix}")

    def _add(self, found: list[Fault], part: str, text: object) -> None:
        fault = Fault(self.model, part, " ".join(str(text).split()))
        if fault not in found:
            found.append(fault)


@dataclass(frozen=True)
class Model:
    """A model folder as it was read; parts that could not be read are None, and faults say why."""

    folder: Path
    config: ModelConfig | None
    file: Path | None
    proto: onnx.ModelProto | None
    manifest: Manifest | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def graph(self) -> onnx.GraphProto | None:
        """The graph of its ONNX file."""
        return None if self.proto is None else self.proto.graph

    @cached_property
    def sha256(self) -> str | None:
        """Hash of the model file, if there is one."""
        return sha256_of_path(self.file) if self.file is not None and self.file.is_file() else None

    @property
    def is_ensemble(self) -> bool:
        """Whether Triton itself runs it, step by step."""
        return self.config is not None and self.config.platform == ENSEMBLE

    @cached_property
    def facts(self) -> MemberFacts:
        """What its files say of requests to it."""
        return facts_of(self.config, self.graph)


def read_model(folder: Path, findings: Findings) -> Model:
    """Reads a folder and adds all faults that need no other folder to be found."""
    findings = findings.of(folder.name)
    config = _config(folder, findings)
    file = _file(folder, config, findings)
    model = Model(folder, config, file, _proto(file, findings), _manifest(folder, findings))
    _compare_graph(model, findings)
    _compare_engine(model, findings)
    _compare_manifest(model, findings)
    _compare_alternatives(model, findings)
    return model


def _config(folder: Path, findings: Findings) -> ModelConfig | None:
    try:
        config = config_of(folder)
    except RepositoryError as error:
        findings.fault("config.pbtxt", error)
        return None
    if config is None:
        text = "missing: Triton will guess names and shapes, and a batch limit of 4 for ONNX"
        findings.note("config.pbtxt", text)
    elif config.name not in ("", folder.name):
        findings.fault("config.pbtxt name", f"got {config.name}, expected the folder's name {folder.name}")
    return config


def _file(folder: Path, config: ModelConfig | None, findings: Findings) -> Path | None:
    if served_version(folder, config) is None:
        findings.fault("version", "no version folder, expected one named by a number, such as 1")
        return None
    if config is not None and config.platform == ENSEMBLE:
        return None
    file = model_file(folder, config)
    if file is None and config is None:
        text = "none that any backend loads by itself, expected one in the version folder"
        findings.fault("model file", text)
    if file is not None and not file.is_file() and not file.is_dir():
        findings.fault("model file", f"{file.relative_to(folder)} is missing; export or build it")
    return file


def _proto(file: Path | None, findings: Findings) -> onnx.ModelProto | None:
    if file is None or file.suffix != ".onnx" or not file.is_file():
        return None
    try:
        proto = onnx_from_path(file)
    except RepositoryError as error:
        findings.fault("model file", error)
        return None
    for location in sorted(external_files(proto)):
        if not (file.parent / location).is_file():
            findings.fault("model file", f"{location}, which holds weights of {file.name}, is missing")
    return proto


def _manifest(folder: Path, findings: Findings) -> Manifest | None:
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        if not is_deriving(path):
            return manifest_from_path(path)
        _compare_deriving(folder, deriving_from_path(path), findings)
    except SpecError as error:
        findings.each(error, f"{MANIFEST} ")
    return None


def _compare_deriving(folder: Path, manifest: DerivingManifest, findings: Findings) -> None:
    """Compares the manifest of a model that derives tensors with its files; a missing one fails its load."""
    if manifest.name != folder.name:
        findings.fault(f"{MANIFEST} name", f"got {manifest.name}, expected {folder.name}")
    for name, expected in {manifest.file: manifest.sha256, **manifest.data_files}.items():
        path = folder / name
        if not path.is_file():
            findings.fault(f"{MANIFEST} file", f"{name} is missing; export the model again")
        elif sha256_of_path(path) != expected:
            findings.fault(
                f"{MANIFEST} sha256", f"{name} is another file than was exported; export the model again"
            )


def _compare_graph(model: Model, findings: Findings) -> None:
    """Compares the config with the ONNX file that it describes."""
    config, proto = model.config, model.proto
    if config is None or proto is None:
        return
    batched = config.max_batch_size > 0
    inputs, outputs = tensors_from_graph(proto.graph)
    stated, stated_outputs = tensors_from_config(config.input), tensors_from_config(config.output)
    if any(_unlike(tensor, outputs, batched=batched, agree=equals) for tensor in stated_outputs.values()):
        outputs = _inferred_outputs(proto, outputs)
    for side, given, real, agree in (
        ("input", stated, inputs, may_be), ("output", stated_outputs, outputs, equals)
    ):  # fmt: skip
        _compare_side(
            side, given, real, "as the ONNX file has it", batched=batched, agree=agree, findings=findings
        )
    left_out = [name for name in inputs if stated and name not in stated]
    if left_out:
        findings.fault("config.pbtxt input", f"lacks {', '.join(left_out)}, which the ONNX file needs")
    if batched:
        served = {name: one for name, one in outputs.items() if not stated_outputs or name in stated_outputs}
        _require_batch_axis({"input": inputs, "output": served}, findings)


def _compare_side(
    side: str, stated: Tensors, real: Tensors, where: str, *, batched: bool, agree: Agree, findings: Findings
) -> None:
    for tensor in stated.values():
        text = _unlike(tensor, real, batched=batched, agree=agree)
        if text:
            findings.fault(f"config.pbtxt {side} {tensor.name}".rstrip(), f"{text} {where}")


def _require_batch_axis(sides: Mapping[str, Tensors], findings: Findings) -> None:
    for side, tensors in sides.items():
        for tensor in tensors.values():
            if tensor.dims and tensor.dims[0] != -1:
                text = "expected a free one or max_batch_size 0; export again"
                findings.fault(f"model file {side} {tensor.name}", f"batch axis fixed at {tensor.dims[0]}, {text}")


def _inferred_outputs(proto: onnx.ModelProto, outputs: Tensors) -> Tensors:
    """The outputs, with sizes that the file leaves free but its operators fix, as ONNX Runtime infers at load."""
    try:
        return tensors_from_graph(onnx.shape_inference.infer_shapes(proto).graph)[1]
    except Exception:  # inference fails on unknown operators and above protobuf's 2 GB: the file's own sizes stand
        return outputs


def _compare_engine(model: Model, findings: Findings) -> None:
    """Compares the config with the manifest of an engine, since only its own GPU could open the file."""
    config, manifest = model.config, model.manifest
    if config is None or manifest is None or not manifest.engine:
        return
    for side, tensors in (("input", manifest.inputs), ("output", (manifest.output,))):
        stated, real = tensors_from_config(getattr(config, side)), Tensors({one.name: one for one in tensors})
        _compare_side(side, stated, real, f"as in {MANIFEST}", batched=False, agree=fits, findings=findings)
    if config.max_batch_size > manifest.max_batch_size:
        text = f"got {config.max_batch_size}, expected at most the engine's {manifest.max_batch_size}"
        findings.fault("config.pbtxt max_batch_size", f"{text}; render the member again")


def _unlike(tensor: Tensor, real: Tensors, *, batched: bool, agree: Agree) -> str | None:
    if tensor.name not in real:
        return f"got {tensor.name or 'no name'}, expected one of {', '.join(real)}"
    one = real[tensor.name]
    if tensor.dtype != one.dtype:
        return f"got {tensor.dtype}, expected {one.dtype}"
    dims = one.dims[1:] if batched else one.dims
    # A configuration cannot say "no axes": a scalar has sizes of 1 there.
    good = agree(tensor.dims, dims) if one.dims else all(size == 1 for size in tensor.dims)
    return None if good else f"got dims {list(tensor.dims)}, expected {list(dims)}"


def _compare_manifest(model: Model, findings: Findings) -> None:
    manifest = model.manifest
    if manifest is None:
        return
    if manifest.name != model.name:
        findings.fault(f"{MANIFEST} name", f"got {manifest.name}, expected {model.name}")
    file = model.folder / manifest.file
    # Usually both are the same file, which is then hashed once.
    digest = model.sha256 if file == model.file else sha256_of_path(file) if file.is_file() else None
    if digest is None and file != model.file:
        findings.fault(f"{MANIFEST} file", f"{manifest.file} is missing; export the member again")
    elif digest is not None and digest != manifest.sha256:
        hashes = f"hash {digest[:12]}..., manifest {manifest.sha256[:12]}..."
        text = f"{manifest.file} is another file than was exported ({hashes}); export the member again"
        findings.fault(f"{MANIFEST} sha256", text)
    if model.file is not None and model.file.parent != file.parent and model.file.is_file():
        text = f"describes {manifest.file}, Triton serves {model.file.relative_to(model.folder)} by default"
        findings.note(f"{MANIFEST} file", text)
    _compare_marks(model.folder, manifest, findings)
    _compare_output_kind(model, manifest, findings)


def _compare_marks(folder: Path, manifest: Manifest, findings: Findings) -> None:
    """Checks the weights beside the model file, and notes random or eight-bit weights."""
    for name, expected in manifest.data_files.items():
        if (folder / name).is_file() and sha256_of_path(folder / name) != expected:
            text = f"{name} is another file than was exported; export the member again"
            findings.fault(f"{MANIFEST} data_files", text)
    if manifest.options.get("random_weights") and not manifest.random_weights:
        text = "was exported with random weights, and says it was not; export the member again"
        findings.fault(f"{MANIFEST} random_weights", text)
    if manifest.processor_flags:
        here = "has none of them" if lacks_flags(manifest.processor_flags, processor_flags()) else "has one"
        text = f"serve it on processors with one of {', '.join(manifest.processor_flags)}; this one {here}"
        findings.note("eight-bit weights", f"others add their products up wrong: {text}")
    if manifest.random_weights:
        findings.note("weights", "random, never trained: its answers mean nothing")


def _compare_output_kind(model: Model, manifest: Manifest, findings: Findings) -> None:
    """Compares the manifest's output kind with the config's, which clients read, and the graph's last operator."""
    stated, where = stated_kind(model.config), f"config.pbtxt parameter {PARAMETER}"
    if model.config is not None and stated is None:
        findings.note(where, "missing: clients go by the values of the scores; render the member again")
    elif stated is not None and stated != manifest.output_kind:
        text = f"got {stated}, expected {manifest.output_kind} of its manifest; render the member again"
        findings.fault(where, text)
    ending = None if model.graph is None else ending_of(model.graph, manifest.output.name)
    # The sigmoids of x and -x are a softmax of two classes.
    fits = {LOGITS, manifest.output_kind} | ({SIGMOID} if manifest.output.dims == (2,) else set())
    if ending is not None and ending[0] not in fits:
        text = f"got {manifest.output_kind}, but the graph ends in {ending[1]}; export the member again"
        findings.fault(f"{MANIFEST} output_kind", text)


def stated_kind(config: ModelConfig | None) -> str | None:
    """The output kind that a config states, right or wrong; None where it states none."""
    if config is None or PARAMETER not in config.parameters:
        return None
    return str(config.parameters[PARAMETER].string_value)


def _compare_alternatives(model: Model, findings: Findings) -> None:
    """Checks that configs/NAME.pbtxt, for --model-config-name=NAME, describe the same model."""
    for path in sorted((model.folder / "configs").glob("*.pbtxt")):
        field = f"configs/{path.name}"
        try:
            other = config_from_path(path)
        except RepositoryError as error:
            findings.fault(field, error)
            continue
        if model.config is None:
            continue
        sides = ("name", "max_batch_size", "input", "output")
        differing = [side for side in sides if getattr(other, side) != getattr(model.config, side)]
        if stated_kind(other) != stated_kind(model.config):
            differing.append(f"parameter {PARAMETER}")
        for side in differing:
            findings.fault(f"{field} {side}", "differs from config.pbtxt; render the member again")
