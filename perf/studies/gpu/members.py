"""Members of a family, exported once and kept, and the scenario that the harness serves for each cascade."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.commands.console import needs
from export.rows import varied_rows
from orchestrator.local import LocalMembers
from orchestrator.pbtxt import CONFIG, text_from_config
from orchestrator.repository.configs import member_config
from orchestrator.repository.files import copy_model, new_folder, write_all
from orchestrator.repository.render import render
from orchestrator.spec import CascadeSpec, Manifest, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from perf.harness.serving import BenchTools
from perf.routes.scenario import BenchScenario, Recipe, bench_scenario, imposed_cascade
from perf.routes.spec import BenchRepository, Rows, Scenario, routes_of
from perf.studies.gpu.device import Device, Progress, tensorrt_parameters
from perf.studies.gpu.families import ImposedCascade, NetworkFamily

_ROWS_SEED = 40_000_000
_PARITY_ROWS = 8
# Rows whose score lies this near a threshold are not sent: on a GPU another batch size means other kernels, which
# sum in another order, and moves a score; in half precision by 1e-3 and more.
_MARGINS = {"fp32": 1e-3, "fp16": 1e-2}
# Loading a member runs a batch of this size, and EfficientNet-B7 takes about 0.3 GB a row in fp32.
_MAX_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class GpuSetup:
    """What all families of a run share.

    Args:
        folder: keeps members, scenarios and engines between runs.
        device: device that the networks run on.
        providers: providers, with their options, that sessions are opened with.
        precision: "fp16" or "fp32".
        pool: number of rows to choose from.
    """

    folder: Path
    device: Device
    providers: Sequence[Any]
    precision: str
    pool: int

    def served(self, name: str) -> str:
        """The member's name in this precision."""
        return name if self.precision == "fp32" else f"{name}_{self.precision}"

    @property
    def engines(self) -> Path:
        """Folder in which TensorRT keeps engines."""
        return (self.folder / "tensorrt").resolve()

    def open_members(self, repository: Path, names: Sequence[str]) -> LocalMembers:
        """Opens members in this process, on the device."""
        return LocalMembers(repository, names, providers=self.providers)


def export_family(family: NetworkFamily, setup: GpuSetup, *, progress: Progress) -> Path:
    """Exports those networks of a family that are not there yet, with random weights; returns the repository.

    Raises:
        CommitteeError: a member cannot be exported, or the disk refuses.
    """
    with needs("perf gpu"):  # loads PyTorch: optional, and seconds of start-up time
        from export.committee import export_committee, member_exports
        from export.sources import ExportOptions

    repository = setup.folder / "members" / family.name
    plans = member_exports(
        list(family.sources.values()),
        ExportOptions(random_weights=True, progress=progress),
        image_px=family.image_px,
    )
    plans = [dataclasses.replace(plan, parity_rows=_PARITY_ROWS, max_batch_size=_MAX_BATCH_SIZE) for plan in plans]
    repository.mkdir(parents=True, exist_ok=True)
    precisions = tuple(dict.fromkeys(("fp32", setup.precision)))
    export_committee(repository, plans, precisions=precisions, force=False, progress=progress)
    return repository


def image_of(family: NetworkFamily) -> TensorSpec:
    """The image that clients send."""
    return TensorSpec(name="image", dtype="UINT8", dims=(3, family.image_px, family.image_px))


def rows_at(image: TensorSpec, numbers: Sequence[int]) -> Rows:
    """Rows by number, uint8 (n, 3, side, side)."""
    return np.concatenate([varied_rows(image, 1, seed=_ROWS_SEED + number) for number in numbers])


def recipe_of(cascade: ImposedCascade, family: NetworkFamily, setup: GpuSetup, *, exported: Path) -> Recipe:
    """How the plan and the rows of a cascade are made.

    Args:
        cascade: one of the family's cascades.
        family: family whose images are sent.
        setup: setup of the run.
        exported: repository that holds the members.
    """
    members = tuple(setup.served(name) for name in cascade.members)
    hashes = [(one.name, one.sha256) for one in (manifest_of(exported, name) for name in members)]
    at = partial(rows_at, image_of(family))

    def make(repository: Path) -> CascadeSpec:
        repository.mkdir(parents=True)
        for member in members:
            # Links: the largest networks weigh gigabytes, and cascades share them.
            (repository / member).symlink_to(exported.resolve() / member, target_is_directory=True)
        return imposed_cascade(
            repository,
            members,
            at,
            name="committee",
            recorded=setup.pool // 2,
            exit_share=tuple(float(share) for share in -np.diff(cascade.reach)),
            open_members=setup.open_members,
        )

    return Recipe(
        scenario=Scenario(
            name=cascade.name,
            title=f"{cascade.words}, random weights, {setup.precision}",
            members=members,
            imposed=True,
        ),
        pool=setup.pool,
        make=make,
        rows_at=at,
        # Another device gives other scores, so the exit mix is imposed anew.
        settings=repr((cascade, setup.device.words, hashes)),
        margin=_MARGINS[setup.precision],
        open_members=setup.open_members,
    )


def tools_from(
    cascade: ImposedCascade, family: NetworkFamily, setup: GpuSetup, *, exported: Path, progress: Progress
) -> BenchTools:
    """The scenario of a cascade, made where it is not there yet. It has no cells: the caller adds them.

    Raises:
        CommitteeError: the members cannot be run.
    """
    progress(f"{cascade.name}: imposing the exit mix")
    done = bench_scenario(recipe_of(cascade, family, setup, exported=exported), setup.folder / "cascades")

    return BenchTools(
        scenario=done.recipe.scenario,
        render=lambda folder: render_for(done, folder, setup),
        rows_for=done.rows_for,
    )


def render_for(done: BenchScenario, folder: Path, setup: GpuSetup) -> BenchRepository:
    """Renders a repository of the members, on the device, and their committee.

    A member's configuration for GPUs is its only one, so that it refuses to load where Triton finds no GPU.

    Args:
        done: the scenario on disk.
        folder: folder to render into; replaced where an earlier rendering lies there.
        setup: setup of the run.

    Raises:
        CommitteeError: the folder holds something else, or the disk refuses.
    """
    scenario = done.recipe.scenario
    with new_folder(folder) as building:
        for member in scenario.members:
            copy_model(done.repository / member, building / member)
        render(dataclasses.replace(done.spec, name="committee"), building, standalone=True)
        if setup.device.provider != "cpu":
            for member in scenario.members:
                write_all(building / member, {CONFIG: gpu_config(manifest_of(building, member), setup)})
    routes = routes_of(scenario)
    kept = [*(name for name in routes if name.startswith("member_")), "committee"]
    return BenchRepository(
        folder=folder,
        scenario=scenario,
        routes={name: routes[name] for name in kept},
        input_name=done.spec.input.name,
    )


def gpu_config(manifest: Manifest, setup: GpuSetup) -> str:
    """The config.pbtxt of a member on the GPU."""
    config = member_config(manifest, device="gpu")
    if setup.device.provider == "tensorrt":
        one = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        one.parameters.update(tensorrt_parameters(setup.precision, setup.engines))
    return text_from_config(config, source="perf/studies/gpu/members.py")


def manifest_of(repository: Path, member: str) -> Manifest:
    """The manifest of an exported member."""
    return manifest_from_path(repository / member / MANIFEST)
