"""Members of a family, exported once and kept, and the scenario of each cascade for the bench's engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.commands.console import needs
from export.rows import varied_rows
from orchestrator.local.sessions import LocalMembers
from orchestrator.pbtxt import text_from_config
from orchestrator.repository.configs import member_config
from orchestrator.repository.files import copy_model, new_folder, write_all
from orchestrator.repository.render import render
from orchestrator.spec import CascadeSpec, Manifest, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from perf.harness.serving import BenchTools
from perf.routes.recipe import Recipe, imposed_cascade
from perf.routes.scenario import BenchScenario, bench_scenario
from perf.routes.spec import BenchRepository, BenchRows, Rows, Scenario, routes_of
from perf.studies.gpu.device import tensorrt_parameters
from perf.studies.gpu.families import ImposedCascade, NetworkFamily

Progress = Callable[[str], None]
_ROWS_SEED = 40_000_000
_PARITY_ROWS = 8
# On a GPU a row's score moves with the batch it is in, as other kernels sum in another order; half precision moves
# it by 1e-3 and more.
_MARGINS = {"fp32": 1e-3, "fp16": 1e-2}
# Warming up runs it once per member, and EfficientNet-B7 takes about 0.3 GB a row in fp32.
_MAX_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class GpuSetup:
    """What all families of a run share.

    Args:
        folder: for everything that is kept between runs.
        provider: "cuda", "tensorrt" or "cpu".
        providers: what sessions are opened with.
        precision: "fp16" or "fp32".
        device: in words; other hardware makes exits anew.
        pool: rows there are to choose from.
    """

    folder: Path
    provider: str
    providers: Sequence[Any]
    precision: str
    device: str
    pool: int

    def served(self, name: str) -> str:
        """The member's name in this precision."""
        return name if self.precision == "fp32" else f"{name}_{self.precision}"

    @property
    def engines(self) -> Path:
        """Where TensorRT keeps what it built."""
        return (self.folder / "tensorrt").resolve()

    def open_members(self, repository: Path, names: Sequence[str]) -> LocalMembers:
        """Members in this process, on the device."""
        return LocalMembers(repository, names, providers=self.providers)


def export_family(family: NetworkFamily, setting: GpuSetup, *, progress: Progress) -> Path:
    """Exports a family's networks with random weights, those that are not there yet, and returns the repository.

    Raises:
        CommitteeError: a member cannot be exported, or the disk refuses.
    """
    with needs("perf gpu"):
        from export.committee import export_committee, member_exports
        from export.sources import ExportOptions

    repository = setting.folder / "members" / family.name
    plans = member_exports(
        list(family.sources.values()),
        ExportOptions(random_weights=True, progress=progress),
        image_px=family.image_px,
    )
    plans = [dataclasses.replace(plan, parity_rows=_PARITY_ROWS, max_batch_size=_MAX_BATCH_SIZE) for plan in plans]
    repository.mkdir(parents=True, exist_ok=True)
    precisions = tuple(dict.fromkeys(("fp32", setting.precision)))
    export_committee(repository, plans, precisions=precisions, force=False, progress=progress)
    return repository


def image_of(family: NetworkFamily) -> TensorSpec:
    """What clients send."""
    return TensorSpec(name="image", dtype="UINT8", dims=(3, family.image_px, family.image_px))


def rows_at(image: TensorSpec, numbers: Sequence[int]) -> Rows:
    """Rows by number, uint8 (n, 3, side, side)."""
    return np.concatenate([varied_rows(image, 1, seed=_ROWS_SEED + number) for number in numbers])


