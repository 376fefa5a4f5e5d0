"""Rendering into the repository or into a folder of its own, checked as a preview before anything is written.

A preview is a temporary folder of links to the models, into which the plans are rendered.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from orchestrator.errors import CommitteeError, RepositoryError
from orchestrator.files import recover_folder
from orchestrator.graphs.combining import averaging_name
from orchestrator.pbtxt import CONFIG, is_marked, text_from_path
from orchestrator.repository.check import CheckReport, Fault, check
from orchestrator.repository.files import Rendering, check_output, copy_model, disk_errors, may_replace, new_folder
from orchestrator.repository.index import (
    ensemble_spec,
    model_file,
    model_folders,
    plan_path,
    readable_config,
    require_members,
    served_version,
)
from orchestrator.repository.members import pinned_spec
from orchestrator.repository.render import render, render_ensemble
from orchestrator.spec import CascadeSpec, cascade_from_path
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.triton import ENSEMBLE, mentioned_models

Plans = dict[str, CascadeSpec]


def render_checked(
    repository: Path,
    *,
    cascades: Sequence[CascadeSpec],
    ensembles: Sequence[CascadeSpec] = (),
    output: Path | None = None,
    standalone: bool = False,
    version: int | None = None,
    force: bool = False,
) -> tuple[Rendering, CheckReport]:
    """Renders plans into a repository, or into a folder of their own, after checking a preview.

    Args:
        repository: a Triton model repository that holds the members.
        cascades: cascades to render.
        ensembles: single-stage specs to render as native ensembles.
        output: folder to render into with copies of every model the plans need; None renders into the repository.
            Its contents appear whole or not at all, see `new_folder`. What was rendered there before is replaced,
            except a person's settings in its configs.
        standalone: put the runtime beside every cascade.
        version: version folder of the cascades; None means the served one. Only without an output.
        force: overwrite configs that were not rendered, or were edited since. Only without an output.

    Returns:
        the files that were written, none where the check found faults, and the check's report.

    Raises:
        RepositoryError: a model is missing, another model has a name, the output holds something else, or the disk
            refuses.
        SpecError: a member's manifest is wrong.
    """
    if output is not None:
        if version is not None or force:
            raise RepositoryError("rendering into a folder", got="version or force", expected="neither with it")
        return _render_output(repository, output, cascades, ensembles, standalone=standalone)
    # Done once for both renderings, because finding a version may mean to read gigabytes.
    cascades = [pinned_spec(spec, repository) for spec in cascades]
    ensembles = [pinned_spec(spec, repository) for spec in ensembles]

    def render_all(place: Path) -> Rendering:
        done = Rendering()
        for spec in cascades:
            done += render(spec, place, standalone=standalone, version=version, force=force)
        for spec in ensembles:
            done += render_ensemble(spec, place, force=force)
        return done

    folders, names = model_folders(repository), [spec.name for spec in (*cascades, *ensembles)]
    exported = {name for name, folder in folders.items() if (folder / MANIFEST).is_file()}
    written = {*names, *(averaging_name(spec.name) for spec in ensembles), *exported}
    with _previewed(repository, written=written, others=folders) as preview:
        render_all(preview)
        report = _report_of(preview, names, source=repository, target=repository)
    return (render_all(repository) if report else Rendering()), report


def _render_output(
    repository: Path,
    output: Path,
    cascades: Iterable[CascadeSpec],
    ensembles: Iterable[CascadeSpec],
    *,
    standalone: bool,
) -> tuple[Rendering, CheckReport]:
    inner, outer = output.resolve(), repository.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        got = "a folder in, around or at the repository"
        raise RepositoryError(f"output {output}", got=got, expected="one beside it")
    with disk_errors(f"output {output}"):
        # A run that was killed may have moved away a config that somebody has edited.
        recover_folder(inner)
        check_output(output)
    plans, means = {spec.name: spec for spec in cascades}, {spec.name: spec for spec in ensembles}
    names = [*plans, *means]
    copied = _add_needed(plans, means, repository)
    with _previewed(repository, written=copied, others=()) as preview:
        for name in (*plans, *means, *map(averaging_name, means)):
            _take_edited_config(name, preview, sources=(output, repository))
        for name in _inner_first({**plans, **means}):
            if name in means:
                render_ensemble(means[name], preview)
                continue
            version = served_version(repository / name, readable_config(repository / name))
            render(plans[name], preview, standalone=standalone, version=version)
        report = _report_of(preview, names, source=repository, target=output)
        return (_copied(preview, output) if report else Rendering()), report


def _copied(preview: Path, output: Path) -> Rendering:
    with new_folder(output) as building:
        for path in sorted(preview.iterdir()):
            (copy_model if path.is_dir() else shutil.copy)(path, building / path.name)
        files = [path.relative_to(building) for path in sorted(building.rglob("*")) if path.is_file()]
    return Rendering(written=tuple(output / path for path in files))


def _take_edited_config(name: str, preview: Path, *, sources: Iterable[Path]) -> None:
    """Links a rendered config that somebody has edited into the preview, so that their settings are kept."""
    for source in sources:
        path = source / name / CONFIG
        if path.is_file() and not may_replace(path) and is_marked(text_from_path(path)):
            with disk_errors(f"model folder {path.parent}"):
                (preview / name).mkdir(exist_ok=True)
                (preview / name / CONFIG).symlink_to(path.absolute())
            return


def _add_needed(plans: Plans, means: Plans, repository: Path) -> set[str]:
    """Adds the plans of members that are rendered themselves; returns the names of all other models needed."""
    folders, copied = model_folders(repository), set[str]()
    waiting: list[str] = []

    def need(spec: CascadeSpec) -> None:
        require_members(spec, repository)
        waiting.extend(spec.models)

    for spec in (*plans.values(), *means.values()):
        need(spec)
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
        need(nested)
    return copied


def _called_by(name: str, folders: Mapping[str, Path]) -> Sequence[str]:
    """The models that an ensemble is made of, or that a Python model may call."""
    config = readable_config(folders[name])
    if config is not None and config.platform == ENSEMBLE:
        return [step.model_name for step in config.ensemble_scheduling.step if step.model_name in folders]
    file = model_file(folders[name], config)
    if file is None or file.suffix != ".py":
        return ()
    with disk_errors(f"model folder {folders[name]}"):
        return mentioned_models(folders[name], [other for other in folders if other != name])


def _inner_first(plans: Plans) -> list[str]:
    """Plan names in an order in which every plan comes after the plans among its members."""
    graph = {name: {m.name for m in spec.members if m.name in plans} for name, spec in plans.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        path = " -> ".join(error.args[1])
        raise RepositoryError("plans", got=f"a cycle, {path}", expected="members that end somewhere") from error


@contextmanager
def _previewed(repository: Path, *, written: Collection[str], others: Iterable[str]) -> Iterator[Path]:
    """A folder of links to models of a repository, to render into and to check.

    Models in `written` may be written to: writing replaces links and leaves the linked files alone. `others` are
    read only. Models without a folder are left out. Errors raised in the block name files of the repository
    instead of the links to them.

    Raises:
        RepositoryError: the disk refuses.
    """
    with disk_errors("a temporary folder, for which TMPDIR may name the place"):
        scratch = tempfile.TemporaryDirectory(prefix="committee-preview-")
    with scratch as name:
        preview = Path(name).resolve()
        with disk_errors(f"model repository {repository}"):
            for model in sorted({*written, *others}):
                folder = (repository / model).absolute()
                if folder.is_dir() and model in written:
                    _link_files(folder, preview / model)
                elif folder.is_dir():
                    (preview / model).symlink_to(folder)
        try:
            yield preview
        except CommitteeError as error:
            raise error.reworded(lambda text: text.replace(str(preview), str(repository))) from error


def _link_files(source: Path, target: Path, above: tuple[Path, ...] = ()) -> None:
    """Makes a folder with the sub-folders of another one, and links to its files in them."""
    target.mkdir()
    above = (*above, source.resolve())
    for path in source.iterdir():
        # Following a link to a folder above would never end, so it stays a link.
        if path.is_dir() and path.name != "__pycache__" and path.resolve() not in above:
            _link_files(path, target / path.name, above)
        else:
            (target / path.name).symlink_to(path)


def _report_of(preview: Path, names: Sequence[str], *, source: Path, target: Path) -> CheckReport:
    """The check's report about a preview of `target`, with the paths of the repository that it links to."""
    report = check(preview, names)

    def renamed(found: Iterable[Fault]) -> tuple[Fault, ...]:
        old, new = str(preview), str(source)
        return tuple(dataclasses.replace(fault, text=fault.text.replace(old, new)) for fault in found)

    faults, notes = renamed(report.faults), renamed(report.notes)
    return dataclasses.replace(report, repository=target, faults=faults, notes=notes)
