"""Rendered folders and one-file cascades against the plans they were made from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.onefile import OneFile, answering, onefile_from_metadata
from orchestrator.pbtxt import CONFIG, differences
from orchestrator.repository.check.models import Model
from orchestrator.repository.check.report import Findings
from orchestrator.repository.completion import sha256_of_version
from orchestrator.repository.configs import LABELS, cascade_config
from orchestrator.repository.index import plan_path, readable_config, served_version
from orchestrator.repository.render import ensemble_configs
from orchestrator.repository.shim import RUNTIME, SHIM, runtime_files
from orchestrator.repository.tuning import TUNABLE, is_refused
from orchestrator.spec import CascadeSpec, cascade_from_path
from orchestrator.spec.cascade import PLAN

_AGAIN = "render again"
_UNDO = "edited by hand: undo it and change the plan instead, or remove the file and render again"


def check_onefile(model: Model, models: Mapping[str, Path], *, findings: Findings) -> None:
    """Adds what has changed since a one-file model was written; nothing for other models."""
    onefile = _onefile(model, findings)
    if onefile is None:
        return
    plan = _plan(models.get(onefile.spec.name))
    versions = {} if plan is None else {member.name: member.version for member in plan.members}
    hashes = {name: _sha256(models[name], versions.get(name)) for name in onefile.sha256 if name in models}
    for field, text in onefile.outdated(plan, hashes).items():
        findings.fault(model.name, f"one file {field}", text)


def check_fused_prefix(spec: CascadeSpec, model: Model | None, *, findings: Findings) -> None:
    """Adds what does not fit between a plan and its fused prefix, whose model may be missing."""
    prefix = spec.fused_prefix
    assert prefix is not None
    field = f"lead {prefix.name}"
    if model is None:
        findings.fault(spec.name, field, "no such model; write it with `python -m export onefile --stages`")
        return
    onefile = _onefile(model, findings)
    if onefile is None or onefile.stages is None:
        findings.fault(
            spec.name, field, "not the leading stages of a cascade, expected what onefile --stages writes"
        )
    elif onefile.stages != prefix.stages or dataclasses.replace(onefile.spec, name=spec.name) != answering(spec):
        findings.fault(spec.name, field, "made from another plan; write it again with `python -m export onefile`")
    if model.config is not None and model.config.max_batch_size < prefix.max_batch_size:
        text = f"takes {model.config.max_batch_size} rows a call, the plan says {prefix.max_batch_size}"
        findings.fault(spec.name, field, text)


def _onefile(model: Model, findings: Findings) -> OneFile | None:
    try:
        return onefile_from_metadata(model.metadata, subject=str(model.file))
    except SpecError as error:
        findings.each(model.name, error.faults, fix=error.fix)
        return None


def _plan(folder: Path | None) -> CascadeSpec | None:
    path = None if folder is None else plan_path(folder)
    try:
        return None if path is None else cascade_from_path(path)
    except SpecError:
        return None  # reported when the cascade itself is checked


def _sha256(folder: Path, version: int | None) -> str | None:
    config = readable_config(folder)
    try:
        version = served_version(folder, config) if version is None else version
        return None if version is None else sha256_of_version(folder, config, version=version)
    except RepositoryError:
        return None


def check_cascade_folder(spec: CascadeSpec, model: Model, *, plan: Path, findings: Findings) -> None:
    """Adds the differences between a cascade's folder and a new rendering of its plan."""
    if spec.name != model.name:
        findings.fault(
            model.name, "cascade.json name", f"got {spec.name}, expected the folder's name {model.name}"
        )
    served = served_version(model.folder, model.config)
    if plan.parent.name != str(served):
        text = f"lies in version {plan.parent.name}, but Triton serves version {served}"
        findings.fault(model.name, PLAN, f"{text}; render it there")
    try:
        compare_configs(model, cascade_config(spec), findings=findings)
    except RepositoryError as error:
        findings.fault(model.name, PLAN, error)
    _check_labels(spec, model, findings=findings)
    script = plan.parent / "model.py"
    if script.is_file() and script.read_bytes() != SHIM.encode():
        text = "is not the file this version of committee writes"
        findings.fault(model.name, "model.py", f"{text}; {_AGAIN}")
    beside = plan.parent / RUNTIME
    if beside.is_dir():
        differing = [name for name, data in runtime_files().items() if _bytes(beside / name) != data]
        if differing:
            text = f"the runtime beside model.py differs from the installed one in {len(differing)} files"
            findings.note(model.name, RUNTIME, f"{text}; `committee render --standalone` brings it up to date")


def check_ensemble_folder(
    spec: CascadeSpec, model: Model, *, mean: Model, repository: Path, findings: Findings
) -> None:
    """Adds the differences between an ensemble's two folders and a new rendering of its plan."""
    if spec.name != model.name:
        findings.fault(mean.name, "plan name", f"got {spec.name}, expected {model.name}; {_AGAIN}")
    try:
        ensemble, averaging, _ = ensemble_configs(spec, repository)
    except RepositoryError as error:
        findings.fault(model.name, "members", error)
        return
    compare_configs(model, ensemble, findings=findings)
    compare_configs(mean, averaging, findings=findings)
    _check_labels(spec, model, findings=findings)
    _check_labels(spec, mean, findings=findings)


def compare_configs(model: Model, expected: ModelConfig, *, findings: Findings) -> None:
    """Adds every field in which a config differs from the one that would be rendered."""
    if model.config is None:
        if not (model.folder / CONFIG).exists():
            findings.fault(model.name, "config.pbtxt", f"missing; {_AGAIN}")
        return
    for field, (got, wanted) in differences(model.config, expected).items():
        what = f"config.pbtxt {field}"
        if field == "instance_group" and _is_on_gpu(model.config):
            hint = "correct it there, the runtime computes nothing on a GPU"
        elif field in TUNABLE:
            findings.note(model.name, what, f"is {_short(got)}, not {_short(wanted)} as rendered; render keeps it")
            continue
        else:
            hint = _UNDO if is_refused(model.folder / CONFIG, expected) else _AGAIN
        findings.fault(model.name, what, f"got {_short(got)}, expected {_short(wanted)}; {hint}")


def _is_on_gpu(config: ModelConfig) -> bool:
    """Whether instances are put on GPUs, which rendered models do not use but would take memory of."""
    return any(group.kind == ModelInstanceGroup.KIND_GPU for group in config.instance_group)


def _check_labels(spec: CascadeSpec, model: Model, *, findings: Findings) -> None:
    if spec.labels is None:
        return
    if _bytes(model.folder / LABELS) != "".join(f"{label}\n" for label in spec.labels).encode():
        findings.fault(model.name, LABELS, f"missing, or not the plan's labels; {_AGAIN}")


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
