"""Rendering into a new folder that needs nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from orchestrator.errors import RepositoryError
from orchestrator.repository.configs import averaging_name
from orchestrator.repository.files import Rendering, copy_model, new_folder
from orchestrator.repository.layout import render, render_ensemble
from orchestrator.repository.on_disk import (
    ensemble_spec,
    model_folders,
    plan_path,
    readable_config,
    require_members,
    served_version,
)
from orchestrator.spec import CascadeSpec, cascade_from_path

Plans = dict[str, CascadeSpec]


def render_output(
    repository: Path,
    output: Path,
    *,
    cascades: Sequence[CascadeSpec],
    ensembles: Sequence[CascadeSpec] = (),
    standalone: bool = False,
) -> Rendering:
    """Renders into a new folder that holds copies of every model the plans need.

    The folder appears whole or not at all.

    Args:
        repository: where the members are.
        output: the new folder; an earlier one made this way is replaced.
        cascades: cascades to render.
        ensembles: single-stage specs to render as native ensembles.
        standalone: put the runtime beside every cascade.

    Raises:
        RepositoryError: a model is missing, the folder holds something else, or the disk refuses.
    """
    inner, outer = output.resolve(), repository.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise RepositoryError(
            f"output {output}", got="a folder in, around or at the repository", expected="one beside it"
        )
    plans, means = _all_needed(repository, cascades, ensembles)
    everything = {**plans, **means}
    order = _inner_first(everything)
    copied = {name for spec in everything.values() for name in spec.models} - set(everything)
    with new_folder(output) as building:
        for name in sorted(copied):
            copy_model(repository / name, building / name)
        for name in order:
            if name in means:
                render_ensemble(means[name], building)
                continue
            version = served_version(repository / name, readable_config(repository / name))
            render(plans[name], building, standalone=standalone, version=version)
        files = [path.relative_to(building) for path in sorted(building.rglob("*")) if path.is_file()]
    return Rendering(written=tuple(output / path for path in files))


def _all_needed(
    repository: Path, cascades: Iterable[CascadeSpec], ensembles: Iterable[CascadeSpec]
) -> tuple[Plans, Plans]:
    """The plans asked for and those of members that are cascades or ensembles themselves."""
    folders = model_folders(repository)
    plans = {spec.name: spec for spec in cascades}
    means = {spec.name: spec for spec in ensembles}
    waiting = [*plans.values(), *means.values()]
    while waiting:
        spec = waiting.pop()
        known = {*plans, *means, *map(averaging_name, means)}
        names = [name for name in spec.models if name not in known]
        require_members(spec, repository)
        for name in names:
            path = plan_path(folders[name])
            nested = cascade_from_path(path) if path else ensemble_spec(folders, name)
            if nested is not None:
                (plans if path else means)[name] = nested
                waiting.append(nested)
    return plans, means


def _inner_first(plans: Plans) -> list[str]:
    """Names in an order that renders a plan after the plans among its members."""
    graph = {name: {m.name for m in spec.members if m.name in plans} for name, spec in plans.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        path = " -> ".join(error.args[1])
        raise RepositoryError("plans", got=f"a cycle, {path}", expected="members that end somewhere") from error
