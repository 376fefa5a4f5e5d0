import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from export.__main__ import app
from export.parity import varied_rows
from export.precision.derive import export_precision, rows_for
from orchestrator.errors import CommitteeError, DataError, ExportError
from orchestrator.local import LocalMembers
from orchestrator.repository.check import check
from orchestrator.rows.digits import digits_split
from orchestrator.spec import manifest_from_path
from orchestrator.spec.manifest import json_from_manifest
from tests.export.small_networks import IMAGE_INPUT, add_image_member
from tests.repository.builders import add_member, snapshot

REPOSITORY = Path(__file__).parents[3] / "model_repository"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One member of the committed ones."""
    shutil.copytree(REPOSITORY / "digits_medium", tmp_path / "models" / "digits_medium")
    return tmp_path / "models"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, digits_split("train").images[:200])
    return path


def test_both_precisions_become_members_with_manifests_of_their_own(repository: Path, rows: Path) -> None:
    original = manifest_from_path(repository / "digits_medium" / "manifest.json")
    before = snapshot(repository / "digits_medium")
    for to in ("fp16", "int8"):
        done = export_precision(repository, "digits_medium", to=to, calibrate=rows)
        assert done == (f"digits_medium_{to}", "exported")
        made = manifest_from_path(repository / f"digits_medium_{to}" / "manifest.json")
        kept = ("input", "output", "labels", "macs", "parameters", "max_batch_size", "preprocess", "training")
        assert [getattr(made, name) for name in kept] == [getattr(original, name) for name in kept]
        assert (made.precision, made.name) == (to, f"digits_medium_{to}")
        assert made.agreement["with_sha256"] == original.sha256
        assert made.agreement["rows"] == (200 if to == "fp16" else 50)
        assert made.agreement["same_top1"] >= 0.98
        assert "accuracy" not in json_from_manifest(made)
    assert made.agreement["calibration_rows"] == 150
    assert snapshot(repository / "digits_medium") == before
    test = digits_split("test").images
    names = ["digits_medium", "digits_medium_fp16", "digits_medium_int8"]
    members = LocalMembers(repository, names)
    tops = [members.ask(name, test).argmax(axis=1) for name in names]
    assert (tops[0] == tops[1]).mean() == 1
    assert (tops[0] == tops[2]).mean() > 0.99
    assert check(repository)


def test_a_second_run_does_nothing_until_something_changes(repository: Path, rows: Path) -> None:
    export_precision(repository, "digits_medium", to="int8", calibrate=rows)
    folder = repository / "digits_medium_int8"
    before, written_ns = snapshot(folder), (folder / "1" / "model.onnx").stat().st_mtime_ns
    assert export_precision(repository, "digits_medium", to="int8", calibrate=rows)[1] == "up to date"
    assert (folder / "1" / "model.onnx").stat().st_mtime_ns == written_ns
    (folder / "1" / "model.onnx").write_bytes(b"damaged")
    assert export_precision(repository, "digits_medium", to="int8", calibrate=rows)[1] == "exported"
    assert snapshot(folder) == before
    np.save(rows, digits_split("train").images[200:400])
    assert export_precision(repository, "digits_medium", to="int8", calibrate=rows)[1] == "exported"
    assert snapshot(folder)["1/model.onnx"] != before["1/model.onnx"]


@pytest.fixture
def misleading(tmp_path: Path) -> Path:
    """Rows of which those to calibrate on are glaring, and those to compare on are not."""
    images = digits_split("train").images[:200].copy()
    images[np.arange(len(images)) % 4 != 1] *= 200
    np.save(tmp_path / "glaring.npy", images)
    return tmp_path / "glaring.npy"


@pytest.mark.parametrize("command", ["precision", "member"])
def test_a_member_that_answers_otherwise_too_often_is_refused_and_not_written(
    repository: Path, misleading: Path, command: str
) -> None:
    words = ["precision", "digits_medium", "--to", "int8", "--repository", str(repository)]
    made = repository / "digits_medium_int8"
    if command == "member":
        file = repository / "digits_medium/1/model.onnx"
        words = ["member", f"onnx:{file}", "--name", "again", "--precision", "int8", "-o", str(repository)]
        made = repository / "again_int8"
    words += ["--calibrate", str(misleading)]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, ExportError), result.output
    assert "expected at least 90.0%" in str(result.exception)
    assert "95 % interval" in str(result.exception)
    assert not made.exists()
    assert not list(repository.glob(".*/*"))
    # What is asked for by name is made, and what is there is held to the limit of each run.
    assert CliRunner().invoke(app, [*words, "--min-agreement", "0.01"]).exit_code == 0
    assert manifest_from_path(made / "manifest.json").agreement["same_top1"] < 0.9
    before = snapshot(made)
    assert isinstance(CliRunner().invoke(app, words).exception, ExportError)
    assert snapshot(made) == before


def test_random_weights_are_held_to_a_limit_only_where_one_is_given(repository: Path, misleading: Path) -> None:
    path = repository / "digits_medium/manifest.json"
    path.write_text(json_from_manifest(dataclasses.replace(manifest_from_path(path), random_weights=True)))
    assert export_precision(repository, "digits_medium", to="int8", calibrate=misleading)[1] == "exported"
    with pytest.raises(ExportError, match=r"at least 90\.0%"):
        export_precision(
            repository, "digits_medium", to="int8", calibrate=misleading, min_agreement=0.9, force=True
        )


def test_a_member_is_made_again_when_its_original_is_found_to_give_another_kind(tmp_path: Path) -> None:
    add_image_member(tmp_path, "net", random_weights=True)
    assert export_precision(tmp_path, "net", to="fp16")[1] == "exported"
    path = tmp_path / "net/manifest.json"
    path.write_text(json_from_manifest(dataclasses.replace(manifest_from_path(path), output_kind="probabilities")))
    assert export_precision(tmp_path, "net", to="fp16")[1] == "exported"
    assert manifest_from_path(tmp_path / "net_fp16/manifest.json").output_kind == "probabilities"


def test_random_weights_stay_marked_and_image_members_work(tmp_path: Path) -> None:
    add_image_member(tmp_path, "net", random_weights=True)
    np.savez(tmp_path / "rows.npz", images=varied_rows(IMAGE_INPUT, 16))
    for to in ("fp16", "int8"):
        export_precision(tmp_path, "net", to=to, calibrate=tmp_path / "rows.npz", output=tmp_path / "out")
        made = manifest_from_path(tmp_path / "out" / f"net_{to}" / "manifest.json")
        assert made.random_weights
        assert made.input == IMAGE_INPUT


def test_without_rows_fp16_is_compared_on_made_up_ones(repository: Path) -> None:
    export_precision(repository, "digits_medium", to="fp16")
    made = manifest_from_path(repository / "digits_medium_fp16" / "manifest.json")
    assert (made.agreement["rows"], made.agreement["rows_from"]) == (256, "made up")
    assert "as a GPU does" in made.agreement["computed"]


def test_heavy_members_are_compared_on_fewer_made_up_rows() -> None:
    light = manifest_from_path(REPOSITORY / "digits_medium" / "manifest.json")
    counts = [
        len(rows_for(dataclasses.replace(light, macs=macs), onnx.GraphProto(), to="fp16", calibrate=None).compare)
        for macs in (0, 1e9, 3e10, 2e11)
    ]
    assert counts == [256, 256, 100, 16]


def test_the_command_says_what_it_did(repository: Path, rows: Path) -> None:
    asked = ["precision", "digits_medium", "--repository", str(repository)]
    done = CliRunner().invoke(app, [*asked, "--to", "int8", "--calibrate", str(rows)])
    assert done.exit_code == 0, done.output
    assert "same top-1 as digits_medium on 100.00% of 50 rows (95 % interval" in done.stdout
    again = CliRunner().invoke(app, [*asked, "--to", "int8", "--calibrate", str(rows), "--json"])
    document = json.loads(again.stdout)
    assert (document["member"], document["done"]) == ("digits_medium_int8", "up to date")
    assert document["agreement"]["rows"] == 50


def test_the_help_says_that_half_precision_is_slower_on_a_cpu() -> None:
    text = CliRunner().invoke(app, ["precision", "--help"]).stdout
    assert "python -m export precision digits_large --to fp16" in text
    assert "mostly slower there" in " ".join(text.split())


def fail(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["precision", *map(str, arguments)])
    assert isinstance(done.exception, CommitteeError), done.output
    text = str(done.exception)
    assert "\n" not in text
    return text


def test_whatever_is_wrong_is_one_line_and_nothing_is_written(
    repository: Path, tmp_path: Path, rows: Path
) -> None:
    other, single = tmp_path / "other.npy", tmp_path / "single.npy"
    np.save(other, np.zeros((4, 3), np.float32))
    np.save(single, digits_split("train").images[:1])
    add_member(repository, "plain")
    (repository / "cascade" / "1").mkdir(parents=True)
    (repository / "cascade" / "1" / "model.py").write_text("")
    before = snapshot(repository)
    for member, to, words, says in (
        ("nobody", "fp16", (), "one of digits_medium, plain"),
        ("cascade", "fp16", (), "a model without manifest.json"),
        ("digits_medium", "fp8", (), "got fp8, expected fp16 or int8"),
        ("digits_medium", "int8", (), "--calibrate rows.npy"),
        ("digits_medium", "int8", ("--calibrate", tmp_path / "none.npy"), "no such file"),
        ("digits_medium", "int8", ("--calibrate", other), "float32 [n, 1, 8, 8]"),
        ("digits_medium", "int8", ("--calibrate", single), "got 1 row"),
        ("digits_medium", "fp16", ("--name", "plain"), "`python -m export precision`; choose another --name"),
        ("digits_medium", "fp16", ("--name", "cascade"), "not exported here"),
        ("digits_medium", "fp16", ("--name", "digits_medium"), "expected another than the fp32"),
        ("digits_medium", "fp16", ("--name", "../x"), "--name: got '../x'"),
    ):
        assert says in fail(member, "--repository", repository, "--to", to, *words)
    assert "does not exist" in fail("digits_medium", "--repository", tmp_path / "nowhere", "--to", "fp16")
    assert snapshot(repository) == before


def test_a_member_that_is_no_whole_onnx_model_is_one_line(repository: Path) -> None:
    folder = repository / "digits_medium"
    manifest = manifest_from_path(folder / "manifest.json")
    path = folder / "1" / "model.onnx"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    assert "as in manifest.json; export the member again" in fail(
        "digits_medium", "--repository", repository, "--to", "fp16"
    )
    rewrite(folder, manifest, data[:5000])
    assert "expected an ONNX model" in fail("digits_medium", "--repository", repository, "--to", "fp16")
    rewrite(folder, dataclasses.replace(manifest, file="1/model.plan"), b"engine")
    assert "expected an ONNX member" in fail("digits_medium", "--repository", repository, "--to", "fp16")
    assert [path.name for path in repository.iterdir()] == ["digits_medium"]


def test_a_derived_member_names_the_one_to_convert(repository: Path, rows: Path) -> None:
    export_precision(repository, "digits_medium", to="fp16")
    text = fail("digits_medium_fp16", "--repository", repository, "--to", "int8", "--calibrate", rows)
    assert text.endswith("got an fp16 member, expected an fp32 one; name digits_medium")


def rewrite(folder: Path, manifest: object, data: bytes) -> None:
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    (folder / manifest.file).write_bytes(data)
    (folder / "manifest.json").write_text(json_from_manifest(dataclasses.replace(manifest, sha256=digest)))


def test_errors_of_rows_are_of_their_own_kind(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    path.write_bytes(b"no array")
    with pytest.raises(DataError):
        export_precision(repository, "digits_medium", to="int8", calibrate=path, output=tmp_path / "made")
    assert not (tmp_path / "made").exists(), "a failure leaves no folder"
    with pytest.raises(ExportError):
        export_precision(repository, "digits_medium", to="int8")


def test_a_member_whose_values_overflow_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    from orchestrator.spec import TensorSpec
    from tests.export.small_networks import SCORES, Builder

    b = Builder([4])
    b.op("MatMul", b.op("Mul", b.last, b.weight([6e4])), b.random(4, 5))
    b.op("Mul", b.last, b.weight([1e-4]))
    tensor = TensorSpec(name="image", dtype="FP32", dims=(4,))
    add_member(tmp_path, "loud", model=b.model(), inputs=(tensor,), output=SCORES)
    with pytest.raises(ExportError, match=r"NaN or infinity on .* of 256 rows"):
        export_precision(tmp_path, "loud", to="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["loud"]
    assert onnx.load(tmp_path / "loud" / "1" / "model.onnx")
