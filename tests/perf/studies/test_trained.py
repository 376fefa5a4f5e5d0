import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import PIL
import pytest

torch = pytest.importorskip("torch", reason="training needs the export extra: make setup")
# ruff: noqa: E402 - nothing below can be imported without torch

from typer.testing import CliRunner

from export.cost.counting import macs_per_row, parameters_of, preprocess_macs_per_row
from export.from_torch import onnx_from_torch
from export.parity import parity_of, processor_of, session_of
from orchestrator.errors import ExportError, RepositoryError
from orchestrator.graphs.combining import IR_VERSION, OPSET
from orchestrator.rows.digits import digits_split
from orchestrator.spec import Manifest, manifest_from_path
from perf.__main__ import app
from perf.studies import digits
from perf.studies import glyphs_members as members
from perf.studies import training as commands
from perf.studies.digits import DIGITS, Architecture, ConvNet, augment, export_digits, training_settings
from perf.studies.glyphs_data import CLASSES, SplitName, glyphs_split
from perf.studies.glyphs_members import (
    FAMILY,
    GlyphsNet,
    ResidualNet,
    augmented,
    export_glyphs,
    glyphs_members,
    processing,
    train,
)

REPOSITORY = Path(__file__).parents[3] / "perf" / "glyphs" / "model_repository"
NAMES = [member.name for member in glyphs_members()]
TINY = GlyphsNet(resolution_px=16, width=2, blocks=1, epochs=1)
DIGITS_REPOSITORY = Path(__file__).parents[3] / "model_repository"
TINY_DIGITS = Architecture(channels=(2, 3), strides=(1, 2), hidden=0, epochs=1)


def quiet(_: str) -> None:
    pass


def committed(repository: Path, name: str) -> tuple[Manifest, bytes]:
    manifest = manifest_from_path(repository / name / "manifest.json")
    return manifest, (repository / name / manifest.file).read_bytes()


TRAINED = {
    **{member.name: (REPOSITORY, member.settings()) for member in glyphs_members()},
    **{name: (DIGITS_REPOSITORY, training_settings(name, 0)) for name in DIGITS},
}


