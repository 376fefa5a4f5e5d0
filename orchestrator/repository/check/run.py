"""One run of `check` over the models of a repository, and over what one Triton image would make of them."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.combining import averaging_name
from orchestrator.repository.check.models import Fault, Findings, Model, read_model
from orchestrator.repository.check.plans import (
    check_cascade_folder,
    check_ensemble_folder,
    check_fused_prefix,
    check_members,
    check_onefile,
    unserved_version,
    version_faults,
)
from orchestrator.repository.files import disk_errors, is_shim
from orchestrator.repository.index import ensemble_spec, model_folders, plan_path, readable_config
from orchestrator.spec import CascadeSpec, FusedPrefix, Member, cascade_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.triton import RELEASES, Release, runtime_of


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of a check; truthy when there are no faults.

    Args:
        repository: the repository that was checked.
        checked: names of the models that were checked.
        faults: things that would make serving fail or answer wrongly.
        notes: things that cost time or deserve a look.
    """

    repository: Path
    checked: tuple[str, ...]
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]

    def __bool__(self) -> bool:
        """Whether the repository can be served as its plans say."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "repository": str(self.repository),
            "passed": bool(self),
            "checked": list(self.checked),
            "faults": [vars(fault) for fault in self.faults],
            "notes": [vars(note) for note in self.notes],
        }


def check(repository: Path | str, names: Sequence[str] | None = None, *, triton: str | None = None) -> CheckReport:
    """Checks models, and the members they depend on.

    Args:
        repository: a Triton model repository.
        names: models to check; None means all.
        triton: a release, "26.07", whose image is to serve them; None compares with no image.

    Raises:
        RepositoryError: the repository itself is missing, empty or not readable, or there is no such release.
    """
    repository = Path(repository)
    release = None if triton is None else release_from_name(triton)
    folders = model_folders(repository)
    run = _Check(repository, folders)
    with disk_errors(f"model repository {repository}"):
        for name in folders if names is None else names:
            run.look_at(name)
        run.look_for_cycles()
        if release is not None:
            check_release(release, run.models, plans=run.plans, findings=run.findings)
    return CheckReport(
        repository=repository,
        checked=tuple(sorted(run.seen & set(folders))),
        faults=tuple(run.findings.faults),
        notes=tuple(run.findings.notes),
    )


def check_plans(repository: Path) -> CheckReport:
    """The fast part of `check`: whether plans can be read, and name versions that are served.

    Raises:
        RepositoryError: the repository itself is missing, empty or not readable.
    """
    folders = model_folders(repository)
    run = _Check(repository, folders)
    with disk_errors(f"model repository {repository}"):
        plans = {name: plan for name, folder in folders.items() if (plan := plan_path(folder)) is not None}
        for name, plan in plans.items():
            run.look_at_versions(name, plan)
    return CheckReport(repository=repository, checked=tuple(plans), faults=tuple(run.findings.faults), notes=())


class _Check:
    """One run; every model is read once, however many plans name it."""

    def __init__(self, repository: Path, folders: dict[str, Path]) -> None:
        self.repository = repository
        self.folders = folders
        self.findings = Findings()
        self.seen: set[str] = set()
        self.needs: dict[str, list[str]] = {}
        self.models: dict[str, Model] = {}
        self.plans: dict[str, CascadeSpec] = {}

    def look_at(self, name: str) -> None:
        if name in self.seen:
            return
        self.seen.add(name)
        if name not in self.folders:
            known = ", ".join(self.folders)
            self.findings.fault(name, "folder", f"no such model, the repository has {known}")
            return
        model = self._model(name)
        plan = plan_path(self.folders[name])
        if plan is not None:
            spec = self.spec(name, plan)
            if spec is not None:
                self.plans[name] = spec
                check_cascade_folder(spec, model, plan=plan, findings=self.findings)
                self._look_at_members(name, spec)
        elif model.is_ensemble:
            self._look_at_ensemble(model)
        elif is_shim(model.file):
            self.findings.fault(name, PLAN, "missing beside model.py; render the cascade again")
        else:
            check_onefile(model, self.folders, findings=self.findings)

    def look_for_cycles(self) -> None:
        try:
            TopologicalSorter(self.needs).prepare()
        except CycleError as error:
            path = error.args[1]
            self.findings.fault(path[0], "members", f"a cycle, {' -> '.join(path)}: none of them can answer")

    def _model(self, name: str) -> Model:
        if name not in self.models:
            self.models[name] = read_model(self.folders[name], self.findings)
        return self.models[name]

    def spec(self, name: str, plan: Path) -> CascadeSpec | None:
        try:
            return cascade_from_path(plan)
        except SpecError as error:
            texts = {f"cascade.json {field}": text for field, text in error.faults.items()}
            self.findings.each(name, texts, fix=error.fix)
            return None

    def look_at_versions(self, name: str, plan: Path) -> None:
        """Adds a fault for each model of a plan that exists but is not served in the planned version."""
        spec = self.spec(name, plan)
        models: list[Member | FusedPrefix] = [] if spec is None else [*spec.members]
        if spec is not None and spec.fused_prefix is not None:
            models.append(spec.fused_prefix)
        for planned in models:
            folder = self.folders.get(planned.name)
            for text in (
                () if folder is None else unserved_version(planned, folder, config=readable_config(folder))
            ):
                self.findings.fault(name, f"member {planned.name}", text)

    def _look_at_members(self, name: str, spec: CascadeSpec) -> None:
        self.needs[name] = list(spec.models)
        present = [model for model in spec.models if model in self.folders]
        models = {member: self._model(member) for member in present}
        check_members(
            spec, models, findings=self.findings, known=[other for other in self.folders if other != name]
        )
        if spec.fused_prefix is not None:
            prefix = models.get(spec.fused_prefix.name)
            check_fused_prefix(spec, prefix, findings=self.findings)
            for text in (
                () if prefix is None else version_faults(spec.fused_prefix, prefix.folder, config=prefix.config)
            ):
                self.findings.fault(name, f"lead {spec.fused_prefix.name}", text)
        for member in present:
            self.look_at(member)

    def _look_at_ensemble(self, model: Model) -> None:
        """Checks a rendered ensemble by the plan in its averaging model, any other ensemble by its steps."""
        try:
            spec = ensemble_spec(self.folders, model.name)
        except SpecError as error:
            self.findings.each(averaging_name(model.name), error.faults, fix=error.fix)
            return
        except RepositoryError:
            # The averaging model is broken; reading it as a step below finds the fault.
            spec = None
        if spec is not None:
            mean = self._model(averaging_name(model.name))
            self.seen.add(mean.name)
            check_ensemble_folder(spec, model, mean=mean, repository=self.repository, findings=self.findings)
            self._look_at_members(model.name, spec)
            return
        self._look_at_steps(model)

    def _look_at_steps(self, model: Model) -> None:
        assert model.config is not None
        steps = model.config.ensemble_scheduling.step
        self.needs[model.name] = [step.model_name for step in steps]
        for step in steps:
            fault = partial(self.findings.fault, model.name, f"step {step.model_name}")
            if step.model_name not in self.folders:
                fault(f"no such model, the repository has {', '.join(self.folders)}")
                continue
            part = self._model(step.model_name)
            facts = part.facts
            # A step may feed optional inputs, too.
            optional = [] if part.config is None else [one.name for one in part.config.input if one.optional]
            inputs = None if facts.inputs is None else [*facts.inputs, *optional]
            for side, used, known in (
                ("input", step.input_map, inputs), ("output", step.output_map, facts.outputs)
            ):  # fmt: skip
                unknown = [] if known is None else sorted(set(used) - set(known))
                if unknown:
                    fault(f"got {side} {', '.join(unknown)}, expected {', '.join(known or ())}")
            self.look_at(step.model_name)


def release_from_name(name: str) -> Release:
    """The release of that name.

    Raises:
        RepositoryError: there is no such release, or nothing is known of it.
    """
    if name in RELEASES:
        return RELEASES[name]
    near = difflib.get_close_matches(name, RELEASES, n=2, cutoff=0.5)
    first, *_, last = RELEASES
    raise RepositoryError(
        "`triton`",
        got=repr(name),
        expected=f"a release from {first} to {last}",
        fix=f"did you mean {' or '.join(near)}?" if near else None,
    )


def check_release(
    release: Release, models: Mapping[str, Model], *, plans: Mapping[str, CascadeSpec], findings: Findings
) -> None:
    """Adds what a release's ONNX Runtime cannot read, or was never compared with."""
    version = release.onnxruntime
    graphs = {name: model for name, model in models.items() if model.graph is not None}
    if version is None:
        text = "no public source names the ONNX Runtime of its image: nothing was compared with it"
        findings.note("all", f"Triton {release.name}", text)
        return
    for model in graphs.values():
        _check_graph(model, release, version, findings)
    for name, spec in plans.items():
        _check_records(name, spec, models, release, findings)


