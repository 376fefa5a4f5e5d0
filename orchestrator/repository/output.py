"""Rendering into a folder that needs nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from orchestrator.errors import RepositoryError
from orchestrator.repository.configs import averaging_name
from orchestrator.repository.files import (
    Rendering,
    check_output,
    copy_model,
    disk_errors,
    may_replace,
    new_folder,
)
from orchestrator.repository.layout import render, render_ensemble
from orchestrator.repository.on_disk import (
    ensemble_spec,
    model_folders,
    plan_path,
    readable_config,
    require_members,
    served_version,
)
from orchestrator.repository.pbtxt import CONFIG, is_marked, text_from_path
from orchestrator.repository.preview import previewed
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
    """Renders into a folder that holds copies of every model the plans need.

    What is in the folder appears whole or not at all; see `new_folder`.

    Args:
        repository: where the members are.
        output: the folder; the contents of an earlier one made this way are replaced, but for what a person has
            set in the configs that were rendered there.
        cascades: cascades to render.
        ensembles: single-stage specs to render as native ensembles.
        standalone: put the runtime beside every cascade.

    Raises:
        RepositoryError: a model is missing, the folder holds something else, or the disk refuses.
    """
    with previewed_output(
        repository, output, cascades=cascades, ensembles=ensembles, standalone=standalone
    ) as preview:
        return copy_preview(preview, output)


@contextmanager
def previewed_output(
    repository: Path,
    output: Path,
    *,
    cascades: Sequence[CascadeSpec],
    ensembles: Sequence[CascadeSpec],
    standalone: bool,
) -> Iterator[Path]:
    """What `render_output` would write, with links in place of members' files.

    Raises:
        RepositoryError: as `render_output` does.
    """
    inner, outer = output.resolve(), repository.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise RepositoryError(
            f"output {output}", got="a folder in, around or at the repository", expected="one beside it"
        )
    with disk_errors(f"output {output}"):
        check_output(output)
    plans, means = _all_needed(repository, cascades, ensembles)
    everything = {**plans, **means}
    order = _inner_first(everything)
    called = {name for spec in everything.values() for name in spec.models} - set(everything)
    with previewed(repository, written=_with_steps(repository, called), others=()) as preview:
        for name in (*everything, *map(averaging_name, means)):
            _take_edited_config(name, preview, sources=(output, repository))
        for name in order:
            if name in means:
                render_ensemble(means[name], preview)
                continue
            version = served_version(repository / name, readable_config(repository / name))
            render(plans[name], preview, standalone=standalone, version=version)
        yield preview


def copy_preview(preview: Path, output: Path) -> Rendering:
    """Makes a previewed rendering the contents of a folder.

    Raises:
        RepositoryError: the folder holds something else, or the disk refuses.
    """
    with new_folder(output) as building:
        for path in sorted(preview.iterdir()):
            copy_model(path, building / path.name)
        files = [path.relative_to(building) for path in sorted(building.rglob("*")) if path.is_file()]
    return Rendering(written=tuple(output / path for path in files))


def _take_edited_config(name: str, preview: Path, *, sources: Iterable[Path]) -> None:
    """Links the rendered config that somebody has edited, where one did, so that their settings are kept."""
    for source in sources:
        path = source / name / CONFIG
        if path.is_file() and not may_replace(path) and is_marked(text_from_path(path)):
            with disk_errors(f"model folder {path.parent}"):
                (preview / name).mkdir(exist_ok=True)
                (preview / name / CONFIG).symlink_to(path.absolute())
            return


def _with_steps(repository: Path, names: Iterable[str]) -> set[str]:
    """Models, and those that ensembles among them are made of."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        config = readable_config(repository / name)
        waiting += [] if config is None else [step.model_name for step in config.ensemble_scheduling.step]
    return found


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
