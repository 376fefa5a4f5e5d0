"""A plan against the members it names, its rendered folders, and the one-file models made from it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.onefile import OneFile, answering, onefile_from_model
from orchestrator.pbtxt import CONFIG, differences
from orchestrator.repository.check.models import Findings, Model, stated_kind
from orchestrator.repository.configs import LABELS, TUNABLE, cascade_config, is_refused, label_text, with_plan_of
from orchestrator.repository.files import RUNTIME, SHIM, runtime_files, sha256_of_path
from orchestrator.repository.index import (
    label_file_of,
    names_in_label_file,
    plan_path,
    readable_config,
    served_version,
    versions_served,
)
from orchestrator.repository.members import MemberFacts, Tensors, fits, planned_version, sha256_of_version
from orchestrator.repository.render import ensemble_configs
from orchestrator.spec import CascadeSpec, Derived, FusedPrefix, Manifest, Member, RowTensor, cascade_from_path
from orchestrator.spec.answer import first_misplaced, first_unlike
from orchestrator.spec.cascade import PLAN, PLAN_SHA256
from orchestrator.spec.manifest import Tensor
from orchestrator.spec.request import plan_dtype
from orchestrator.spec.triton import versions_in

# The server runs the calls of one instance on 32 threads by default, and late answers need some of them.
MAX_CALLS_IN_FLIGHT = 30
Report = Callable[[str], None]
_AGAIN = "render again"
_UNDO = "edited by hand: undo it and change the plan instead, or remove the file and render again"


def check_members(
    spec: CascadeSpec, models: Mapping[str, Model], *, findings: Findings, known: Sequence[str]
) -> None:
    """Adds what does not fit between a plan and those of its members that exist.

    A message about a missing member lists the repository's models, `known`.
    """
    findings = findings.of(spec.name)
    random = any(model.manifest is not None and model.manifest.random_weights for model in models.values())
    if spec.fit is not None and (random or spec.fit.random_weights):
        text = "made with members of random weights"
        if spec.fit.accuracy is None:
            findings.note("fit", f"{text}: for cost and speed work, not for accuracy")
        else:
            findings.fault("fit accuracy", f"{text}: an accuracy of them is no result; plan with trained ones")
    calls = len(spec.stages[0].members)
    for stage in spec.stages[1:]:
        workers = spec.limits.workers_per_stage or 1 + min(member.instances for member in stage.members)
        calls += len(stage.members) * workers
    if calls > MAX_CALLS_IN_FLIGHT:
        text = f"up to {calls} calls to members at once; start the server with --backend-config=python,"
        findings.note("limits workers_per_stage", f"{text}thread-pool-size={calls + 8}")
    for member in spec.members:
        if member.name in models:
            _Pair(spec, member, models[member.name], findings).check()
            continue
        text = f"no such model, the repository has {', '.join(known) or 'no other models'}"
        findings.fault(f"member {member.name}", f"{text}; export or copy it there")


class _Pair:
    """A member of a plan, compared with the model of that name."""

    def __init__(self, spec: CascadeSpec, member: Member, model: Model, findings: Findings) -> None:
        self.spec, self.member, self.model = spec, member, model
        self.fault = partial(findings.fault, f"member {member.name}")
        self.note = partial(findings.note, f"member {member.name}")

    def check(self) -> None:
        facts, config = self.model.facts, self.model.config
        if config is not None:
            self._config(config)
        elif not (self.model.folder / CONFIG).exists():
            self._no_config(facts)
        _check_batches(self.member.max_batch_size, facts.max_batch_size, fault=self.fault)
        if facts.inputs is not None:
            _check_inputs(self.spec, self.member, facts.inputs, fault=self.fault, note=self.note)
        if facts.outputs is not None:
            self._output(facts.outputs)
        if facts.instances not in (None, self.member.instances):
            text = f"plan says {self.member.instances} instances, its config runs {facts.instances}"
            self.note(f"{text}: workers are fitted to the plan's number")
        self._output_kind()
        self._class_names()
        manifest = self.model.manifest
        if manifest is not None and self.spec.cost_unit == "MACs" and not _may_cost(manifest, self.member.cost):
            self.note(f"costs {self.member.cost:g} MACs in the plan, {manifest.macs:g} in its manifest")
        for text in version_faults(self.member, self.model.folder, config=config):
            self.fault(text)

    def _no_config(self, facts: MemberFacts) -> None:
        """Asks for a config only where it is unknown how Triton would complete a missing one."""
        if self.model.manifest is not None or facts.inputs is None:
            self.fault("no config.pbtxt, expected one: what Triton guesses is not known here; write or render it")

    def _config(self, config: ModelConfig) -> None:
        if config.model_transaction_policy.decoupled:
            self.fault("is decoupled, expected a model that answers each request once")
        if config.HasField("sequence_batching"):
            self.fault("keeps state over a sequence of requests, expected one that answers each row by itself")

    def _output(self, outputs: Tensors) -> None:
        name = self.member.output
        if name not in outputs:
            self.fault(f"got output {name} in the plan, expected one of {', '.join(outputs)}")
            return
        got = outputs[name]
        if got.dtype in ("FP16", "FP64"):
            self.note(f"output {name} is {got.dtype}: every answer is converted to FP32")
        elif got.dtype != "FP32":
            self.fault(f"output {name} is {got.dtype}, expected FP32")
        if not fits(got.dims, (self.spec.classes,)):
            expected = f"[{self.spec.classes}], one score per class of the plan"
            self.fault(f"output {name} has dims {list(got.dims)}, expected {expected}")

    def _output_kind(self) -> None:
        planned, manifest = self.member.output_kind, self.model.manifest
        if manifest is None:
            stated, where = stated_kind(self.model.config), "as its config.pbtxt says"
        elif manifest.output.name == self.member.output:
            stated, where = manifest.output_kind, "of its manifest"
        else:
            return
        if stated not in (None, planned):
            self.fault(f"got output_kind {planned} in the plan, expected {stated} {where}")

    def _class_names(self) -> None:
        manifest = self.model.manifest
        if manifest is not None and manifest.labels is not None:
            self._compare_names(manifest.labels, "its manifest", is_sure=True)
            return
        path = label_file_of(self.model.folder, self.model.config, output=self.member.output)
        if path is None:
            return
        try:
            self._compare_names(names_in_label_file(path), path.name, is_sure=False)
        except RepositoryError as error:
            # Triton does not load a model whose label file is missing, and accepts any bytes in one.
            (self.note if path.is_file() else self.fault)(error)

    def _compare_names(self, names: Sequence[str], said: str, *, is_sure: bool) -> None:
        """Compares a member's class names with the plan's; names in a label file may be spelt differently."""
        planned = self.spec.labels
        if len(names) != self.spec.classes:
            text = f"{said} has {len(names)} class names, expected {self.spec.classes}: none of them is taken"
            (self.fault if is_sure else self.note)(text)
            return
        if planned is None:
            self.note(f"{said} names the classes, and the plan does not; {_AGAIN}")
            return
        moved = first_misplaced(names, planned)
        place = first_unlike(names, planned) if is_sure and moved is None else moved
        if place is not None:
            text = f"labels differ: class {place} is {names[place]!r} in {said}, {planned[place]!r} in the plan"
            fix = _AGAIN if moved is None else "correct the one in the wrong order, and plan again"
            self.fault(f"{text}; {fix}")


def _check_inputs(
    spec: CascadeSpec, model: Member | Derived, inputs: Tensors, *, fault: Report, note: Report
) -> None:
    """Adds what does not fit between the tensors that a plan gives a model and those that it takes."""
    reads = spec.tensors_of(model)
    for name, own in reads.items():
        if name not in inputs:
            fault(f"got input {name} in the plan, expected one of {', '.join(inputs)}")
        elif text := _unlike(inputs[name], spec.tensors[own]):
            fault(f"input {name} {text}")
        if name != own and spec.has_one_tensor:
            note(f"input is named {name}, the cascade's {own}: every batch is copied once more")
    others = [other for other in inputs if other not in reads]
    if others and set(reads) & set(inputs):
        fault(f"needs inputs {', '.join(others)} too, expected {', '.join(reads)} alone")


def _unlike(got: Tensor, wanted: RowTensor) -> str | None:
    """How a model's tensor differs from the plan's."""
    if plan_dtype(got.dtype) != wanted.dtype:
        return f"is {got.dtype}, expected the plan's {wanted.dtype}"
    if not fits(got.dims, wanted.dims):
        return f"has dims {list(got.dims)}, expected the plan's {list(wanted.dims)}"
    if any(size == -1 and own != -1 for size, own in zip(wanted.dims, got.dims, strict=True)):
        return f"has dims {list(got.dims)}, expected a length that varies, {list(wanted.dims)}"
    return None


def check_derived(spec: CascadeSpec, models: Mapping[str, Model], *, findings: Findings) -> None:
    """Adds what does not fit between a plan and its deriving models."""
    for derived in spec.derived:
        fault = partial(findings.of(spec.name).fault, f"deriving model {derived.name}")
        model = models.get(derived.name)
        if model is None:
            fault("no such model; export or copy it there")
            continue
        _check_batches(derived.max_batch_size, model.facts.max_batch_size, fault=fault)
        if model.facts.inputs is not None:
            _check_inputs(spec, derived, model.facts.inputs, fault=fault, note=fault)
        if model.facts.outputs is not None:
            _check_derived_outputs(derived, model.facts.outputs, fault=fault)
        for text in version_faults(derived, model.folder, config=model.config):
            fault(text)


def _may_cost(manifest: Manifest, macs: float) -> bool:
    """Whether a row may cost so much: what the manifest says, or less for rows below the longest."""
    length = manifest.length
    return macs == manifest.macs or (
        length is not None and length.macs(0.0) <= macs <= length.macs(length.longest)
    )


def _check_batches(planned: int, limit: int | None, *, fault: Report) -> None:
    if limit == 0:
        fault("takes no batches (max_batch_size 0), expected a batch axis and a limit of at least 1")
    elif limit is not None and planned > limit:
        fault(f"got max_batch_size {planned} in the plan, expected at most its config's {limit}")


def _check_derived_outputs(derived: Derived, known: Tensors, *, fault: Report) -> None:
    for tensor in derived.outputs:
        name = tensor.source or tensor.name
        if name not in known:
            fault(f"got output {name} in the plan, expected one of {', '.join(known)}")
        elif plan_dtype(known[name].dtype) != tensor.dtype or not fits(known[name].dims, tensor.dims):
            got = f"is {known[name].dtype} {list(known[name].dims)}"
            fault(f"output {name} {got}, expected the plan's {tensor.dtype} {list(tensor.dims)}")


def version_faults(
    planned: Member | FusedPrefix | Derived, folder: Path, *, config: ModelConfig | None
) -> Iterator[str]:
    """Faults of the version of a model that a plan means, and of its files.

    Raises:
        RepositoryError: a file cannot be read.
    """
    yield from unserved_version(planned, folder, config=config)
    version = planned_version(planned, folder, config=config)
    found = sha256_of_version(folder, config, version=version)
    expected = planned.sha256
    if found is not None and expected is not None and found != expected:
        fitted = "made with the plan" if isinstance(planned, FusedPrefix) else "the thresholds were fitted on"
        yield f"model file has hash {found[:12]}..., {fitted} {expected[:12]}...; plan again"
    beside = planned.data_files if isinstance(planned, Member) else {}
    for name, digest in beside.items():
        path = folder / str(version) / name
        if path.is_file() and sha256_of_path(path) != digest:
            yield f"{name} of version {version} holds other weights than the thresholds were fitted on; plan again"


def unserved_version(
    planned: Member | FusedPrefix | Derived, folder: Path, *, config: ModelConfig | None
) -> Iterator[str]:
    """A fault where Triton does not serve the version that a plan names."""
    served = versions_served(folder, config)
    if planned.version is not None and planned.version not in served:
        listed = ", ".join(map(str, served)) or "none"
        there = planned.version in versions_in(folder)
        why = "its version_policy leaves that one out" if there else "that one is not there"
        fix = "let it be served, or render the plan without a version"
        yield f"got version {planned.version} in the plan, Triton serves {listed}: {why}; {fix}"


def check_onefile(model: Model, models: Mapping[str, Path], *, findings: Findings) -> None:
    """Adds what has changed since a one-file model was written; nothing for other models."""
    onefile = _onefile(model, findings)
    if onefile is None:
        return
    plan = _plan(models.get(onefile.spec.name))
    versions = {} if plan is None else {member.name: member.version for member in plan.members}
    hashes = {name: _sha256(models[name], versions.get(name)) for name in onefile.sha256 if name in models}
    for field, text in onefile.outdated(plan, hashes).items():
        findings.of(model.name).fault(f"one file {field}", text)


def check_in_process(spec: CascadeSpec, models: Mapping[str, Model], *, findings: Findings) -> None:
    """Adds a fault for each member that a plan wants run in the cascade's process and that cannot be."""
    for member in spec.members_in_process:
        model = models.get(member.name)
        if model is not None and (model.file is None or model.file.suffix != ".onnx"):
            got = "no model file" if model.file is None else model.file.name
            text = f"got {got}, expected an ONNX file to run in process; render with fewer stages `in_process`"
            findings.of(spec.name).fault(f"member {member.name}", text)


