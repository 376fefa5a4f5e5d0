import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="training needs the export extra: make setup")
# ruff: noqa: E402 - nothing below can be imported without torch

from export.cost.counting import macs_per_row, parameters_of
from export.from_torch import onnx_from_torch
from export.parity import parity_of
from orchestrator.errors import ExportError, RepositoryError
from orchestrator.graphs.combining import IR_VERSION, OPSET
from orchestrator.rows.digits import digits_split
from orchestrator.spec import manifest_from_path
from perf.studies.digits import DIGITS, Architecture, ConvNet, augment, export_digits, train, training_settings

REPOSITORY = Path(__file__).parents[3] / "model_repository"
TINY = Architecture(channels=(2, 3), strides=(1, 2), hidden=0, epochs=1)


def flops_by_torch(model: torch.nn.Module) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 8, 8))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", list(DIGITS))
def test_committed_members_are_what_their_manifests_say(name: str) -> None:
    manifest = manifest_from_path(REPOSITORY / name / "manifest.json")
    data = (REPOSITORY / name / manifest.file).read_bytes()
    model = onnx.load_from_string(data)
    assert hashlib.sha256(data).hexdigest() == manifest.sha256
    assert macs_per_row(model) == manifest.macs
    assert parameters_of(model) == manifest.parameters
    assert manifest.training == training_settings(name, 0)
    assert manifest.parity["rows"] >= 64
    assert manifest.parity["max_abs"] <= 1e-3
    assert (manifest.opset, model.ir_version <= IR_VERSION) == (OPSET, True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_the_members_span_a_hundredfold_cost_and_fit_in_three_megabytes() -> None:
    manifests = [manifest_from_path(REPOSITORY / name / "manifest.json") for name in DIGITS]
    costs = [manifest.macs for manifest in manifests]
    assert max(costs) >= 100 * min(costs)
    assert sum((REPOSITORY / m.name / m.file).stat().st_size for m in manifests) < 3_000_000


def test_committed_models_carry_no_notes_of_the_machine_that_made_them() -> None:
    for name in DIGITS:
        model = onnx.load(REPOSITORY / name / "1" / "model.onnx")
        assert not model.metadata_props
        assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)


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
    monkeypatch.setattr("perf.studies.digits.DIGITS", {"digits_small": TINY})
    monkeypatch.setattr("perf.studies.digits.training_settings", lambda name, seed: {"seed": seed})
    assert export_digits(tmp_path, progress=lambda text: None) == {"digits_small": "trained"}
    assert export_digits(tmp_path, progress=lambda text: None) == {"digits_small": "up to date"}
    assert set(asked) == {"train"}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    rows = digits_split("train")
    images, labels = rows.images[:128], rows.labels[:128]
    one, two, other = (train(TINY, images, labels, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_augmentation_keeps_shape_and_range_and_changes_pictures() -> None:
    images = torch.from_numpy(digits_split("train").images[:32])
    moved = augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 16
    assert not torch.allclose(moved, images, atol=0.5)


def test_a_model_that_says_something_else_fails_parity_at_every_batch_size() -> None:
    model = ConvNet(TINY).eval()
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
        export_digits(tmp_path, progress=lambda text: None)
    assert theirs.read_bytes() == b"theirs"


def test_an_output_that_cannot_be_a_folder_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RepositoryError, match="repository"):
        export_digits(tmp_path / "file" / "repository", progress=lambda text: None)


@pytest.mark.slow
def test_training_again_gives_the_committed_bytes(tmp_path: Path) -> None:
    export_digits(tmp_path, progress=lambda text: None)
    for name in DIGITS:
        assert (tmp_path / name / "1" / "model.onnx").read_bytes() == (
            REPOSITORY / name / "1" / "model.onnx"
        ).read_bytes()
