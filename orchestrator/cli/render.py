"""`committee render`: from plans to the folders Triton serves."""

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.cli.check import print_report
from orchestrator.errors import RepositoryError
from orchestrator.repository.check import CheckReport
from orchestrator.repository.checked import render_checked
from orchestrator.repository.derive import derived_spec
from orchestrator.repository.files import Rendering
from orchestrator.repository.index import plans_in
from orchestrator.repository.members import adopted_spec, facts_of_member
from orchestrator.repository.render import ensemble_from_cascade
from orchestrator.spec import CascadeSpec, cascade_from_path

# A cascade by itself has fewer files; of a runtime or a copied model only the number is printed.
LISTED_FILES = 5


def render(
    plans: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CASCADE_JSON]...", help="Plans; if none, every plan the repository holds."),
    ] = None,
    repository: Annotated[Path, typer.Option(help="Model repository that holds the members.")] = Path(
        "model_repository"
    ),
    standalone: Annotated[
        bool, typer.Option("--standalone", help="Put the runtime beside model.py: needs numpy and nothing else.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Render into this folder, with copies of the members.")
    ] = None,
    ensemble: Annotated[
        str | None, typer.Option(metavar="NAME", help="Render all members as Triton's own ensemble NAME instead.")
    ] = None,
    derive: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Have a tokenizer or another model of the repository make inputs."),
    ] = None,
    in_process: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="STAGES",
            help="Run the ONNX members of so many leading stages in the cascade's own process; 0 for none.",
        ),
    ] = None,
    model_version: Annotated[
        int | None, typer.Option(help="Version folder to write; the newest if not given.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a config.pbtxt that somebody else wrote or edited.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Check a cascade, or an ensemble of its members, and write it into a model repository.

    Nothing is written where the check finds a fault. Members without a version in the plan get the one that is
    served now. What you have set in a rendered config.pbtxt (version_policy, instance_group, dynamic_batching,
    parameters, optimization, metric_tags, model_metrics, comments) is kept, an edit of another field is refused;
    configs that members came with are never touched.

    Example: committee render build/cascade.json --repository model_repository
    """
    cascades, ensembles = _wanted(plans or [], repository, ensemble)
    if derive:
        cascades = [_derived(one, repository, derive) for one in cascades]
        ensembles = [_derived(one, repository, derive) for one in ensembles]
    if in_process is not None:
        cascades = [_in_process(one, in_process) for one in cascades]
    if output is not None and (model_version is not None or force):
        raise RepositoryError("render --output", got="--model-version or --force", expected="neither with it")
    done, report = render_checked(
        repository,
        cascades=cascades,
        ensembles=ensembles,
        output=output,
        standalone=standalone,
        version=model_version,
        force=force,
    )
    _show(done, report, root=output or repository, as_json=as_json)
    if not report:
        raise typer.Exit(1)


def _in_process(spec: CascadeSpec, stages: int) -> CascadeSpec:
    """The plan that runs the members of so many stages in its own process."""
    if stages > len(spec.stages):
        expected = f"at most {len(spec.stages)}, the stages of {spec.name}"
        raise RepositoryError("render --in-process", got=stages, expected=expected)
    return replace(spec, in_process=stages)


def _derived(spec: CascadeSpec, repository: Path, models: list[str]) -> CascadeSpec:
    """The plan whose inputs these models make, its placeholders replaced before."""
    facts = {one.name: facts_of_member(repository / one.name) for one in spec.members}
    return derived_spec(adopted_spec(spec, facts), repository, models)


def _wanted(
    plans: list[Path], repository: Path, ensemble: str | None
) -> tuple[list[CascadeSpec], list[CascadeSpec]]:
    """The cascades and the ensembles to render."""
    cascades, ensembles = ([cascade_from_path(path) for path in plans], []) if plans else plans_in(repository)
    if ensemble is not None:
        if len(cascades) != 1:
            got, fix = f"{len(cascades)} plans", "name its cascade.json"
            raise RepositoryError("render --ensemble", got=got, expected="one", fix=fix)
        return [], [ensemble_from_cascade(cascades[0], ensemble)]
    if not cascades and not ensembles:
        raise RepositoryError(f"model repository {repository}", got="no plan in it", fix="name a cascade.json")
    return cascades, ensembles


def _show(done: Rendering, report: CheckReport, *, root: Path, as_json: bool) -> None:
    if as_json:
        parts = {part: [str(path) for path in getattr(done, part)] for part in ("written", "unchanged", "kept")}
        typer.echo(json.dumps({**parts, "check": report.as_json()}, indent=2))
        return
    for model, paths in groupby(done.written, key=lambda path: path.relative_to(root).parts[0]):
        files = [path.relative_to(root / model).as_posix() for path in paths]
        names = ", ".join(files) if len(files) <= LISTED_FILES else f"{len(files)} files"
        # A file beside the models' folders stands alone.
        typer.echo(f"wrote {root / model}" + ("" if files == ["."] else f": {names}"))
    for path in done.kept:
        typer.echo(f"kept {path}: it was not written here, or was edited since")
    if done.unchanged:
        typer.echo(f"{len(done.unchanged)} files already up to date")
    print_report(report, Console())
    if not report:
        typer.echo("nothing was written")