@pytest.mark.parametrize("name", TRAINED)
def test_committed_members_are_what_their_manifests_say(name: str) -> None:
    repository, training = TRAINED[name]
    manifest, data = committed(repository, name)
    model = onnx.load_from_string(data)
    assert hashlib.sha256(data).hexdigest() == manifest.sha256
    # Preprocessing is part of the glyphs' graphs only.
    assert (macs_per_row(model), preprocess_macs_per_row(model)) == (manifest.macs, manifest.preprocess_macs or 0)
    assert parameters_of(model) == manifest.parameters
    assert manifest.training == training
    assert manifest.parity["rows"] >= 64
    assert manifest.parity["max_abs"] <= 1e-3
    assert (manifest.opset, model.ir_version <= IR_VERSION) == (OPSET, True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    # Nothing of the machine that made them.
    assert not model.metadata_props
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("member", glyphs_members(), ids=NAMES)
def test_glyphs_members_name_their_classes_and_resolution(member: members.GlyphsMember) -> None:
    manifest, _ = committed(REPOSITORY, member.name)
    assert (manifest.labels, manifest.resolution_px) == (CLASSES, member.resolution_px)


@pytest.mark.parametrize(
    ("repository", "names", "most_bytes"),
    [(REPOSITORY, NAMES, 14_000_000), (DIGITS_REPOSITORY, list(DIGITS), 3_000_000)],
    ids=["glyphs", "digits"],
)
def test_members_span_a_hundredfold_cost_and_stay_small(
    repository: Path, names: list[str], most_bytes: int
) -> None:
    found = [committed(repository, name) for name in names]
    costs = [manifest.macs + (manifest.preprocess_macs or 0) for manifest, _ in found]
    assert max(costs) >= 100 * min(costs)
    assert sum(len(data) for _, data in found) < most_bytes


def train_glyphs(seed: int) -> torch.nn.Module:
    images = {16: torch.randn(256, 1, 16, 16, generator=torch.Generator().manual_seed(1)).numpy()}
    return train(TINY, images, np.arange(256) % len(CLASSES), seed=seed)


def train_digits(seed: int) -> torch.nn.Module:
    rows = digits_split("train")
    return digits.train(TINY_DIGITS, rows.images[:128], rows.labels[:128], seed=seed)


@pytest.mark.parametrize("trained", [train_glyphs, train_digits])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    trained: Callable[[int], torch.nn.Module],
) -> None:
    one, two, other = (trained(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_the_train_part_drawn_here_is_the_one_that_the_members_were_trained_on() -> None:
    """Another Pillow draws other pictures: the manifests name theirs."""
    manifests = [manifest_from_path(REPOSITORY / name / "manifest.json") for name in NAMES]
    if PIL.__version__ not in {one.versions["pillow"] for one in manifests}:
        pytest.skip(f"Pillow {PIL.__version__} is not the one that drew them")
    assert {one.options["data_sha256"] for one in manifests} == {glyphs_split("train").sha256()}


def test_the_self_cascade_is_one_network_at_two_resolutions() -> None:
    low, high = (onnx.load(REPOSITORY / f"glyphs_self_{word}" / "1" / "model.onnx") for word in ("low", "high"))

    def weights(model: onnx.ModelProto) -> set[str]:
        return {
            hashlib.sha256(onnx.numpy_helper.to_array(w).tobytes()).hexdigest()
            for w in model.graph.initializer
            if not w.name.startswith("preprocess/") and onnx.numpy_helper.to_array(w).size > 100
        }

    assert weights(low) == weights(high)
    assert len(weights(low)) > 5


def test_committed_members_read_pictures_they_were_not_trained_on() -> None:
    """A guard against a broken file, not a result: those are in docs/reproduce.md."""
    part = glyphs_split("plan", rows=200)
    for name in ("glyphs_b0_s0", "glyphs_b5_s1"):
        session = session_of(REPOSITORY / name / "1" / "model.onnx")
        (logits,) = session.run(None, {"image": part.images})
        assert np.mean(np.asarray(logits).argmax(axis=1) == part.labels) > 0.7


def test_training_draws_the_train_part_alone_and_a_second_run_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def watched(part: SplitName, **options: Any) -> Any:
        drawn.append(part)
        return glyphs_split(part, **options)

    monkeypatch.setattr(members, "glyphs_split", watched)
    monkeypatch.setattr(members, "FAMILY", {"glyphs_b0": TINY})
    first = export_glyphs(tmp_path, only=["glyphs_b0_s1"], rows=256, progress=quiet)
    assert first["glyphs_b0_s1"].startswith("trained")
    assert drawn == ["train"]
    assert export_glyphs(tmp_path, only=["glyphs_b0_s1"], rows=256, progress=quiet) == {
        "glyphs_b0_s1": "up to date"
    }
    assert drawn == ["train"]
    manifest = manifest_from_path(tmp_path / "glyphs_b0_s1" / "manifest.json")
    assert manifest.options["data_sha256"] == glyphs_split("train", rows=256).sha256()


def test_a_try_never_takes_the_place_of_a_committed_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (commands.REPOSITORY, commands.TRY):
        shutil.copytree(REPOSITORY / "glyphs_b0_s1", folder / "glyphs_b0_s1")
    tried = commands.TRY / "glyphs_b0_s1/manifest.json"
    document = json.loads(tried.read_text())
    document["training"]["rows"] = 128
    tried.write_text(json.dumps(document))
    words = ["glyphs", "--only", "glyphs_b0_s1"]
    # Where nothing is named, a try looks in the folder of tries, and all rows in the committed one.
    assert CliRunner().invoke(app, [*words, "--rows", "128"]).stdout == f"{tried.parent}: up to date\n"
    assert CliRunner().invoke(app, words).stdout == f"{commands.REPOSITORY}/glyphs_b0_s1: up to date\n"
    for more, known, wanted in (
        (["--rows", "128", "-o", str(commands.REPOSITORY)], "60,000", "128"),
        (["--rows", "256"], "128", "256"),
        (["-o", str(commands.TRY)], "128", "60,000"),
    ):
        error = CliRunner().invoke(app, [*words, *more]).exception
        assert isinstance(error, ExportError)
        assert (
            f"got glyphs_b0_s1 trained on {known} rows, expected no such member, or one of {wanted} rows"
            in str(error)
        )


def test_a_network_of_two_resolutions_is_trained_on_both() -> None:
    from dataclasses import replace

    labels = np.arange(256) % len(CLASSES)
    images = {
        side: np.random.default_rng(side).normal(size=(256, 1, side, side)).astype(np.float32) for side in (16, 12)
    }
    size = replace(TINY, also_px=(12,))
    both = train(size, images, labels, seed=0).state_dict()
    again = train(size, images | {12: -2 * images[12]}, labels, seed=0).state_dict()
    assert any(not torch.equal(both[key], again[key]) for key in both)


def test_augmentation_keeps_the_range_moves_pictures_and_inverts_half_of_them() -> None:
    images = torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    moved = augmented(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert float(moved.abs().max()) <= 0.75 + 1e-6
    inverted = float((moved.mean(dim=(1, 2, 3)) < 0).float().mean())
    assert 0.4 < inverted < 0.6


def test_the_graph_sees_what_training_saw() -> None:
    part = glyphs_split("train", rows=8)
    process = processor_of(processing(20), height_px=32, width_px=32)
    seen = process(part.images)
    assert seen.shape == (8, 1, 20, 20)
    assert -1 <= seen.min() < -0.3
    assert 0.3 < seen.max() <= 1
    model = ResidualNet(FAMILY["glyphs_b1"]).eval()
    with torch.inference_mode():
        assert model(torch.from_numpy(seen)).shape == (8, len(CLASSES))


def test_an_unknown_member_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="some of glyphs_b0_s0"):
        export_glyphs(tmp_path / "new", only=["glyphs_b9"], progress=quiet)
    assert not (tmp_path / "new").exists()


def flops_by_torch(model: torch.nn.Module) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 8, 8))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", list(DIGITS))
def test_the_cost_counter_agrees_with_torchs_own(name: str) -> None:
    model = ConvNet(DIGITS[name]).eval()
    proto = onnx_from_torch(model, torch.zeros(2, 1, 8, 8))
    assert macs_per_row(proto) == flops_by_torch(model) // 2


