"""One run of `check` over the models of a repository, and over what one Triton image would make of them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import onnx

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.combining import averaging_name
from orchestrator.graphs.editing import opset_of
from orchestrator.repository.check.models import Fault, Findings, Model, read_model
from orchestrator.repository.check.plans import (
    check_cascade_folder,
    check_derived,
    check_ensemble_folder,
    check_fused_prefix,
    check_in_process,
    check_members,
    check_onefile,
    unserved_version,
)
from orchestrator.repository.files import disk_errors, is_shim
from orchestrator.repository.index import ensemble_spec, model_folders, plan_path, readable_config
from orchestrator.spec import CascadeSpec, cascade_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.triton import RELEASES, runtime_of


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of a check of some models; truthy when there are no faults.

    Faults would make serving fail or answer wrongly; notes cost time or deserve a look.
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
    if triton is not None and triton not in RELEASES:
        raise _no_release(triton)
    run = _Check(Path(repository))
    with run.reading():
        for name in run.folders if names is None else names:
            run.look_at(name)
        run.look_for_cycles()
        if triton is not None:
            _check_release(triton, run)
    return run.report(sorted(run.seen & set(run.folders)))


def check_plans(repository: Path) -> CheckReport:
    """The fast part of `check`: whether plans can be read, and name versions that are served.

    Raises:
        RepositoryError: the repository itself is missing, empty or not readable.
    """
    run = _Check(repository)
    with run.reading():
        plans = {name: plan for name, folder in run.folders.items() if (plan := plan_path(folder)) is not None}
        for name, plan in plans.items():
            run.look_at_versions(name, plan)
    return run.report(plans)


class _Check:
    """One run; every model is read once, however many plans name it."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.folders = model_folders(repository)
        self.findings = Findings()
        self.seen: set[str] = set()
        self.needs: dict[str, list[str]] = {}
        self.models: dict[str, Model] = {}
        self.plans: dict[str, CascadeSpec] = {}

    def reading(self) -> AbstractContextManager[None]:
        return disk_errors(f"model repository {self.repository}")

    def report(self, checked: Iterable[str]) -> CheckReport:
        faults, notes = tuple(self.findings.faults), tuple(self.findings.notes)
        return CheckReport(repository=self.repository, checked=tuple(checked), faults=faults, notes=notes)

    def look_at(self, name: str) -> None:
        if name in self.seen:
            return
        self.seen.add(name)
        findings = self.findings.of(name)
        if name not in self.folders:
            findings.fault("folder", f"no such model, the repository has {', '.join(self.folders)}")
            return
        model = self._model(name)
        plan = plan_path(self.folders[name])
        if plan is not None:
            spec = self._spec(name, plan)
            if spec is not None:
                self.plans[name] = spec
                check_cascade_folder(spec, model, plan=plan, findings=findings)
                self._look_at_members(name, spec)
        elif model.is_ensemble:
            self._look_at_ensemble(model)
        elif is_shim(model.file):
            findings.fault(PLAN, "missing beside model.py; render the cascade again")
        else:
            check_onefile(model, self.folders, findings=findings)

    def look_for_cycles(self) -> None:
        try:
            TopologicalSorter(self.needs).prepare()
        except CycleError as error:
            path = error.args[1]
            text = f"a cycle, {' -> '.join(path)}: none of them can answer"
            self.findings.of(path[0]).fault("members", text)

    def _model(self, name: str) -> Model:
        if name not in self.models:
            self.models[name] = read_model(self.folders[name], self.findings)
        return self.models[name]

    def _spec(self, name: str, plan: Path) -> CascadeSpec | None:
        try:
            return cascade_from_path(plan)
        except SpecError as error:
            self.findings.of(name).each(error, "cascade.json ")
            return None

    def look_at_versions(self, name: str, plan: Path) -> None:
        """Adds a fault for each model of a plan that exists but is not served in the planned version."""
        spec = self._spec(name, plan)
        for planned in () if spec is None else spec.planned:
            if planned.name in self.folders:
                folder = self.folders[planned.name]
                for text in unserved_version(planned, folder, config=readable_config(folder)):
                    self.findings.of(name).fault(f"member {planned.name}", text)

    def _look_at_members(self, name: str, spec: CascadeSpec) -> None:
        self.needs[name] = list(spec.models)
        models = {member: self._model(member) for member in spec.models if member in self.folders}
        others = [other for other in self.folders if other != name]
        check_members(spec, models, findings=self.findings, known=others)
        check_derived(spec, models, findings=self.findings)
        check_in_process(spec, models, findings=self.findings)
        if spec.fused_prefix is not None:
            check_fused_prefix(spec, models.get(spec.fused_prefix.name), findings=self.findings)
        for member in models:
            self.look_at(member)

    def _look_at_ensemble(self, model: Model) -> None:
        """Checks a rendered ensemble by the plan in its averaging model, any other ensemble by its steps."""
        try:
            spec = ensemble_spec(self.folders, model.name)
        except SpecError as error:
            self.findings.of(averaging_name(model.name)).each(error)
            return
        except RepositoryError:
            # The averaging model is broken; reading it as a step below finds the fault.
            spec = None
        if spec is None:
            self._look_at_steps(model)
            return
        mean = self._model(averaging_name(model.name))
        self.seen.add(mean.name)
        check_ensemble_folder(spec, model, mean=mean, repository=self.repository, findings=self.findings)
        self._look_at_members(model.name, spec)

    def _look_at_steps(self, model: Model) -> None:
        assert model.config is not None
        steps = model.config.ensemble_scheduling.step
        self.needs[model.name] = [step.model_name for step in steps]
        for step in steps:
            fault = partial(self.findings.of(model.name).fault, f"step {step.model_name}")
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