def recipe_of(cascade: ImposedCascade, family: NetworkFamily, setting: GpuSetup, *, exported: Path) -> Recipe:
    """How a cascade's plan and rows come about.

    Args:
        cascade: one of the family's.
        family: whose images.
        setting: of the run.
        exported: holds the members.
    """
    members = tuple(setting.served(name) for name in cascade.members)
    scenario = Scenario(
        name=cascade.name,
        title=f"{cascade.words}, random weights, {setting.precision}",
        members=members,
        imposed=True,
    )
    manifests = [manifest_of(exported, name) for name in members]
    reach = cascade.reach
    at = partial(rows_at, image_of(family))
    return Recipe(
        scenario=scenario,
        pool=setting.pool,
        make=partial(
            _make,
            exported=exported.resolve(),
            members=members,
            rows_at=at,
            recorded=setting.pool // 2,
            exit_share=tuple(float(share) for share in -np.diff(reach)),
            open_members=setting.open_members,
        ),
        rows_at=at,
        settings=repr((cascade, setting.device, [(one.name, one.sha256) for one in manifests])),
        margin=_MARGINS[setting.precision],
        open_members=setting.open_members,
    )


def tools_from(
    cascade: ImposedCascade, family: NetworkFamily, setting: GpuSetup, *, exported: Path, progress: Progress
) -> BenchTools:
    """The scenario of a cascade, made where it is not there yet; the caller adds the cells.

    Raises:
        CommitteeError: the members cannot be run.
    """
    progress(f"{cascade.name}: imposing the exit mix")
    done = bench_scenario(recipe_of(cascade, family, setting, exported=exported), setting.folder / "cascades")

    def rows_for(_: Scenario, *, reach: Sequence[float], rows: int, seed: int) -> BenchRows:
        return done.rows_for(reach=reach, rows=rows, seed=seed)

    return BenchTools(
        scenario=done.recipe.scenario, render=lambda folder: render_for(done, folder, setting), rows_for=rows_for
    )


def render_for(done: BenchScenario, folder: Path, setting: GpuSetup) -> BenchRepository:
    """A repository of the members and their committee, the members on the device.

    The configuration for GPUs lies where Triton looks first, so that a member that finds none refuses to load.

    Args:
        done: the scenario on disk.
        folder: to render into, in the place of what was rendered there before.
        setting: of the run.

    Raises:
        CommitteeError: the folder holds something else, or the disk refuses.
    """
    scenario = done.recipe.scenario
    with new_folder(folder) as building:
        for member in scenario.members:
            copy_model(done.repository / member, building / member)
        render(dataclasses.replace(done.spec, name="committee"), building, standalone=True)
        if setting.provider != "cpu":
            for member in scenario.members:
                write_all(building / member, {"config.pbtxt": gpu_config(manifest_of(building, member), setting)})
    routes = routes_of(scenario)
    kept = [*(name for name in routes if name.startswith("member_")), "committee"]
    return BenchRepository(
        folder=folder,
        scenario=scenario,
        routes={name: routes[name] for name in kept},
        input_name=done.spec.input.name,
    )


def gpu_config(manifest: Manifest, setting: GpuSetup) -> str:
    """The config.pbtxt of a member on the GPU."""
    config = member_config(manifest, device="gpu")
    if setting.provider == "tensorrt":
        one = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        one.parameters.update(tensorrt_parameters(setting.precision, setting.engines))
    return text_from_config(config, source="perf/studies/gpu/members.py")


def manifest_of(repository: Path, member: str) -> Manifest:
    """What the export wrote down of a member."""
    return manifest_from_path(repository / member / MANIFEST)


def _make(
    repository: Path,
    *,
    exported: Path,
    members: Sequence[str],
    rows_at: Callable[[Sequence[int]], Rows],
    recorded: int,
    exit_share: Sequence[float],
    open_members: Callable[[Path, Sequence[str]], LocalMembers],
) -> CascadeSpec:
    repository.mkdir(parents=True)
    for member in members:
        # Links: the largest networks weigh gigabytes, and cascades share them.
        (repository / member).symlink_to(exported / member, target_is_directory=True)
    return imposed_cascade(
        repository,
        members,
        rows_at,
        name="committee",
        recorded=recorded,
        exit_share=exit_share,
        open_members=open_members,
    )
