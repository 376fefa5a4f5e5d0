"""Whole exports of small models: what is written, when nothing is, and what is proven."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

from export import member as member_module
from export.__main__ import app, run
from export.committee import export_committee, plans_of
from export.images.parity import MAX_LEVELS
from export.packing import packed
from export.parity import parity_of
from export.random_weights import spread_scores
from export.reading import is_current
from export.rows import rows_from_path, varied_rows
from export.sources import Asked
from orchestrator.errors import CommitteeError, DataError, ExportError
from orchestrator.local.sessions import LocalMembers
from orchestrator.spec import TensorSpec, manifest_from_path
from tests.export.small_models import save_convnext, save_vit


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_convnext(folder / "cheap", size_px=32)
    save_vit(folder / "dear")
    return folder


# A network small enough to export in half a second, behind an image processing given by hand.
POOLED = "torch:tests.export.nets:pooled"
BY_HAND = Asked(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), resolution_px=24)


def export_pooled(repository: Path, asked: Asked = BY_HAND, *, force: bool = False) -> str:
    plans = plans_of([POOLED], asked, image_px=30)
    return export_committee(repository, plans, force=force, progress=lambda _: None)["pooled"]


@pytest.fixture(scope="module")
def repository(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committee of two families, and the first one at a second resolution."""
    repository = tmp_path_factory.mktemp("exported") / "repository"
    plans = plans_of([f"hf:{models / 'cheap'}", f"hf:{models / 'dear'}"], Asked())
    assert set(export_committee(repository, plans, force=False, progress=lambda _: None).values()) == {"exported"}
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
        processor = getattr(
            transformers, {"cheap": "ConvNextImageProcessorPil", "dear": "ViTImageProcessorPil"}[name]
        ).from_pretrained(models / name)
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
    plans = plans_of([POOLED], BY_HAND, resolutions=[16, 32])
    done = export_committee(tmp_path, plans, force=False, progress=lambda _: None)
    assert list(done) == ["pooled_16", "pooled_32"]
    low, high = (manifest_from_path(tmp_path / name / "manifest.json") for name in done)
    assert low.input == high.input == TensorSpec(name="image", dtype="UINT8", dims=(3, 32, 32))
    assert low.macs < high.macs / 3
    assert low.parameters == high.parameters


def test_members_that_answer_different_questions_are_not_one_committee(tmp_path: Path) -> None:
    plans = plans_of([POOLED, f"{POOLED}_to_five"], BY_HAND)
    with pytest.raises(ExportError, match="pooled_to_five beside pooled: got 5 classes, expected 7"):
        export_committee(tmp_path, plans, force=False, progress=lambda _: None)
    assert not (tmp_path / "pooled_to_five").exists()


def test_an_interrupted_export_leaves_the_old_member_whole(tmp_path: Path) -> None:
    export_pooled(tmp_path)
    before = files_of(tmp_path)

    def interrupted(text: str) -> None:
        if "33 rows" in text:
            raise KeyboardInterrupt

    plans = plans_of([POOLED], BY_HAND, image_px=40)
    with pytest.raises(KeyboardInterrupt):
        export_committee(tmp_path, plans, force=True, progress=interrupted)
    assert files_of(tmp_path) == before


def test_weights_over_the_limit_lie_beside_the_model_and_follow_it(tmp_path: Path) -> None:
    plan = dataclasses.replace(plans_of([POOLED], BY_HAND, image_px=30)[0], external_over_bytes=1000)
    member_module.export_member(tmp_path, plan, force=False, progress=lambda _: None)
    manifest = manifest_from_path(tmp_path / "pooled/manifest.json")
    (name,) = manifest.data_files
    rows = varied_rows(manifest.input, 4)
    assert LocalMembers(tmp_path, ["pooled"]).ask("pooled", rows).shape == (4, 7)
    assert is_current(tmp_path / "pooled", plan.options())
    weights = tmp_path / "pooled" / name
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert not is_current(tmp_path / "pooled", plan.options())
    with pytest.raises(CommitteeError, match="sha256"):
        LocalMembers(tmp_path, ["pooled"])
    one_file = dataclasses.replace(plan, external_over_bytes=10**9)
    member_module.export_member(tmp_path, one_file, force=True, progress=lambda _: None)
    assert [p.name for p in (tmp_path / "pooled/1").iterdir()] == ["model.onnx"]


