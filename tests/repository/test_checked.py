"""A rendering is checked before it is there: a plan with faults changes nothing on disk."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import RepositoryError
from orchestrator.repository.check import check
from orchestrator.repository.checked import render_checked
from orchestrator.repository.render import ensemble_from_cascade, render
from orchestrator.spec import CascadeSpec, Member
from tests.repository.builders import snapshot, spec_of
from tests.repository.faults import edit

WRONG = "0" * 64


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where previews are made; a test fails that leaves one behind."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def spec(repository: Path, spec: CascadeSpec) -> CascadeSpec:
    render(spec, repository)
    # To be written by any rendering that writes at all.
    (repository / "small" / "config.pbtxt").unlink()
    return spec


def with_member(spec: CascadeSpec, place: int, **changes: object) -> CascadeSpec:
    chosen = spec.stages[place].members
    return spec.with_members(lambda one: dataclasses.replace(one, **changes) if one in chosen else one)


BAD: dict[str, Callable[[CascadeSpec], CascadeSpec]] = {
    "another file": lambda spec: with_member(spec, 0, sha256=WRONG),
    "another output": lambda spec: with_member(spec, 1, output="scores"),
    "another kind": lambda spec: with_member(spec, 1, output_kind="probabilities"),
    "another version": lambda spec: with_member(spec, 1, version=7),
    "other classes": lambda spec: dataclasses.replace(spec, classes=4, labels=None),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("standalone", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_plan_with_faults_changes_nothing(
    repository: Path, spec: CascadeSpec, tmp_path: Path, name: str, standalone: bool, elsewhere: bool
) -> None:
    output = tmp_path / "out" if elsewhere else None
    (repository / "small" / "configs" / "gpu.pbtxt").unlink()
    if output is not None:
        render_checked(repository, cascades=[spec], output=output)
    good = dataclasses.replace(spec, name="good")
    bad = BAD[name](dataclasses.replace(spec, name="bad"))
    before = snapshot(tmp_path)
    done, report = render_checked(repository, cascades=[good, bad], output=output, standalone=standalone)
    assert not report
    assert not done.written
    assert all("scratch" not in fault.text for fault in report.faults)
    assert snapshot(tmp_path) == before


def test_an_ensemble_with_faults_keeps_what_came_before_it_from_being_written(
    repository: Path, spec: CascadeSpec, tmp_path: Path
) -> None:
    good = dataclasses.replace(spec, name="good")
    before = snapshot(tmp_path)
    bad = ensemble_from_cascade(BAD["another file"](spec), "bad")
    assert not render_checked(repository, cascades=[good], ensembles=[bad])[1]
    bad = ensemble_from_cascade(BAD["another output"](spec), "bad")
    with pytest.raises(RepositoryError, match="got outputs logits, expected an output scores"):
        render_checked(repository, cascades=[good], ensembles=[bad])
    assert snapshot(tmp_path) == before


def test_a_plan_without_faults_is_written_as_it_was_checked(repository: Path, spec: CascadeSpec) -> None:
    narrow = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, max_batch_size=16))
    done, report = render_checked(repository, cascades=[narrow])
    assert report, report.faults
    assert report.repository == repository
    assert {path.relative_to(repository).as_posix() for path in done.written} == {
        "small/config.pbtxt", "cascade/1/cascade.json", "cascade/config.pbtxt",
    }  # fmt: skip
    assert check(repository)


def test_errors_name_the_files_of_the_repository(repository: Path, spec: CascadeSpec, scratch: Path) -> None:
    edit(repository / "large" / "manifest.json", '"name": "large"', '"name": "tiny"')
    with pytest.raises(RepositoryError) as caught:
        render_checked(repository, cascades=[spec])
    assert str(caught.value).startswith(f"{repository / 'large' / 'manifest.json'} name: got tiny")
    assert str(caught.value.what) == f"{repository / 'large' / 'manifest.json'} name"
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_fault_in_a_members_own_config_names_its_file(
    repository: Path, spec: CascadeSpec, tmp_path: Path, elsewhere: bool
) -> None:
    (repository / "large" / "config.pbtxt").write_text("nonsense {")
    _, report = render_checked(repository, cascades=[spec], output=tmp_path / "out" if elsewhere else None)
    (text,) = [fault.text for fault in report.faults if fault.field == "config.pbtxt"]
    assert text.startswith(str(repository / "large" / "config.pbtxt"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("good", [True, False])
def test_folders_that_are_links_are_not_written_through_before_the_check(
    repository: Path, spec: CascadeSpec, tmp_path: Path, good: bool
) -> None:
    shutil.move(repository / "cascade" / "1", tmp_path / "version")
    (repository / "cascade" / "1").symlink_to(tmp_path / "version")
    (repository / "cascade" / "loop").symlink_to(repository)
    before = snapshot(tmp_path / "version")
    changed = dataclasses.replace(spec, score="top2_gap")
    render_checked(repository, cascades=[changed if good else BAD["another file"](changed)])
    assert (snapshot(tmp_path / "version") == before) != good


def test_what_cannot_be_read_elsewhere_in_the_repository_is_in_nobodys_way(
    repository: Path, spec: CascadeSpec
) -> None:
    (repository / "other").mkdir()
    (repository / "other" / "config.pbtxt").write_text("nonsense {")
    (repository / "dangling").symlink_to(repository / "nowhere")
    _, report = render_checked(repository, cascades=[spec])
    assert report, report.faults


def test_a_cascade_and_one_that_calls_it_are_rendered_together(repository: Path, spec: CascadeSpec) -> None:
    shutil.rmtree(repository / "cascade")
    inner = Member(name="cascade", output="probabilities", output_kind="probabilities", max_batch_size=32)
    outer = spec_of(Member(name="large", output="logits", max_batch_size=8), inner, name="outer")
    done, report = render_checked(repository, cascades=[spec, outer])
    assert report, report.faults
    assert done.written