def test_training_never_reads_the_plan_or_the_test_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def watched(name: str):
        asked.append(name)
        return digits_split(name)

    monkeypatch.setattr("perf.studies.digits.digits_split", watched)
    monkeypatch.setattr("perf.studies.digits.DIGITS", {"digits_small": TINY_DIGITS})
    monkeypatch.setattr("perf.studies.digits.training_settings", lambda name, seed: {"seed": seed})
    assert export_digits(tmp_path, progress=quiet) == {"digits_small": "trained"}
    assert export_digits(tmp_path, progress=quiet) == {"digits_small": "up to date"}
    assert set(asked) == {"train"}


def test_augmentation_keeps_shape_and_range_and_changes_pictures() -> None:
    images = torch.from_numpy(digits_split("train").images[:32])
    moved = augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 16
    assert not torch.allclose(moved, images, atol=0.5)


def test_a_model_that_says_something_else_fails_parity_at_every_batch_size() -> None:
    model = ConvNet(TINY_DIGITS).eval()
    data = onnx_from_torch(model, torch.zeros(2, 1, 8, 8)).SerializeToString()
    rows = digits_split("train").images[:64]

    def shifted(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy() + 1

    with pytest.raises(ExportError, match=r"batch 1: differs.*batch 2: differs.*batch 7.*batch 33"):
        parity_of(data, shifted, rows)
    with pytest.raises(ExportError, match="tensors"):
        parity_of(data, shifted, rows, output_name="scores")
    with pytest.raises(ExportError, match="at least 64"):
        parity_of(data, shifted, rows[:63])


def test_a_model_of_somebody_elses_is_not_written_over(tmp_path: Path) -> None:
    theirs = tmp_path / "digits_small" / "1" / "model.onnx"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(ExportError, match="a model that was not exported here called digits_small"):
        export_digits(tmp_path, progress=quiet)
    assert theirs.read_bytes() == b"theirs"


def test_an_output_that_cannot_be_a_folder_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RepositoryError, match="repository"):
        export_digits(tmp_path / "file" / "repository", progress=quiet)


@pytest.mark.slow
def test_training_again_gives_the_committed_bytes(tmp_path: Path) -> None:
    export_digits(tmp_path, progress=quiet)
    for name in DIGITS:
        assert (tmp_path / name / "1" / "model.onnx").read_bytes() == (
            DIGITS_REPOSITORY / name / "1" / "model.onnx"
        ).read_bytes()
