"""Rendering into a folder that needs nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from orchestrator.errors import RepositoryError
from orchestrator.files import recover_folder
from orchestrator.pbtxt import CONFIG, is_marked, text_from_path
from orchestrator.repository.configs import averaging_name
from orchestrator.repository.files import (
    Rendering,
    check_output,
    copy_model,
    disk_errors,
    may_replace,
    new_folder,
)
from orchestrator.repository.index import (
    ensemble_spec,
    model_file,
    model_folders,
    plan_path,
    readable_config,
    require_members,
    served_version,
)
from orchestrator.repository.preview import previewed
from orchestrator.repository.render import render, render_ensemble
from orchestrator.spec import CascadeSpec, cascade_from_path
from orchestrator.spec.triton import mentioned_models

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
        # What a killed run took away may be a config that somebody has edited.
        recover_folder(output.resolve())
        check_output(output)
    plans, means, copied = _all_needed(repository, cascades, ensembles)
    everything = {**plans, **means}
    order = _inner_first(everything)
    with previewed(repository, written=copied, others=()) as preview:
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


def _all_needed(
    repository: Path, cascades: Iterable[CascadeSpec], ensembles: Iterable[CascadeSpec]
) -> tuple[Plans, Plans, set[str]]:
    """The plans asked for, those of members that are cascades or ensembles of ours, and all models beside them."""
    folders = model_folders(repository)
    plans, means, copied = (
        {spec.name: spec for spec in cascades},
        {spec.name: spec for spec in ensembles},
        set[str](),
    )
    waiting: list[str] = []
    for spec in (*plans.values(), *means.values()):
        require_members(spec, repository)
        waiting += spec.models
    while waiting:
        name = waiting.pop()
        if name in {*plans, *means, *map(averaging_name, means), *copied}:
            continue
        path = plan_path(folders[name])
        nested = cascade_from_path(path) if path else ensemble_spec(folders, name)
        if nested is None:
            copied.add(name)
            waiting += _called_by(name, folders)
            continue
        (plans if path else means)[name] = nested
        require_members(nested, repository)
        waiting += nested.models
    return plans, means, copied


def _called_by(name: str, folders: Mapping[str, Path]) -> Sequence[str]:
    """Models that an ensemble is made of, or that a Python model may call."""
    config = readable_config(folders[name])
    if config is not None and config.platform == "ensemble":
        return [step.model_name for step in config.ensemble_scheduling.step if step.model_name in folders]
    file = model_file(folders[name], config)
    if file is None or file.suffix != ".py":
        return ()
    with disk_errors(f"model folder {folders[name]}"):
        return mentioned_models(folders[name], [other for other in folders if other != name])


def _inner_first(plans: Plans) -> list[str]:
    """Names in an order that renders a plan after the plans among its members."""
    graph = {name: {m.name for m in spec.members if m.name in plans} for name, spec in plans.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        path = " -> ".join(error.args[1])
        raise RepositoryError("plans", got=f"a cycle, {path}", expected="members that end somewhere") from error
