import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export import proof as proving
from export.commands.member import runtimes_said
from export.proof import Proof, proofs_of, prove_against_installed, require_proven
from export.runtimes import Question, answers_in_own_process, installed_version
from orchestrator.errors import ExportError
from orchestrator.spec import manifest_from_path
from orchestrator.spec.triton import image_runtimes
from tests.export.small_networks import answers, conv_network
from tests.export.test_member_command import said

ROWS = np.random.default_rng(0).normal(size=(20, 3, 12, 12)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(conv_network().SerializeToString())
    return path


def test_a_process_of_its_own_says_the_same_in_every_batch_size(model: Path) -> None:
    (said,) = answers_in_own_process([Question(model=model, rows=ROWS, batches={1: 20, 7: 20})])
    assert not isinstance(said, str)
    assert all(np.allclose(output, answers(conv_network(), ROWS), atol=1e-5) for output in said.values())
    assert list(said) == [1, 7]


def test_what_does_not_open_or_kills_its_process_is_a_line_and_the_others_are_answered(
    model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    first, second = answers_in_own_process(
        [Question(model=path, rows=ROWS, batches={4: 20}) for path in (broken, model)]
    )
    assert isinstance(first, str)
    assert "\n" not in first
    assert not isinstance(second, str)
    for prefix, says in (
        ("false", "its process ended with status 1"),
        ("/no/such/emulator", "its process failed"),
    ):
        with pytest.raises(ExportError, match=says):
            answers_in_own_process([Question(model=model, rows=ROWS, batches={4: 20})], prefix=[prefix])


def in_folder(folder: Path, package: str | None) -> Path:
    """A folder with that text as onnxruntime/__init__.py; without the package for None."""
    (folder / "onnxruntime").mkdir(parents=True)
    if package is not None:
        (folder / "onnxruntime/__init__.py").write_text(package)
    return folder


@pytest.mark.parametrize(
    ("package", "got"),
    [
        (None, f"version {installed_version()}"),
        ("from onnxruntime.capi import nothing", "ModuleNotFoundError"),
        ("__version__ = '1.2.3'", "version 1.2.3"),
    ],
    ids=["an empty folder", "half a copy", "another version"],
)
def test_a_folder_that_does_not_hold_the_wanted_version_proves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str | None, got: str
) -> None:
    folder = in_folder(tmp_path / "cache", package)
    with pytest.raises(ExportError) as caught:
        answers_in_own_process([Question(model=model, rows=ROWS, batches={4: 20})], folder=folder, wanted="1.19.2")
    assert got in str(caught.value)
    assert f"remove {folder} and run again" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(proving, "runtime_folder", lambda version: folder)
    proofs = proofs_of(model, ROWS, answers(conv_network(), ROWS), versions=["1.19.2"], allowed=1e-3)
    assert proofs["1.19.2"].fault is None
    assert got in str(proofs["1.19.2"].not_proven)


def test_a_colon_in_the_cache_is_part_of_its_name(model: Path, tmp_path: Path) -> None:
    installed = Path(onnxruntime.__file__).parent
    folder = tmp_path / "a:b"
    folder.mkdir()
    # The installed package under another version: only this folder has it.
    shutil.copytree(
        installed, folder / "onnxruntime", ignore=lambda where, names: {"tools", "transformers"} & {*names}
    )
    init = folder / "onnxruntime/__init__.py"
    init.write_text(init.read_text() + "\n__version__ = '1.2.3'\n")
    question = Question(model=model, rows=ROWS, batches={4: 20})
    (said,) = answers_in_own_process([question], folder=folder, wanted="1.2.3")
    assert not isinstance(said, str)


def test_a_batch_size_may_be_asked_about_fewer_rows(model: Path) -> None:
    (said,) = answers_in_own_process([Question(model=model, rows=ROWS, batches={2: 5, 7: 20})])
    assert not isinstance(said, str)
    assert {batch: len(output) for batch, output in said.items()} == {2: 5, 7: 20}


@pytest.mark.parametrize("bad", [1, 7, 20])
def test_what_is_no_number_in_any_batch_size_does_not_hold(
    model: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    expected = answers(conv_network(), ROWS)

    def spoilt(questions: list[Question], **_: object) -> list[dict[int, np.ndarray]]:
        said = {batch: expected[: questions[0].batches[batch]].copy() for batch in questions[0].batches}
        said[bad][-1, 0] = np.nan
        return [said]

    monkeypatch.setattr(proving, "answers_in_own_process", spoilt)
    (one,) = proofs_of(model, ROWS, expected, versions=[installed_version()], allowed=1e-3).values()
    assert one.fault == "differs by up to nan"
    assert one.max_abs is None


def test_a_graph_that_differs_in_one_runtime_is_refused_and_the_releases_are_named(model: Path) -> None:
    expected = answers(conv_network(), ROWS)
    here = installed_version()
    good = proofs_of(model, ROWS, expected, versions=[here], allowed=1e-3)
    assert good[here].holds
    require_proven("m", good)
    bad = proofs_of(model, ROWS, expected + 1, versions=[here], allowed=1e-3)
    assert bad[here].fault == "differs by up to 1"
    wrong = Proof(version="1.19.2", fault="differs by up to 311")
    with pytest.raises(ExportError) as caught:
        require_proven("m", {"1.19.2": wrong, "1.30.0": Proof(version="1.30.0", max_abs=0.0)})
    assert "ONNX Runtime 1.19.2 (in Triton 24.10, 24.11): differs by up to 311" in str(caught.value)
    assert "`runtimes` 1.30.0" in str(caught.value)


def test_what_is_no_number_there_does_not_hold(model: Path) -> None:
    proofs = proofs_of(
        model, ROWS, np.full((20, 5), np.nan, np.float32), versions=[installed_version()], allowed=1
    )
    (one,) = proofs.values()
    assert not one.holds
    assert one.max_abs is None
    json.dumps(one.as_json(), allow_nan=False)


def test_a_member_is_proven_on_the_runtimes_of_the_images_and_its_manifest_says_so(tmp_path: Path) -> None:
    words = ["--dims", "3,8,8", "-o", str(tmp_path), "--parity-rows", "8"]
    assert said("member", "torch:tests.export.nets:small", *words)[0] == 0
    manifest = manifest_from_path(tmp_path / "small/manifest.json")
    oldest, newest = image_runtimes()[0], image_runtimes()[-1]
    assert list(manifest.runtimes) == [oldest, newest]
    assert manifest.versions["onnxruntime"] == installed_version()
    for proof in manifest.runtimes.values():
        if "not_proven" in proof:
            pytest.skip(proof["not_proven"])
        assert proof["max_abs"] < 1e-3


def test_a_member_that_another_runtime_answers_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def otherwise(questions: list[Question], **_: object) -> list[Mapping[int, np.ndarray]]:
        return [{8: np.zeros((8, 5), np.float32)} for _ in questions]

    monkeypatch.setattr(proving, "answers_in_own_process", otherwise)
    monkeypatch.setattr(proving, "runtime_folder", lambda version: None)
    words = ["--dims", "3,8,8", "-o", str(tmp_path), "--parity-rows", "8", "--runtimes", "24.10"]
    code, out = said("member", "torch:tests.export.nets:small", *words)
    assert code == 2
    assert "ONNX Runtime 1.19.2 (in Triton 24.10, 24.11)" in out
    assert out.count("\n") == 0
    assert not (tmp_path / "small").exists()


def test_a_runtime_that_cannot_be_had_is_said_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMITTEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    words = ["--dims", "3,8,8", "-o", str(tmp_path / "r"), "--parity-rows", "8", "--runtimes", "1.0.99"]
    code, out = said("member", "torch:tests.export.nets:small", *words)
    assert code == 0, out
    assert "not proven on ONNX Runtime 1.0.99" in out
    assert "not_proven" in manifest_from_path(tmp_path / "r/small/manifest.json").runtimes["1.0.99"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with one exported member, proven nowhere else."""
    assert exported(tmp_path, "none")[0] == 0
    return tmp_path


def exported(repository: Path, runtimes: str) -> tuple[int, str]:
    words = ["--dims", "3,8,8", "-o", str(repository), "--parity-rows", "8", "--runtimes", runtimes]
    return said("member", "torch:tests.export.nets:small", *words)


def runtimes_in(repository: Path) -> dict[str, Any]:
    return manifest_from_path(repository / "small/manifest.json").runtimes


def test_a_member_that_is_up_to_date_is_proven_where_it_is_not_yet(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(version: str) -> None:
        raise ExportError(f"ONNX Runtime {version}", got="no network", expected="a wheel")

    with monkeypatch.context() as without:
        without.setattr(proving, "runtime_folder", nothing)
        code, out = exported(small, "1.19.2")
    assert (code, "small: up to date" in out) == (0, True)
    assert "not_proven" in runtimes_in(small)["1.19.2"]
    digest = (small / "small/1/model.onnx").stat()
    here = installed_version()
    monkeypatch.setattr(proving, "runtime_folder", lambda version: None)
    assert "small: proven; " in exported(small, f"1.19.2,{here}")[1]
    assert set(runtimes_in(small)) == {"1.19.2", here}
    assert all("max_abs" in proof for proof in runtimes_in(small).values())
    assert (small / "small/1/model.onnx").stat() == digest
    assert "small: up to date; " in exported(small, "1.19.2")[1]


def test_a_later_fault_takes_the_place_of_an_earlier_claim(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = installed_version()
    assert "small: proven; " in exported(small, here)[1]
    monkeypatch.setattr(proving, "answers_in_own_process", lambda *_, **__: ["its process ended with status -11"])
    code, out = said("prove", "small", "--repository", str(small), "--runtimes", here)
    assert code == 2
    assert out.count("\n") == 0
    assert runtimes_in(small) == {here: {"fault": "its process ended with status -11"}}
    assert "wrong on ONNX Runtime" in said("show", "small", "--repository", str(small))[1]


@pytest.mark.parametrize(("shift", "holds"), [(0.02, True), (0.06, False)])
def test_rounding_of_a_lower_precision_is_bounded_on_average(
    model: Path, monkeypatch: pytest.MonkeyPatch, shift: float, holds: bool
) -> None:
    """All scores off by 0.06 lie within the 0.3 that int8 costs at most, and beyond half of the 0.1 on average."""
    expected = answers(conv_network(), ROWS)

    def shifted(questions: list[Question], **_: object) -> list[dict[int, np.ndarray]]:
        return [{size: expected[: questions[0].batches[size]] + shift for size in questions[0].batches}]

    monkeypatch.setattr(proving, "answers_in_own_process", shifted)
    asked = {"versions": [installed_version()], "agreement": {"max_abs": 0.3, "mean_abs": 0.1}}
    if holds:
        assert prove_against_installed("m", model, ROWS, **asked)[installed_version()].holds
        return
    with pytest.raises(ExportError, match=r"differs by 0\.06 on average"):
        prove_against_installed("m", model, ROWS, **asked)


def test_differences_are_said_as_numbers(small: Path) -> None:
    manifest = dataclasses.replace(
        manifest_from_path(small / "small/manifest.json"),
        runtimes={
            "1.19.2": {"max_abs": 2.3e-4},
            "1.30.0": {"max_abs": 0},
            "1.27.0": {"max_abs": 9, "fault": "off"},
        },
    )
    assert runtimes_said(manifest) == [
        "at most 2.3e-04 apart on ONNX Runtime 1.19.2, 0.0e+00 on 1.30.0",
        "wrong on ONNX Runtime 1.27.0 (off)",
    ]