def test_a_disk_that_is_too_full_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    writing = packed(_Heavy(free), tmp_path)
    with pytest.raises(ExportError, match="MiB free"):
        writing.__enter__()
    assert list(tmp_path.iterdir()) == []


class _Heavy:
    """A model whose weights claim a size, so that no disk has to be filled."""

    def __init__(self, size: int) -> None:
        class Raw:
            raw_data = range(size)

        class Graph:
            initializer = (Raw,)

        self.graph = Graph


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
    asked = Asked(dims=(3, 8, 8))
    plans = plans_of(["torch:tests.export.nets:FixedBatch"], asked)
    with pytest.raises(ExportError) as caught:
        export_committee(tmp_path, plans, force=False, progress=lambda _: None)
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


def test_rows_of_a_file_must_fit(tmp_path: Path) -> None:
    tensor = TensorSpec(name="image", dtype="UINT8", dims=(3, 4, 4))
    rows = varied_rows(tensor, 5)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", images=rows, labels=np.zeros(5))
    np.testing.assert_array_equal(rows_from_path(tmp_path / "a.npy", tensor), rows)
    np.testing.assert_array_equal(rows_from_path(tmp_path / "a.npz", tensor), rows)
    np.save(tmp_path / "b.npy", rows.astype(np.float32))
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY")
    for name, says in (("b.npy", "float32"), ("c.npy", "cannot read"), ("d.npy", "no such file")):
        with pytest.raises(DataError, match=says):
            rows_from_path(tmp_path / name, tensor)


def test_varied_rows_differ_from_each_other_and_stay_the_same_for_a_seed() -> None:
    tensor = TensorSpec(name="image", dtype="UINT8", dims=(3, 24, 24))
    rows = varied_rows(tensor, 16)
    assert len({row.tobytes() for row in rows}) == 16
    assert np.ptp(rows.mean(axis=(1, 2, 3))) > 40
    np.testing.assert_array_equal(rows, varied_rows(tensor, 16))