def _no_release(name: str) -> RepositoryError:
    near = difflib.get_close_matches(name, RELEASES, n=2, cutoff=0.5)
    first, *_, last = RELEASES
    fix = f"did you mean {' or '.join(near)}?" if near else None
    return RepositoryError("`triton`", got=repr(name), expected=f"a release from {first} to {last}", fix=fix)


def _check_release(release: str, run: _Check) -> None:
    """Adds what a release's ONNX Runtime cannot read, or was never compared with."""
    version = RELEASES[release]
    if version is None:
        text = "no public source names the ONNX Runtime of its image: nothing was compared with it"
        run.findings.of("all").note(f"Triton {release}", text)
        return
    for model in run.models.values():
        if model.proto is not None:
            _check_graph(model, model.proto, release, version, run.findings.of(model.name))
    for name, spec in run.plans.items():
        _check_records(spec, run.models, release, version, run.findings.of(name))


def _check_graph(model: Model, proto: onnx.ModelProto, release: str, version: str, findings: Findings) -> None:
    where, about = f"ONNX Runtime {version} of Triton {release}", f"Triton {release}"
    reads = runtime_of(version)
    limits = () if reads is None else (("IR version", proto.ir_version, reads.ir_version),
                                       ("opset", opset_of(proto) or 0, reads.opset))  # fmt: skip
    for word, found, most in limits:
        if found > most:
            fix = "export it again, or serve it with a newer release"
            findings.fault(f"model file {word}", f"got {found}, {where} reads up to {most}; {fix}")
    if model.manifest is None:
        findings.note(about, f"no manifest says that it was proven on {where}")
        return
    proof = model.manifest.runtimes.get(version, {})
    again = f"python -m export prove {model.name} --runtimes {release}"
    if "fault" in proof:
        text = f"wrong on {where} ({proof['fault']}); serve it with another release, or prove it again: {again}"
        findings.fault(about, text)
    elif not _is_proven(model, version):
        why = f" ({proof['not_proven']})" if "not_proven" in proof else ""
        findings.note(about, f"not proven on {where}{why}; ask it there: {again}")


def _is_proven(model: Model, version: str) -> bool:
    if model.manifest is None:
        return False
    proof = model.manifest.runtimes.get(version, {})
    # A fault counts even if the export itself used this version, because members can be proven again later.
    if "fault" in proof:
        return False
    made_with = model.manifest.versions.get("onnxruntime")
    return made_with == version or ("max_abs" in proof and "not_proven" not in proof)


def _check_records(
    spec: CascadeSpec, models: Mapping[str, Model], release: str, version: str, findings: Findings
) -> None:
    """Notes that thresholds were fitted to the scores of another ONNX Runtime, which may differ."""
    recorded = {} if spec.fit is None else spec.fit.extra.get("recorded_with", {})
    known = recorded.get("onnxruntime") if isinstance(recorded, dict) else None
    if known in (None, version):
        return
    present = [models[member.name] for member in spec.members if member.name in models]
    unproven = ", ".join(model.name for model in present if not _is_proven(model, version))
    told = f"{unproven} not proven there" if unproven else "its members are proven there"
    findings.note(f"Triton {release}", f"recorded with ONNX Runtime {known}, served by {version}: {told}")
