"""What lies in a repository: class names, from manifests and anybody's label files; image processing."""

import dataclasses
import io
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import InputError, RepositoryError, SpecError
from orchestrator.pbtxt import config_from_path
from orchestrator.repository.check import check
from orchestrator.repository.index import class_names_of, common_names, labels_in, picture_reader, preprocess_in
from orchestrator.repository.members import UNKNOWN_OUTPUT
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble
from orchestrator.spec import CascadeSpec, cascade_from_path, json_from_cascade
from orchestrator.spec.manifest import json_from_manifest
from orchestrator.spec.served_model import ModelInfo, TensorInfo
from tests.cli.digits import PREPROCESS, digit_spec, write_plan
from tests.repository.builders import add_member, manifest_of, render_output, snapshot, spec_of

CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: 8
input [{{ name: "x", data_type: TYPE_FP32, dims: [4] }}]
output [{{ name: "logits", data_type: TYPE_FP32, dims: [3], label_filename: "{file}" }}]
"""


def adopt(repository: Path, name: str, text: str | bytes, *, file: str = "names.txt") -> None:
    """Makes a member one that somebody else put there: no manifest, a config by hand and a label file."""
    folder = repository / name
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "configs")
    (folder / "config.pbtxt").write_text(CONFIG.format(name=name, file=file))
    (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def spec(spec: CascadeSpec) -> CascadeSpec:
    return dataclasses.replace(spec, labels=None)


def served(repository: Path, name: str = "cascade") -> tuple[str, str]:
    """The label file that a model's config names for its first output, and what is in it."""
    file = config_from_path(repository / name / "config.pbtxt").output[0].label_filename
    return file, (repository / name / file).read_text(encoding="utf-8") if file else ""


def test_names_of_a_label_file_become_the_cascades_and_changing_them_renders_again(
    repository: Path, spec: CascadeSpec
) -> None:
    render(spec, repository)
    assert served(repository) == ("", "")
    adopt(repository, "large", "ant\r\nbee \r\nsea cow\r\n\r\n")
    theirs = snapshot(repository / "large")
    notes = [note.text for note in check(repository, ["cascade"]).notes]
    assert any("names.txt names the classes, and the plan does not; render again" in text for text in notes)
    changed = render(spec, repository)
    assert served(repository) == ("labels.txt", "ant\nbee\nsea cow\n")
    assert {path.name for path in changed.written} == {"config.pbtxt", "labels.txt", "cascade.json"}
    plan = cascade_from_path(repository / "cascade/1/cascade.json")
    assert plan.labels == ("ant", "bee", "sea cow")
    assert not render(plan, repository).written
    assert check(repository)
    (repository / "large/names.txt").write_text("ant\nbee\nmanatee\n")
    changed = render(plan, repository)
    assert {path.name for path in changed.written} == {"labels.txt", "cascade.json", "config.pbtxt"}
    assert served(repository)[1] == "ant\nbee\nmanatee\n"
    assert snapshot(repository / "large") == {**theirs, "names.txt": b"ant\nbee\nmanatee\n"}


def test_names_of_a_manifest_replace_those_of_an_older_plan(repository: Path, spec: CascadeSpec) -> None:
    render(dataclasses.replace(spec, labels=("a", "b", "c")), repository)
    path = repository / "small/manifest.json"
    path.write_text(path.read_text().replace('"labels": null', '"labels": ["ant", "bee", "cow"]'))
    (fault,) = check(repository, ["cascade"]).faults
    assert "labels differ: class 0 is 'ant' in its manifest, 'a' in the plan; render again" in fault.text
    render(cascade_from_path(repository / "cascade/1/cascade.json"), repository)
    assert served(repository)[1] == "ant\nbee\ncow\n"
    assert check(repository)


@pytest.mark.parametrize("standalone", [False, True])
def test_an_ensemble_and_a_rendering_elsewhere_have_the_names_too(
    repository: Path, tmp_path: Path, spec: CascadeSpec, standalone: bool
) -> None:
    adopt(repository, "small", "ant\nbee\ncow\n")
    together = ensemble_from_cascade(spec, "together")
    render_ensemble(together, repository)
    render_output(repository, tmp_path / "out", cascades=[spec], ensembles=[together], standalone=standalone)
    for place, name in ((repository, "together"), (tmp_path / "out", "together"), (tmp_path / "out", "cascade")):
        assert served(place, name) == ("labels.txt", "ant\nbee\ncow\n")
    assert check(tmp_path / "out")


def test_a_cascade_within_a_cascade_hands_its_names_on(repository: Path, spec: CascadeSpec) -> None:
    adopt(repository, "small", "ant\nbee\ncow\n")
    render(spec, repository)
    inner = dataclasses.replace(
        spec.members[0], name="cascade", output="probabilities", output_kind="probabilities", sha256=None
    )
    other = add_member(repository, "other", seed=3)
    render(spec_of(inner, other, name="outer", labels=None), repository)
    assert served(repository, "outer")[1] == "ant\nbee\ncow\n"


