"""`export member --labels`: names of the classes from a file, and what follows when they change."""

import dataclasses
import shutil
import unicodedata
from pathlib import Path

import pytest

from export.fusing import Fusion, fuse
from export.output import require_same_classes
from export.precision.derive import export_precision
from orchestrator.errors import ExportError
from orchestrator.repository.check import check
from orchestrator.repository.render import render
from orchestrator.spec import CascadeSpec, InputSpec, Manifest, Member, Stage, manifest_from_path
from orchestrator.spec.manifest import json_from_manifest
from tests.export.test_member_command import said

SMALL = ("torch:tests.export.nets:small", "--dims", "3,8,8", "--runtimes", "none")
NAMES = ("ant", "bee", "cow", "d\u00f6g", "elk")


def export(repository: Path, *options: object) -> tuple[int, str]:
    return said("member", *SMALL, "-o", str(repository), *map(str, options))


def manifest_of(repository: Path, name: str = "small") -> Manifest:
    return manifest_from_path(repository / name / "manifest.json")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("exported")
    assert "exported" in export(repository)[1]
    return repository


@pytest.fixture
def repository(exported: Path, tmp_path: Path) -> Path:
    """A member without names."""
    return shutil.copytree(exported, tmp_path / "repository")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\r\n".join([*NAMES, ""]), encoding="utf-8")
    return path


def test_names_of_a_file_are_the_members_and_another_file_renames_its_classes_alone(
    repository: Path, labels: Path
) -> None:
    assert manifest_of(repository).labels is None
    model = repository / "small/1/model.onnx"
    before, made = manifest_of(repository), model.stat().st_mtime_ns
    assert ": named;" in export(repository, "--labels", labels)[1]
    assert manifest_of(repository).labels == NAMES
    assert model.stat().st_mtime_ns == made
    assert "up to date" in export(repository, "--labels", labels)[1]
    labels.write_text("\n".join(NAMES))
    assert "up to date" in export(repository, "--labels", labels)[1]
    labels.write_text("\n".join(reversed(NAMES)))
    assert ": named;" in export(repository, "--labels", labels)[1]
    assert manifest_of(repository).labels == NAMES[::-1]
    assert manifest_of(repository).options != before.options
    # The names were asked for, so without the option the member is another one: its source's own.
    assert "exported" in export(repository)[1]
    assert manifest_of(repository) == before


def test_what_is_made_of_a_member_follows_its_names(repository: Path, labels: Path) -> None:
    other = dataclasses.replace(manifest_of(repository), name="other")
    shutil.copytree(repository / "small", repository / "other")
    (repository / "other/manifest.json").write_text(json_from_manifest(other))
    members = tuple(Member(name=name, output="logits") for name in ("small", "other"))
    fusion = Fusion(name="both", members=members, combine="mean_logit")
    export_precision(repository, "small", to="fp16", min_agreement=0.0)
    fuse(repository, fusion)
    export(repository, "--labels", labels)
    assert export_precision(repository, "small", to="fp16", min_agreement=0.0) == ("small_fp16", "named")
    manifest, done = fuse(repository, fusion)
    assert (done, manifest.labels) == ("named", NAMES)
    assert manifest_of(repository, "small_fp16").labels == NAMES
    assert export_precision(repository, "small", to="fp16", min_agreement=0.0)[1] == "up to date"


def test_a_cascade_rendered_again_has_the_new_names(repository: Path, labels: Path) -> None:
    spec = CascadeSpec(
        name="cascade",
        inputs=(InputSpec(name="image", dtype="FP32", dims=(3, 8, 8)),),
        classes=5,
        stages=(Stage(members=(Member(name="small", output="logits"),)),),
    )
    render(spec, repository)
    assert not (repository / "cascade/labels.txt").exists()
    export(repository, "--labels", labels)
    render(spec, repository)
    assert (repository / "cascade/labels.txt").read_text(encoding="utf-8").split() == list(NAMES)
    assert check(repository)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("ant\nbee\n", "labels: got 2 names, expected 5, one per class"),
        ("ant\n\nbee\ncow\nelk\n", "got no name on line 2, expected one name a line"),
        ("", "got no names, expected one per class"),
        (b"\xff\xfea\x00", "got a file that is not UTF-8"),
        (None, "labels.txt: got a file that does not exist"),
    ],
)
def test_a_file_of_no_use_is_one_line_and_leaves_the_member(
    repository: Path, tmp_path: Path, labels: Path, content: str | bytes | None, says: str
) -> None:
    labels.unlink()
    if content is not None:
        labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = manifest_of(repository)
    for place in (repository, tmp_path / "new"):
        code, text = export(place, "--labels", labels)
        assert code == 2
        assert says in text
        assert "\n" not in text
    assert manifest_of(repository) == before
    assert not (tmp_path / "new/small").exists()


def test_members_of_one_committee_may_write_a_name_in_either_form_and_no_other_name(repository: Path) -> None:
    first = dataclasses.replace(manifest_of(repository), labels=NAMES)
    require_same_classes(
        dataclasses.replace(first, labels=tuple(unicodedata.normalize("NFD", name) for name in NAMES)), first
    )
    with pytest.raises(ExportError, match=r"got class 4 called 'eel', expected 'elk'.*with `labels`"):
        require_same_classes(dataclasses.replace(first, labels=(*NAMES[:4], "eel")), first)