def check_fused_prefix(spec: CascadeSpec, model: Model | None, *, findings: Findings) -> None:
    """Adds what does not fit between a plan and its fused prefix, whose model may be missing."""
    prefix = spec.fused_prefix
    assert prefix is not None
    fault = partial(findings.of(spec.name).fault, f"fused prefix {prefix.name}")
    if model is None:
        fault("no such model; write it with `python -m export onefile --stages`")
        return
    onefile = _onefile(model, findings)
    if onefile is None or onefile.stages is None:
        fault("not the leading stages of a cascade, expected what onefile --stages writes")
    elif onefile.stages != prefix.stages or dataclasses.replace(onefile.spec, name=spec.name) != answering(spec):
        fault("made from another plan; write it again with `python -m export onefile`")
    if model.config is not None and model.config.max_batch_size < prefix.max_batch_size:
        fault(f"takes {model.config.max_batch_size} rows a call, the plan says {prefix.max_batch_size}")
    for text in version_faults(prefix, model.folder, config=model.config):
        fault(text)


def _onefile(model: Model, findings: Findings) -> OneFile | None:
    try:
        return None if model.proto is None else onefile_from_model(model.proto, subject=str(model.file))
    except SpecError as error:
        findings.of(model.name).each(error)
        return None


def _plan(folder: Path | None) -> CascadeSpec | None:
    path = None if folder is None else plan_path(folder)
    try:
        return None if path is None else cascade_from_path(path)
    except SpecError:
        return None  # reported when the cascade itself is checked


