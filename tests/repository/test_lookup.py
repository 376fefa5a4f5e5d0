import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import InputError, RepositoryError, SpecError
from orchestrator.repository.index import labels_in, picture_reader, preprocess_in
from orchestrator.spec import Manifest, TensorSpec, json_from_cascade
from orchestrator.spec.manifest import json_from_manifest
from orchestrator.spec.served_model import ModelInfo, TensorInfo
from tests.cli.digits import PREPROCESS, digit_spec, write_plan

INFO = ModelInfo(
    name="digits_cascade",
    platform="",
    versions=("1",),
    max_batch_size=8,
    inputs=(TensorInfo(name="image", dtype="FP32", shape=(-1, 1, 8, 8)),),
    outputs=(),
)


def write_member(repository: Path) -> None:
    manifest = Manifest(
        name="digits_small",
        file="1/model.onnx",
        sha256="0" * 64,
        source="here",
        precision="fp32",
        opset=18,
        input=TensorSpec(name="image", dtype="FP32", dims=(1, 8, 8)),
        output=TensorSpec(name="logits", dtype="FP32", dims=(10,)),
        output_kind="logits",
        parameters=1,
        macs=1.0,
        macs_counter="hand",
        labels=("zero", "one"),
        preprocess=PREPROCESS,
    )
    (repository / "digits_small").mkdir(parents=True)
    (repository / "digits_small" / "manifest.json").write_text(json_from_manifest(manifest))


def test_a_cascade_and_a_member_say_how_pictures_become_rows(tmp_path: Path) -> None:
    write_plan(tmp_path)
    write_member(tmp_path)
    assert preprocess_in(tmp_path, "digits_cascade", 1) == preprocess_in(tmp_path, "digits_small", 1) == PREPROCESS
    assert labels_in(tmp_path, "digits_cascade", 1) == tuple(f"digit {k}" for k in range(10))
    assert labels_in(tmp_path, "digits_small", 1) == ("zero", "one")
    assert labels_in(tmp_path, "nobody", 1) is None


def test_a_repository_without_the_model_or_a_plan_without_the_section_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="`repository`"):
        preprocess_in(tmp_path, "digits_cascade", 1)
    write_plan(tmp_path, digit_spec(preprocess=None))
    with pytest.raises(InputError, match="preprocess"):
        preprocess_in(tmp_path, "digits_cascade", 1)


def test_a_broken_plan_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    path = write_plan(tmp_path) / "digits_cascade" / "1" / "cascade.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(SpecError, match=r"cascade\.json"):
        preprocess_in(tmp_path, "digits_cascade", 1)


def test_the_repository_is_read_once_and_only_when_there_is_a_picture(tmp_path: Path) -> None:
    read = picture_reader(tmp_path, INFO)
    write_plan(tmp_path)
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(buffer, "PNG")
    assert read(buffer.getvalue(), "a").max() == 16
    (tmp_path / "digits_cascade" / "1" / "cascade.json").unlink()
    assert read(buffer.getvalue(), "b").shape == (1, 8, 8)


def test_the_plan_of_the_version_that_is_served_is_read_and_no_other(tmp_path: Path) -> None:
    write_plan(tmp_path)
    folder = tmp_path / "digits_cascade"
    (folder / "2").mkdir()
    second = dataclasses.replace(digit_spec(), labels=tuple(f"number {k}" for k in range(10)))
    (folder / "2" / "cascade.json").write_text(json_from_cascade(second))
    for version, word in ((1, "digit"), (2, "number")):
        labels = labels_in(tmp_path, "digits_cascade", version)
        assert labels is not None
        assert labels[0] == f"{word} 0"
    assert labels_in(tmp_path, "digits_cascade", 3) is None


@pytest.mark.parametrize(("versions", "newest"), [(("1", "10", "9"), 10), (("3",), 3), ((), None)])
def test_requests_without_a_version_go_to_the_newest_that_is_served(
    versions: tuple[str, ...], newest: int | None
) -> None:
    assert dataclasses.replace(INFO, versions=versions).version == newest


def test_pillows_remarks_on_odd_files_are_kept_from_the_terminal(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    assert picture_reader(tmp_path, INFO)(buffer.getvalue(), "a").shape == (1, 8, 8)
    assert not recwarn.list