def _check_graph(model: Model, release: Release, version: str, findings: Findings) -> None:
    where = f"ONNX Runtime {version} of Triton {release.name}"
    reads = runtime_of(version)
    limits = () if reads is None else (("IR version", model.ir_version, reads.ir_version),
                                       ("opset", model.opset, reads.opset))  # fmt: skip
    for word, found, most in limits:
        if found is not None and found > most:
            fix = "export it again, or serve it with a newer release"
            findings.fault(model.name, f"model file {word}", f"got {found}, {where} reads up to {most}; {fix}")
    manifest = model.manifest
    if manifest is None:
        findings.note(model.name, f"Triton {release.name}", f"no manifest says that it was proven on {where}")
        return
    fault = manifest.runtimes.get(version, {}).get("fault")
    if fault is not None:
        fix = f"serve it with another release, or prove it again: python -m export prove {model.name}"
        findings.fault(
            model.name, f"Triton {release.name}", f"wrong on {where} ({fault}); {fix} --runtimes {release.name}"
        )
    elif not _is_proven(model, version):
        why = manifest.runtimes.get(version, {}).get("not_proven")
        text = f"not proven on {where}" + (f" ({why})" if why else "")
        findings.note(
            model.name,
            f"Triton {release.name}",
            f"{text}; ask it there: python -m export prove {model.name} --runtimes {release.name}",
        )


def _is_proven(model: Model, version: str) -> bool:
    manifest = model.manifest
    if manifest is None:
        return False
    proof = manifest.runtimes.get(version, {})
    # A fault counts even if the export itself used this version, because members can be proven again later.
    if "fault" in proof:
        return False
    return manifest.versions.get("onnxruntime") == version or ("max_abs" in proof and "not_proven" not in proof)


def _check_records(
    name: str, spec: CascadeSpec, models: Mapping[str, Model], release: Release, findings: Findings
) -> None:
    """Notes that thresholds were fitted to the scores of another ONNX Runtime, which may differ."""
    recorded = {} if spec.fit is None else spec.fit.extra.get("recorded_with", {})
    known = recorded.get("onnxruntime") if isinstance(recorded, dict) else None
    if known is None or release.onnxruntime in (None, known):
        return
    unproven = [
        member.name
        for member in spec.members
        if member.name in models and not _is_proven(models[member.name], str(release.onnxruntime))
    ]
    told = f"{', '.join(unproven)} not proven there" if unproven else "its members are proven there"
    text = f"recorded with ONNX Runtime {known}, served by {release.onnxruntime}: {told}"
    findings.note(name, f"Triton {release.name}", text)
