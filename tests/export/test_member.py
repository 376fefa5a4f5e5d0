"""Whole exports of small models: what is written, when nothing is, and what is proven."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export import member as member_module
from export.from_torch import spread_scores
from export.member import export_committee, member_exports
from export.members import is_current, packed
from export.parity import MAX_LEVELS, parity_of, varied_rows
from export.sources import ExportOptions
from orchestrator.errors import CommitteeError, ExportError
from orchestrator.local import LocalMembers
from orchestrator.spec import TensorSpec, manifest_from_path

# A network small enough to export in half a second, behind an image processing given by hand.
POOLED = "torch:tests.export.nets:pooled"

BY_HAND = ExportOptions(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), resolution_px=24)


def export_members(
    repository: Path,
    sources: list[str],
    asked: ExportOptions = BY_HAND,
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    **how: Any,
) -> dict[str, str]:
    return export_committee(repository, member_exports(sources, asked, **how), force=force, progress=progress)


def export_pooled(repository: Path, asked: ExportOptions = BY_HAND, **how: Any) -> str:
    return export_members(repository, [POOLED], asked, image_px=30, **how)["pooled"]


@pytest.fixture(scope="module")
def repository(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committee of two families, and the first one at a second resolution."""
    repository = tmp_path_factory.mktemp("exported") / "repository"
    done = export_members(repository, [f"hf:{models / 'cheap'}", f"hf:{models / 'dear'}"], ExportOptions())
    assert set(done.values()) == {"exported"}
    return repository


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_members_of_one_command_take_the_same_image(repository: Path) -> None:
    cheap, dear = (manifest_from_path(repository / name / "manifest.json") for name in ("cheap", "dear"))
    assert cheap.input == dear.input == TensorSpec(name="image", dtype="UINT8", dims=(3, 36, 36))
    assert (cheap.resolution_px, dear.resolution_px) == (32, 32)
    assert cheap.labels == dear.labels
    assert cheap.in_graph["parity"]["max_levels"] <= MAX_LEVELS
    assert cheap.parity["rows"] == 64
    assert cheap.parity["batches"] == [1, 2, 7, 33]
    assert cheap.macs > 0
    # The cheap one only crops; the dear one resizes 36 to 32 along both axes.
    assert (cheap.preprocess_macs, dear.preprocess_macs) == (0, 3 * 36 * 36 * 32 + 3 * 32 * 36 * 32)
    assert cheap.opset == 18
    assert not cheap.random_weights


