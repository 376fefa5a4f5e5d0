"""Rendering that changes nothing on disk unless what it would leave there passes the check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import RepositoryError
from orchestrator.repository.check import CheckReport, check
from orchestrator.repository.configs import averaging_name
from orchestrator.repository.files import Rendering
from orchestrator.repository.index import MANIFEST, model_folders
from orchestrator.repository.output import copy_preview, previewed_output
from orchestrator.repository.pinning import pinned_spec
from orchestrator.repository.preview import previewed, report_of_rendering
from orchestrator.repository.render import render, render_ensemble
from orchestrator.spec import CascadeSpec


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
    """Renders plans into a repository, or into a folder of their own, and checks them first.

    Args:
        repository: a Triton model repository that holds the members.
        cascades: cascades to render.
        ensembles: single-stage specs to render as native ensembles.
        output: folder to render into with copies of the members; None renders into the repository.
        standalone: put the runtime beside every cascade.
        version: version folder of the cascades; None means the served one. Only without an output.
        force: overwrite configs that were not written here, or were edited since. Only without an output.

    Returns:
        what was written, nothing where the check found faults, and what it found.

    Raises:
        RepositoryError: a model is missing, a name is taken by another model, or the disk refuses.
        SpecError: a member's manifest is wrong.
    """
    names = [spec.name for spec in (*cascades, *ensembles)]
    if output is not None:
        if version is not None or force:
            raise RepositoryError("rendering into a folder", got="version or force", expected="neither with it")
        with previewed_output(
            repository, output, cascades=cascades, ensembles=ensembles, standalone=standalone
        ) as preview:
            report = report_of_rendering(check(preview, names), preview=preview, source=repository, target=output)
            return (copy_preview(preview, output) if report else Rendering()), report
    # Once for both renderings: to find a version may take reading gigabytes.
    cascades = [pinned_spec(spec, repository) for spec in cascades]
    ensembles = [pinned_spec(spec, repository) for spec in ensembles]

    def render_all(place: Path) -> Rendering:
        done = Rendering()
        for spec in cascades:
            done += render(spec, place, standalone=standalone, version=version, force=force)
        for spec in ensembles:
            done += render_ensemble(spec, place, force=force)
        return done

    folders = model_folders(repository)
    exported = {name for name, folder in folders.items() if (folder / MANIFEST).is_file()}
    written = {*names, *(averaging_name(spec.name) for spec in ensembles), *exported}
    with previewed(repository, written=written, others=folders) as preview:
        render_all(preview)
        report = report_of_rendering(check(preview, names), preview=preview, source=repository, target=repository)
    return (render_all(repository) if report else Rendering()), report