def test_a_plan_keeps_its_names_where_members_say_the_same_in_another_form_or_contradict_each_other(
    repository: Path, spec: CascadeSpec
) -> None:
    planned = ("caf\u00e9", "bee", "cow")
    adopt(repository, "small", unicodedata.normalize("NFD", "caf\u00e9\nbee\ncow\n"))
    render(dataclasses.replace(spec, labels=planned), repository)
    assert served(repository)[1] == "caf\u00e9\nbee\ncow\n"
    assert check(repository)
    adopt(repository, "large", "coffee\nbee\ncow\n")
    render(dataclasses.replace(spec, labels=planned), repository)
    assert served(repository)[1] == "caf\u00e9\nbee\ncow\n"
    assert check(repository)


def test_the_plans_names_in_another_order_are_a_fault_and_not_taken(repository: Path, spec: CascadeSpec) -> None:
    adopt(repository, "small", "bee\nant\ncow\n")
    render(dataclasses.replace(spec, labels=("ant", "bee", "cow")), repository)
    assert served(repository)[1] == "ant\nbee\ncow\n"
    (fault,) = check(repository, ["cascade"]).faults
    assert "class 0 is 'bee' in names.txt, 'ant' in the plan; correct the one in the wrong order" in fault.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ant\nbee\n", "names.txt has 2 class names, expected 3"),
        ("ant\rbee\rcow", "names.txt has 1 class names, expected 3"),
        ("caf\u00e9\nbee\ncow\n".encode("latin-1"), "got a file that is not UTF-8 text"),
    ],
)
def test_a_label_file_that_cannot_be_used_is_noted_and_the_cascade_has_no_names(
    repository: Path, spec: CascadeSpec, text: str | bytes, says: str
) -> None:
    adopt(repository, "small", text)
    render(spec, repository)
    assert served(repository) == ("", "")
    report = check(repository)
    assert report, report.faults
    assert any(says in note.text for note in report.notes), report.notes


def test_a_label_file_that_is_missing_is_a_fault_since_triton_does_not_load_the_model(
    repository: Path, spec: CascadeSpec
) -> None:
    adopt(repository, "small", "")
    (repository / "small/names.txt").unlink()
    render(spec, repository)
    assert any("names.txt: got a file that does not exist" in fault.text for fault in check(repository).faults)


def test_the_output_with_the_scores_decides_which_file_it_is(repository: Path, spec: CascadeSpec) -> None:
    adopt(repository, "small", "ant\nbee\ncow\n")
    path = repository / "small/config.pbtxt"
    more = 'output [{ name: "kind", data_type: TYPE_FP32, dims: [2], label_filename: "kinds.txt" }]\n'
    path.write_text(path.read_text() + more)
    (repository / "small/kinds.txt").write_text("wild\ntame\n")
    assert class_names_of(repository / "small", "logits") == ("ant", "bee", "cow")
    assert class_names_of(repository / "small", "kind") == ("wild", "tame")
    assert class_names_of(repository / "small") is None


def test_members_without_names_or_with_those_of_other_classes_leave_it_to_the_rest() -> None:
    assert common_names({"b": ("x", "y"), "c": ("x",)}, classes=2) == ("x", "y")
    assert common_names({"a": ("x", "z"), "b": ("x", "y")}, classes=2) is None
    assert common_names({}, classes=2) is None


def test_an_output_that_the_plan_does_not_know_is_found_before_its_label_file(
    repository: Path, spec: CascadeSpec
) -> None:
    adopt(repository, "small", "ant\nbee\ncow\n")
    path = repository / "small/config.pbtxt"
    more = 'output [{ name: "kind", data_type: TYPE_FP32, dims: [2], label_filename: "kinds.txt" }]\n'
    path.write_text(path.read_text() + more)
    (repository / "small/kinds.txt").write_text("wild\ntame\n")
    unknown = dataclasses.replace(spec.members[0], output=UNKNOWN_OUTPUT, sha256=None)
    render(spec_of(unknown, spec.members[1], labels=None), repository)
    assert served(repository)[1] == "ant\nbee\ncow\n"


IMAGE = TensorInfo(name="image", dtype="FP32", shape=(-1, 1, 8, 8))
INFO = ModelInfo(
    name="digits_cascade", platform="", versions=("1",), max_batch_size=8, inputs=(IMAGE,), outputs=()
)


def write_member(repository: Path) -> None:
    manifest = manifest_of("digits_small", "0" * 64, labels=("zero", "one"), preprocess=PREPROCESS)
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