def test_a_member_answers_what_transformers_answers_to_the_same_picture(repository: Path, models: Path) -> None:
    """End to end with the model's own processor, which rounds a few pixels otherwise; hence the tolerance."""
    import torch
    import transformers

    rows = varied_rows(TensorSpec(name="image", dtype="UINT8", dims=(3, 36, 36)), 12, seed=3)
    local = LocalMembers(repository, ["cheap", "dear"])
    for name in ("cheap", "dear"):
        kind = {"cheap": "ConvNextImageProcessorPil", "dear": "ViTImageProcessorPil"}[name]
        processor = getattr(transformers, kind).from_pretrained(models / name)
        model = transformers.AutoModelForImageClassification.from_pretrained(models / name).eval()
        pixels = processor(images=[np.moveaxis(row, 0, -1) for row in rows], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            want = model(pixel_values=pixels).logits.numpy()
        np.testing.assert_allclose(local.ask(name, rows), want, atol=0.01)


def test_a_second_export_does_nothing_until_something_changed(tmp_path: Path) -> None:
    assert export_pooled(tmp_path) == "exported"
    before = files_of(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert export_pooled(tmp_path) == "up to date"
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == times
    model = tmp_path / "pooled/1/model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    assert export_pooled(tmp_path) == "exported"
    assert files_of(tmp_path) == before
    assert export_pooled(tmp_path, dataclasses.replace(BY_HAND, resolution_px=20)) == "exported"


def test_one_network_at_two_resolutions_is_two_members_of_one_image_size(tmp_path: Path) -> None:
    done = export_members(tmp_path, [POOLED], resolutions=[16, 32])
    assert list(done) == ["pooled_16", "pooled_32"]
    low, high = (manifest_from_path(tmp_path / name / "manifest.json") for name in done)
    assert low.input == high.input == TensorSpec(name="image", dtype="UINT8", dims=(3, 32, 32))
    assert low.macs < high.macs / 3
    assert low.parameters == high.parameters


def test_members_with_other_classes_are_not_one_committee_and_the_error_says_which_were_exported(
    tmp_path: Path,
) -> None:
    wrong = "pooled_to_five beside pooled: got 5 classes, expected 7.*exported before it: pooled$"
    with pytest.raises(ExportError, match=wrong):
        export_members(tmp_path, [POOLED, f"{POOLED}_to_five"])
    assert not (tmp_path / "pooled_to_five").exists()
    # Members that are there already must fit each other too.
    export_members(tmp_path, [f"{POOLED}_to_five"])
    with pytest.raises(ExportError, match="got 5 classes, expected 7"):
        export_members(tmp_path, [POOLED, f"{POOLED}_to_five"])


def test_an_interrupted_export_leaves_the_old_member_whole(tmp_path: Path) -> None:
    export_pooled(tmp_path)
    before = files_of(tmp_path)

    def interrupted(text: str) -> None:
        if "33 rows" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_members(tmp_path, [POOLED], image_px=40, force=True, progress=interrupted)
    assert files_of(tmp_path) == before


def test_weights_over_the_limit_lie_beside_the_model_and_follow_it(tmp_path: Path) -> None:
    plan = dataclasses.replace(member_exports([POOLED], BY_HAND, image_px=30)[0], external_over_bytes=1000)
    member_module.export_member(tmp_path, plan, force=False, progress=lambda _: None)
    manifest = manifest_from_path(tmp_path / "pooled/manifest.json")
    (name,) = manifest.data_files
    rows = varied_rows(manifest.input, 4)
    assert LocalMembers(tmp_path, ["pooled"]).ask("pooled", rows).shape == (4, 7)
    assert is_current(tmp_path / "pooled", plan.settings())
    weights = tmp_path / "pooled" / name
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert not is_current(tmp_path / "pooled", plan.settings())
    with pytest.raises(CommitteeError, match="sha256"):
        LocalMembers(tmp_path, ["pooled"])
    one_file = dataclasses.replace(plan, external_over_bytes=10**9)
    member_module.export_member(tmp_path, one_file, force=True, progress=lambda _: None)
    assert [p.name for p in (tmp_path / "pooled/1").iterdir()] == ["model.onnx"]


def test_a_disk_that_is_too_full_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    # Weights that claim the size, so that no disk has to be filled.
    weight = SimpleNamespace(raw_data=range(shutil.disk_usage(tmp_path).free))
    graph = SimpleNamespace(initializer=(weight,), sparse_initializer=(), node=())
    writing = packed(SimpleNamespace(graph=graph, functions=()), tmp_path)
    with pytest.raises(ExportError, match="MiB free"):
        writing.__enter__()
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_marked_and_spread_over_the_thresholds(tmp_path: Path) -> None:
    export_pooled(tmp_path, dataclasses.replace(BY_HAND, random_weights=True, seed=3))
    manifest = manifest_from_path(tmp_path / "pooled/manifest.json")
    assert manifest.random_weights
    z = LocalMembers(tmp_path, ["pooled"]).ask("pooled", varied_rows(manifest.input, 200, seed=9))
    p = np.exp(z - z.max(axis=1, keepdims=True))
    top = (p / p.sum(axis=1, keepdims=True)).max(axis=1)
    assert np.quantile(top, 0.1) < 0.4
    assert np.quantile(top, 0.9) > 0.6


def test_a_network_without_a_head_cannot_be_spread() -> None:
    import torch

    with pytest.raises(ExportError, match="linear head"):
        spread_scores(torch.nn.Flatten(), np.zeros((16, 3, 2, 2), np.float32))


def test_a_network_that_the_exporter_cannot_follow_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_members(tmp_path, ["torch:tests.export.nets:FixedBatch"], ExportOptions(dims=(3, 8, 8)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fixedbatch").exists()


def test_parity_reports_every_disagreement_at_once(repository: Path) -> None:
    path = repository / "cheap/1/model.onnx"
    rows = varied_rows(manifest_from_path(repository / "cheap/manifest.json").input, 64)
    session = onnxruntime.InferenceSession(str(path))

    def off(x: np.ndarray) -> np.ndarray:
        return session.run(None, {"image": x})[0] + np.float32(0.01)

    with pytest.raises(ExportError) as caught:
        parity_of(path, off, rows)
    assert all(f"batch {size}: differs by 0.01" in str(caught.value) for size in (1, 2, 7, 33))
    with pytest.raises(ExportError, match=r"batch 1: shape .*batch 33: shape"):
        parity_of(path, lambda x: off(x)[:, :3], rows)
    with pytest.raises(ExportError, match="at least 64"):
        parity_of(path, off, rows[:63])
    with pytest.raises(ExportError, match="tensors"):
        parity_of(path, off, rows, input_name="pixels")


def test_nothing_that_a_server_would_take_for_a_model_appears_while_an_export_runs(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    seen: set[str] = set()

    def look(_: str) -> None:
        seen.update(path.name for path in repository.iterdir())

    export_pooled(repository, progress=look)
    assert seen == set()
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_what_a_killed_export_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".committee-export-{dead.pid}-x").mkdir()
    mine = tmp_path / f".committee-export-{os.getpid()}-x"
    mine.mkdir()
    export_pooled(tmp_path / "repository")
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, "repository"]


@pytest.mark.parametrize("file", ["1/model.plan", "2/model.onnx", "1/cascade.json", "config.pbtxt"])
def test_a_model_of_somebody_else_is_never_written_into(tmp_path: Path, file: str) -> None:
    theirs = tmp_path / "pooled" / file
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    before = files_of(tmp_path)
    with pytest.raises(ExportError, match="a model that was not exported here called pooled"):
        export_pooled(tmp_path)
    assert files_of(tmp_path) == before


def test_a_member_of_another_source_is_replaced_by_force_only(tmp_path: Path) -> None:
    export_pooled(tmp_path)
    with pytest.raises(ExportError, match=r"a member from torch:tests\.export\.nets:pooled called pooled"):
        export_members(tmp_path, [f"{POOLED}_to_five"], name="pooled")
    export_members(tmp_path, [f"{POOLED}_to_five"], name="pooled", force=True)
    assert manifest_from_path(tmp_path / "pooled/manifest.json").output.dims == (5,)


@pytest.mark.parametrize("asked", [{"max_length": 9}, {"pads": {"image": 1}}, {"inputs": {"image": "x"}}])
def test_options_of_tokens_are_refused_for_pictures(tmp_path: Path, asked: dict[str, Any]) -> None:
    (name,) = asked
    with pytest.raises(ExportError, match=f"`{name}`: got it for a model that takes rows of fixed shape"):
        export_members(tmp_path, [POOLED], dataclasses.replace(BY_HAND, **asked))