def _sha256(folder: Path, version: int | None) -> str | None:
    try:
        return sha256_of_version(folder, readable_config(folder), version=version)
    except RepositoryError:
        return None


def check_cascade_folder(spec: CascadeSpec, model: Model, *, plan: Path, findings: Findings) -> None:
    """Adds the differences between a cascade's folder and a new rendering of its plan."""
    findings = findings.of(model.name)
    if spec.name != model.name:
        findings.fault("cascade.json name", f"got {spec.name}, expected the folder's name {model.name}")
    served = served_version(model.folder, model.config)
    if plan.parent.name != str(served):
        text = f"lies in version {plan.parent.name}, but Triton serves version {served}"
        findings.fault(PLAN, f"{text}; render it there")
    try:
        compare_configs(model, cascade_config(spec), findings=findings)
    except RepositoryError as error:
        findings.fault(PLAN, error)
    _check_labels(spec, model, findings)
    script = plan.parent / "model.py"
    if script.is_file() and script.read_bytes() != SHIM.encode():
        findings.fault("model.py", f"is not the file this version of committee writes; {_AGAIN}")
    beside = plan.parent / RUNTIME
    if beside.is_dir():
        differing = [name for name, data in runtime_files().items() if _bytes(beside / name) != data]
        if differing:
            text = f"the runtime beside model.py differs from the installed one in {len(differing)} files"
            findings.note(RUNTIME, f"{text}; `committee render --standalone` brings it up to date")


