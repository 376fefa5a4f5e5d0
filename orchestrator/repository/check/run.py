"""One run of `check` over the models of a repository."""

from collections.abc import Sequence
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.averaging import averaging_name
from orchestrator.repository.check.folders import (
    check_cascade_folder,
    check_ensemble_folder,
    check_fused_prefix,
    check_onefile,
)
from orchestrator.repository.check.models import Model, read_model
from orchestrator.repository.check.plans import (
    check_members,
    unserved_version,
    version_faults,
)
from orchestrator.repository.check.release import check_release, release_from_name
from orchestrator.repository.check.report import CheckReport, Findings
from orchestrator.repository.files import disk_errors
from orchestrator.repository.index import ensemble_spec, model_folders, plan_path, readable_config
from orchestrator.repository.shim import is_shim
from orchestrator.spec import CascadeSpec, FusedPrefix, Member, cascade_from_path
from orchestrator.spec.cascade import PLAN


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