def test_nothing_that_a_server_would_take_for_a_model_appears_while_an_export_runs(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    seen: set[str] = set()

    def look(_: str) -> None:
        seen.update(path.name for path in repository.iterdir())

    plans = plans_of([POOLED], BY_HAND, image_px=30)
    export_committee(repository, plans, force=False, progress=look)
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
    plans = plans_of([f"{POOLED}_to_five"], BY_HAND, name="pooled")
    with pytest.raises(ExportError, match=r"a member from torch:tests\.export\.nets:pooled called pooled"):
        export_committee(tmp_path, plans, force=False, progress=lambda _: None)
    export_committee(tmp_path, plans, force=True, progress=lambda _: None)
    assert manifest_from_path(tmp_path / "pooled/manifest.json").output.dims == (5,)


def test_members_that_are_there_already_must_fit_each_other_too(tmp_path: Path) -> None:
    for source in (POOLED, f"{POOLED}_to_five"):
        export_committee(tmp_path, plans_of([source], BY_HAND), force=False, progress=lambda _: None)
    plans = plans_of([POOLED, f"{POOLED}_to_five"], BY_HAND)
    with pytest.raises(ExportError, match="got 5 classes, expected 7"):
        export_committee(tmp_path, plans, force=False, progress=lambda _: None)


def test_a_failure_says_which_members_were_exported_before_it(tmp_path: Path) -> None:
    plans = plans_of([POOLED, f"{POOLED}_to_five"], BY_HAND)
    with pytest.raises(ExportError, match=r"exported before it: pooled$"):
        export_committee(tmp_path, plans, force=False, progress=lambda _: None)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        ("gives_a_dict", "the network's output: got dict"),
        ("gives_three_axes", "expected one tensor"),
        ("raises", "the network: got RuntimeError: no"),
        ("not_finite", "NaN or infinity on 64 of 64 rows"),
    ],
)
def test_a_network_that_gives_no_scores_is_one_line(tmp_path: Path, net: str, says: str) -> None:
    code, out = said("member", f"torch:tests.export.nets:{net}", "--dims", "3,8,8", "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert says in out
    assert not (tmp_path / "r" / net).exists()


def test_a_head_of_zeros_is_exported_and_logits_are_not_taken_for_probabilities(tmp_path: Path) -> None:
    words = ["--dims", "3,8,8", "-o", str(tmp_path)]
    assert said("member", "torch:tests.export.nets:zeros", *words)[0] == 0
    code, out = said("member", "torch:tests.export.nets:small", *words, "--probabilities")
    assert code == 2
    assert "expected values from 0 to 1 that add up to 1" in out
    assert said("member", "torch:tests.export.nets:soft", *words, "--probabilities")[0] == 0


# The command: what a person types and reads.


def said(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, CommitteeError):
        return result.exception.exit_code, f"error: {result.exception}"
    return result.exit_code, result.output


def test_the_command_exports_says_what_it_did_and_shows_it(models: Path, tmp_path: Path) -> None:
    words = ["member", f"hf:{models / 'cheap'}", "-o", str(tmp_path), "--name", "one", "--json"]
    code, out = said(*words)
    assert code == 0, out
    assert json.loads(out)["members"] == {"one": "exported"}
    assert json.loads(said(*words)[1])["members"] == {"one": "up to date"}
    code, out = said("show", "one", "--repository", str(tmp_path))
    assert code == 0
    for word in ("hf:", "MACs per row", "centre crop 32x32", "parity", "ConvNextImageProcessorPil"):
        assert word in out
    assert json.loads(said("show", str(tmp_path / "one"), "--json")[1])["name"] == "one"
    assert "got no manifest" in said("show", "two", "--repository", str(tmp_path))[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["torch:tests.export.nets:small", "--dims", "3,x"], "--dims: got 3,x"),
        (["torch:tests.export.nets:small", "--dims", "3,0,8"], "at least 1"),
        (["torch:tests.export.nets:small", "--dims", "3,8,8", "--precision", "fp12"], "--precision: got fp12"),
        (["hf:a", "hf:b", "--name", "x"], "--name: got 2 members"),
        (["torch:tests.export.nets:small", "--dims", "3,8,8", "--name", "no/slash"], "--name: got no/slash"),
        (["torch:tests.export.nets:small", "--dims", "3,8,8", "--name", "line\n"], "--name: got line"),
        (["torch:tests.export.nets:pooled", "--mean", "0,0,0", "--std", "1,0,1", "--resolution", "8"], "above 0"),
        (["torch:tests.export.nets:pooled", "--mean", "0,nan,0", "--std", "1,1,1", "--resolution", "8"], "finite"),
        (["torch:tests.export.nets:small", "torch:tests.export.nets:small", "--dims", "3,8,8"], "small twice"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], says: str, tmp_path: Path) -> None:
    code, out = said("member", *words, "-o", str(tmp_path / "r"))
    assert code == 2
    assert says in out
    assert "Traceback" not in out


def test_a_float_network_is_taken_as_it_is(tmp_path: Path) -> None:
    code, out = said("member", "torch:tests.export.nets:small", "--dims", "3,8,8", "-o", str(tmp_path))
    assert code == 0, out
    manifest = manifest_from_path(tmp_path / "small/manifest.json")
    assert manifest.input == TensorSpec(name="image", dtype="FP32", dims=(3, 8, 8))
    assert manifest.in_graph == {}
    assert manifest.output.dims == (5,)
    # The same network as a file of somebody's, taken in again, and once more behind an image processing by hand.
    file = tmp_path / "small/1/model.onnx"
    assert said("member", f"onnx:{file}", "--name", "again", "-o", str(tmp_path))[0] == 0
    code, out = said(
        "member", f"onnx:{file}", "--name", "bytes", "-o", str(tmp_path), "--mean", "0.5,0.5,0.5", "--std",
        "0.2,0.2,0.2", "--resolution", "8", "--image-px", "12",
    )  # fmt: skip
    assert code == 0, out
    again, seen = (manifest_from_path(tmp_path / name / "manifest.json") for name in ("again", "bytes"))
    assert again.macs == seen.macs == manifest.macs
    assert seen.input.dtype == "UINT8"
    assert seen.input.dims == (3, 12, 12)


def test_run_prints_one_line_and_gives_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["export", "member", "magic:x"])
    assert run() == 2
    assert capsys.readouterr().err.count("\n") == 1
