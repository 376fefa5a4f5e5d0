"""One-file cascades and leads against the plans and members they were made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.onefile import OneFile, answering, onefile_from_metadata
from orchestrator.repository.check.models import Model
from orchestrator.repository.check.report import Findings
from orchestrator.repository.completion import sha256_of_version
from orchestrator.repository.index import plan_path, readable_config, served_version
from orchestrator.spec import CascadeSpec, cascade_from_path


def check_onefile(model: Model, models: Mapping[str, Path], findings: Findings) -> None:
    """Adds what has changed since a one-file model was written; nothing for any other model.

    Args:
        model: any model of the repository.
        models: every folder of it, by name.
        findings: where to add it.
    """
    onefile = _onefile(model, findings)
    if onefile is None:
        return
    plan = _plan(models.get(onefile.spec.name))
    versions = {} if plan is None else {member.name: member.version for member in plan.members}
    hashes = {name: _sha256(models[name], versions.get(name)) for name in onefile.sha256 if name in models}
    for field, text in onefile.outdated(plan, hashes).items():
        findings.fault(model.name, f"one file {field}", text)


def check_lead(spec: CascadeSpec, model: Model | None, findings: Findings) -> None:
    """Adds what does not fit between a plan and its lead.

    Args:
        spec: a plan with a lead.
        model: the lead's folder as it was read, None where there is none.
        findings: where to add it.
    """
    lead = spec.fused_prefix
    assert lead is not None
    field = f"lead {lead.name}"
    if model is None:
        findings.fault(spec.name, field, "no such model; write it with `python -m export onefile --stages`")
        return
    onefile = _onefile(model, findings)
    if onefile is None or onefile.stages is None:
        findings.fault(
            spec.name, field, "not the leading stages of a cascade, expected what onefile --stages writes"
        )
    elif onefile.stages != lead.stages or dataclasses.replace(onefile.spec, name=spec.name) != answering(spec):
        findings.fault(spec.name, field, "made from another plan; write it again with `python -m export onefile`")
    if model.config is not None and model.config.max_batch_size < lead.max_batch_size:
        text = f"takes {model.config.max_batch_size} rows a call, the plan says {lead.max_batch_size}"
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
        return None  # named where the cascade itself is looked at


def _sha256(folder: Path, version: int | None) -> str | None:
    config = readable_config(folder)
    try:
        version = served_version(folder, config) if version is None else version
        return None if version is None else sha256_of_version(folder, config, version)
    except RepositoryError:
        return None
