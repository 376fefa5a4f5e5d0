"""Networks of the zoo: exported, proven against the framework, and served from one uint8 input.

Random weights throughout: what is compared is that the served member says what the framework says, and that a
cascade of them decides as its replay does. Nothing here is about accuracy.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.member import export_committee, member_exports
from export.parity import varied_rows
from export.sources import ExportOptions
from orchestrator.client.over_grpc import GrpcClient
from orchestrator.local import LocalMembers
from orchestrator.planner.replay import replay
from orchestrator.recording.job import records_of
from orchestrator.spec import cascade_from_path, manifest_from_path
from tests.export.small_models import save_convnext
from tests.servers import running_server

pytestmark = [pytest.mark.triton, pytest.mark.timeout(600)]
# Two sizes of image, and what no smaller stand-in has. The rest of the zoo is in `slow`;
# tests/test_imagenet_docs.py has a small ResNet and a small ViT.
SMALL = ("mobilenet_v2_100_160", "efficientnet_b0")
ROWS = 8


def export_random(repository: Path, names: list[str], *, image_px: int | None = None, rows: int = ROWS) -> None:
    """Members of random weights that share one image size."""
    plans = member_exports(names, ExportOptions(random_weights=True), image_px=image_px)
    plans = [dataclasses.replace(plan, parity_rows=rows, max_batch_size=16) for plan in plans]
    export_committee(repository, plans, force=False, progress=lambda _: None)


def committee(*words: object) -> str:
    """The command itself, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *map(str, words)], capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_served(repository: Path, names: list[str], rows: int = ROWS) -> None:
    """The served members say what ONNX Runtime says in this process, to the same bytes in."""
    local = LocalMembers(repository, names, threads=2)
    with running_server(repository, startup_timeout_s=180.0) as server, GrpcClient(server.grpc_address) as client:
        for name in names:
            tensor = local.manifest(name).input
            pictures = varied_rows(tensor, rows, seed=7)
            np.testing.assert_allclose(client.ask(name, pictures), local.ask(name, pictures), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of them, exported once: that takes a minute."""
    repository = tmp_path_factory.mktemp("families")
    export_random(repository, list(SMALL))
    return repository


def test_networks_of_two_families_are_exported_proven_and_served(small: Path) -> None:
    for name in SMALL:
        manifest = manifest_from_path(small / name / "manifest.json")
        assert (manifest.input.dtype, manifest.input.dims) == ("UINT8", (3, 224, 224))
        assert manifest.parity["rows"] == ROWS
        assert manifest.parity["max_rel"] < 1e-3
        assert manifest.random_weights
    check_served(small, list(SMALL))


def cascade_of(repository: Path, members: list[str], name: str, *, rows: int, exits: float) -> None:
    """A rendered cascade with an imposed exit mix, by the commands a user has, and what it recorded."""
    manifest = manifest_from_path(repository / members[0] / "manifest.json")
    pictures = varied_rows(manifest.input, rows, seed=11)
    work = repository.parent
    data = work / "rows.npz"
    np.savez(data, images=pictures)
    out = committee("record", *members, "--data", data, "--repository", repository, "-o", work / "r.npz")
    assert "random weights" in out
    out = committee(
        "plan", work / "r.npz", "--name", name, "--impose-exits", exits, "--repository", repository, "-o",
        work / "cascade.json",
    )  # fmt: skip
    assert "no accuracy" in out
    committee("render", work / "cascade.json", "--repository", repository)
    assert "no faults" in committee("check", "--repository", repository)


def check_cascade(repository: Path, name: str, members: list[str], *, exits: float) -> None:
    """Served equals replayed on every row that is not within rounding of a threshold."""
    spec = cascade_from_path(repository / name / "1" / "cascade.json")
    records = records_of(repository, members, str(repository.parent / "rows.npz"))
    offline = replay(spec, records)
    pictures = np.load(repository.parent / "rows.npz")["images"]
    threshold = spec.stages[0].threshold
    assert threshold is not None
    first = dataclasses.replace(spec, stages=(dataclasses.replace(spec.stages[0], threshold=None),))
    near = np.abs(replay(first, records).confidence - threshold) < 1e-5
    assert near.mean() <= 0.001
    with running_server(repository, startup_timeout_s=180.0) as server, GrpcClient(server.grpc_address) as client:
        parts = [client.infer(name, pictures[start : start + 8]) for start in range(0, len(pictures), 8)]
    for column in ("label", "exit_stage", "cost"):
        served = np.concatenate([getattr(part, column) for part in parts])
        np.testing.assert_array_equal(served[~near], getattr(offline, column)[~near], err_msg=column)
    assert abs((offline.exit_stage == 0).mean() - exits) < 0.05


def test_two_families_serve_from_one_image_and_replay_equals_served(small: Path, tmp_path: Path) -> None:
    members = list(SMALL)
    repository = tmp_path / "repository"
    for name in members:
        shutil.copytree(small / name, repository / name, copy_function=os.link)
    cascade_of(repository, members, "two_families", rows=48, exits=0.7)
    check_cascade(repository, "two_families", members, exits=0.7)


def test_a_self_cascade_of_a_network_never_mentioned_here_serves_from_one_image(tmp_path: Path) -> None:
    """A ConvNeXt of somebody's, trained weights as far as anybody knows, asked at two resolutions."""
    repository = tmp_path / "repository"
    folder = save_convnext(tmp_path / "somebodys", size_px=96)
    plans = member_exports([f"hf:{folder}"], ExportOptions(random_weights=True), resolutions=[64, 96])
    export_committee(repository, plans, force=False, progress=lambda _: None)
    members = ["somebodys_64", "somebodys_96"]
    cascade_of(repository, members, "self_cascade", rows=200, exits=0.7)
    check_cascade(repository, "self_cascade", members, exits=0.7)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4", "efficientnet_b5",
        "efficientnet_b6", "efficientnet_b7", "resnet50", "resnet101", "resnet152", "mobilenet_v2_100_192",
        "mobilenet_v2_100_224", "mobilenet_v2_140_224", "vit_b16_224", "vit_b16_384", "vit_l16_224", "vit_l16_384",
    ],
)  # fmt: skip
def test_the_rest_of_the_zoo_is_exported_proven_and_served(name: str, tmp_path: Path) -> None:
    export_random(tmp_path, [name])
    check_served(tmp_path, [name], rows=2)
