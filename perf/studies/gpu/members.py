"""Members of a family, exported once and kept, and the scenario that the harness serves for each cascade.

The paper's own members, thresholds and exit shares are not known here, so the mixes are arithmetic: with its
deferral a cascade needs, on average, as many multiply-adds as the abstract's speed-up leaves it (5.4x against
EfficientNet-B7, 2.3x against ViT-L-384; the abstract names no unit). Whether it would be as accurate as the single
network is another question, which random weights cannot answer.

For a machine without a GPU there are families of the same kinds with a few thousand weights. Their sources are
folders as a user of transformers saves them, without weights, and they go through the same export.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.commands.console import needs
from export.parity import varied_rows
from export.zoo import processor_of
from orchestrator import __version__
from orchestrator.local import LocalMembers
from orchestrator.pbtxt import CONFIG, text_from_config
from orchestrator.repository.configs import member_config
from orchestrator.repository.files import copy_model, new_folder, write_all
from orchestrator.repository.render import render
from orchestrator.spec import CascadeSpec, Manifest, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from perf.harness.run import RunOptions
from perf.harness.serving import BenchTools, reach_of
from perf.routes.scenario import BenchScenario, Recipe, bench_scenario, imposed_cascade
from perf.routes.spec import BenchRepository, Rows, Scenario, routes_of
from perf.studies.gpu.device import Device, Progress, tensorrt_parameters

_PX = 64
# Kind -> its name, what makes all its networks small, and what each. Channels before a head follow from the width.
_TOYS: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "efficientnet": (
        "EfficientNet",
        {"depth_coefficient": 0.2},
        {
            "tiny_efficientnet_a": {"image_size": 32, "width_coefficient": 0.1, "hidden_dim": 128},
            "tiny_efficientnet_b": {"image_size": _PX, "width_coefficient": 0.2, "hidden_dim": 256},
        },
    ),
    "vit": (
        "ViT",
        {"num_attention_heads": 2, "patch_size": 8},
        {
            "tiny_vit_a": {"image_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
            "tiny_vit_b": {"image_size": _PX, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3},
        },
    ),
}
ABSTRACT = "abstract of arXiv 2012.01988; unit and hardware not stated there"


@dataclass(frozen=True, kw_only=True)
class ImposedCascade:
    """One cascade with an imposed mix.

    Args:
        name: name of its scenario, a file name.
        members: short names in stage order, the baseline last.
        deferral: share of rows that reach the last stage; those between are reached by twice as many.
    """

    name: str
    members: tuple[str, ...]
    deferral: float

    @property
    def reach(self) -> tuple[float, ...]:
        """Share of rows that reach each stage."""
        return reach_of(self.deferral, len(self.members))

    @property
    def words(self) -> str:
        """Its members in stage order."""
        return " -> ".join(self.members)


@dataclass(frozen=True, kw_only=True)
class NetworkFamily:
    """Networks of one kind at the image size of the largest.

    Args:
        sources: short name -> what `python -m export member` is given; the baseline last.
        image_px: side of the images that clients send; smaller networks resize inside their graphs.
        paper_speedup: published speed-up over the baseline; None where there is none.
    """

    name: str
    title: str
    sources: dict[str, str]
    image_px: int
    cascades: tuple[ImposedCascade, ...]
    paper_speedup: float | None = None

    @property
    def baseline(self) -> str:
        """The largest network, which a user would run alone."""
        return list(self.sources)[-1]


@dataclass(frozen=True, kw_only=True)
class GpuLoads:
    """What is sent: (requests in flight, rows of each), where latency counts and where the server is saturated.

    `alone` are batch sizes of the networks by themselves.
    """

    online: tuple[int, int] = (1, 1)
    offline: tuple[int, int] = (8, 32)
    alone: tuple[int, ...] = (32, 64, 128, 256)


def _efficientnets(deferral: float, *sizes: str) -> ImposedCascade:
    members = tuple(f"efficientnet_{size}" for size in sizes)
    return ImposedCascade(name=f"efficientnet_{'_'.join(sizes)}", members=members, deferral=deferral)


EFFICIENTNET = NetworkFamily(
    name="efficientnet",
    title="EfficientNet",
    sources={f"efficientnet_b{number}": f"zoo:efficientnet_b{number}" for number in range(8)},
    image_px=600,
    cascades=(
        _efficientnets(0.175, "b0", "b7"),
        _efficientnets(0.137, "b3", "b7"),
        _efficientnets(0.069, "b4", "b7"),
        _efficientnets(0.135, "b1", "b4", "b7"),
        _efficientnets(0.062, "b2", "b5", "b6", "b7"),
    ),
    paper_speedup=5.4,
)
VIT = NetworkFamily(
    name="vit",
    title="ViT",
    sources={name: f"zoo:{name}" for name in ("vit_b16_224", "vit_b16_384", "vit_l16_224", "vit_l16_384")},
    image_px=384,
    cascades=(
        ImposedCascade(name="vit_b224_l384", members=("vit_b16_224", "vit_l16_384"), deferral=0.343),
        ImposedCascade(name="vit_b384_l384", members=("vit_b16_384", "vit_l16_384"), deferral=0.144),
        ImposedCascade(name="vit_l224_l384", members=("vit_l16_224", "vit_l16_384"), deferral=0.113),
    ),
    paper_speedup=2.3,
)
FAMILIES = {family.name: family for family in (EFFICIENTNET, VIT)}


def small_families(folder: Path) -> dict[str, NetworkFamily]:
    """The small families by name, their sources written into a folder, in a folder per network.

    Raises:
        RepositoryError: the folder cannot be written.
    """
    families = {}
    for kind, (title, common, networks) in _TOYS.items():
        for name, settings in networks.items():
            files = {
                "config.json": {"model_type": kind, "num_labels": 10, **common, **settings},
                "preprocessor_config.json": processor_of(title, settings["image_size"]),
            }
            write_all(folder / name, {file: json.dumps(value, indent=2) for file, value in files.items()})
        families[kind] = NetworkFamily(
            name=kind,
            title=f"{title} of a toy's size",
            sources={name: f"hf:{(folder / name).resolve()}" for name in networks},
            image_px=_PX,
            cascades=(ImposedCascade(name=f"tiny_{kind}", members=tuple(networks), deferral=0.15),),
        )
    return families


def speedup_of(cost: Sequence[float], reach: Sequence[float]) -> float:
    """Cost of the last stage alone over the mean cost of the cascade, from the cost of a row at each stage."""
    return cost[-1] / sum(one * share for one, share in zip(cost, reach, strict=True))


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
        folder: keeps members, scenarios and engines between runs, and gets the results.
        providers: providers, with their options, that sessions are opened with.
        precision: "fp16" or "fp32".
        pool: number of rows to choose from.
        seconds: length of a window.
        rounds: windows per cell.
        resume: go on with the windows an interrupted run left.
        small: whether the networks are the small ones.
    """

    folder: Path
    device: Device
    providers: Sequence[Any]
    precision: str
    pool: int
    loads: GpuLoads = GpuLoads()
    seconds: float = 10.0
    rounds: int = 3
    resume: bool = False
    small: bool = False

    @property
    def harness(self) -> RunOptions:
        """The options of the harness."""
        windows: dict[str, Any] = {name: getattr(self, name) for name in ("seconds", "rounds", "resume")}
        return RunOptions(full=True, scenarios=(), output=self.folder, budget_s=math.inf, **windows)

    @property
    def journal_settings(self) -> dict[str, object]:
        """Settings that a run must share with the windows it goes on with."""
        named = {name: getattr(self, name) for name in ("precision", "seconds", "rounds", "small")}
        loads = dataclasses.asdict(self.loads)
        return {"committee": __version__, "device": self.device.words, "loads": loads, **named}

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
        from export.member import export_committee, member_exports
        from export.sources import ExportOptions

    repository = setup.folder / "members" / family.name
    options = ExportOptions(random_weights=True, progress=progress)
    plans = member_exports(list(family.sources.values()), options, image_px=family.image_px)
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
    """How the plan and the rows of a cascade are made, from the members in the repository `exported`."""
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

    title = f"{cascade.words}, random weights, {setup.precision}"
    return Recipe(
        scenario=Scenario(name=cascade.name, title=title, members=members, imposed=True),
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
    """Renders a repository of the members, on the device, and their committee; replaces an earlier rendering.

    A member's configuration for GPUs is its only one, so that it refuses to load where Triton finds no GPU.

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