def check_ensemble_folder(
    spec: CascadeSpec, model: Model, *, mean: Model, repository: Path, findings: Findings
) -> None:
    """Adds the differences between an ensemble's two folders and a new rendering of its plan."""
    if spec.name != model.name:
        findings.of(mean.name).fault("plan name", f"got {spec.name}, expected {model.name}; {_AGAIN}")
    try:
        ensemble, averaging, _ = ensemble_configs(spec, repository)
    except RepositoryError as error:
        findings.of(model.name).fault("members", error)
        return
    compare_configs(model, ensemble, findings=findings)
    compare_configs(mean, averaging, findings=findings)
    _check_labels(spec, model, findings)
    _check_labels(spec, mean, findings)


def compare_configs(model: Model, expected: ModelConfig, *, findings: Findings) -> None:
    """Adds every field in which a config differs from the one that would be rendered."""
    findings = findings.of(model.name)
    if model.config is None:
        if not (model.folder / CONFIG).exists():
            findings.fault("config.pbtxt", f"missing; {_AGAIN}")
        return
    # Rendered models do not use GPUs, but instances on one would take memory of it.
    on_gpu = any(group.kind == ModelInstanceGroup.KIND_GPU for group in model.config.instance_group)
    config = with_plan_of(model.config, expected)
    if config != model.config:
        text = "is not the plan's, so clients of several servers cannot tell plans apart"
        findings.note(f"config.pbtxt {PLAN_SHA256}", f"{text}; {_AGAIN}")
    for field, (got, wanted) in differences(config, expected).items():
        what = f"config.pbtxt {field}"
        if field == "instance_group" and on_gpu:
            hint = "correct it there, the runtime computes nothing on a GPU"
        elif field in TUNABLE:
            findings.note(what, f"is {_short(got)}, not {_short(wanted)} as rendered; render keeps it")
            continue
        else:
            hint = _UNDO if is_refused(model.folder / CONFIG, expected) else _AGAIN
        findings.fault(what, f"got {_short(got)}, expected {_short(wanted)}; {hint}")


def _check_labels(spec: CascadeSpec, model: Model, findings: Findings) -> None:
    if spec.labels is not None and _bytes(model.folder / LABELS) != label_text(spec.labels).encode():
        findings.of(model.name).fault(LABELS, f"missing, or not the plan's labels; {_AGAIN}")


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
