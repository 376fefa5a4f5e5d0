import dataclasses
import shutil
from pathlib import Path

import onnx
import pytest

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.pbtxt import config_from_path
from orchestrator.repository.check import check
from orchestrator.repository.members import pinned_spec
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble, render_member
from orchestrator.spec import CascadeSpec, Member, Stage, TensorSpec, cascade_from_path
from tests.repository.builders import CLASSES, add_member, linear_model, snapshot


def test_a_cascade_is_a_config_labels_a_plan_and_a_shim(repository: Path, spec: CascadeSpec) -> None:
    done = render(spec, repository)
    files = snapshot(repository / "cascade")
    assert set(files) == {"config.pbtxt", "labels.txt", "1/cascade.json", "1/model.py"}
    assert files["labels.txt"] == b"ant\nbee\ncow\n"
    assert cascade_from_path(repository / "cascade" / "1" / "cascade.json") == pinned_spec(spec, repository)
    assert {path.name for path in done.written} == {"config.pbtxt", "labels.txt", "cascade.json", "model.py"}
    assert check(repository)


def test_rendering_again_changes_no_byte_and_writes_nothing(repository: Path, spec: CascadeSpec) -> None:
    render(spec, repository, standalone=True)
    render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    before = snapshot(repository)
    first = render(spec, repository, standalone=True)
    second = render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    assert snapshot(repository) == before
    assert not first.written
    assert not second.written


def test_a_rendering_in_place_can_read_its_own_plan(repository: Path, spec: CascadeSpec) -> None:
    render(spec, repository)
    path = repository / "cascade" / "1" / "cascade.json"
    changed = path.read_text().replace('"max_batch_size": 32', '"max_batch_size": 16')
    path.write_text(changed)
    assert not check(repository)
    render(cascade_from_path(path), repository)
    assert config_from_path(repository / "cascade" / "config.pbtxt").max_batch_size == 16
    assert check(repository)


def test_every_missing_member_is_named_and_nothing_is_written(repository: Path, spec: CascadeSpec) -> None:
    shutil.rmtree(repository / "small")
    shutil.rmtree(repository / "large")
    add_member(repository, "other")
    before = snapshot(repository)
    with pytest.raises(RepositoryError, match="got small, large, expected members among other"):
        render(spec, repository)
    assert snapshot(repository) == before


def test_a_member_that_lives_in_the_repository_already_keeps_its_config(
    repository: Path, spec: CascadeSpec
) -> None:
    theirs = 'name: "small"\nbackend: "onnxruntime"\nmax_batch_size: 8\n'
    (repository / "small" / "config.pbtxt").write_text(theirs)
    (repository / "small" / "configs" / "gpu.pbtxt").unlink()
    done = render(spec, repository)
    assert (repository / "small" / "config.pbtxt").read_text() == theirs
    assert not (repository / "small" / "configs" / "gpu.pbtxt").exists()
    assert done.kept == (repository / "small" / "config.pbtxt",)


def test_a_config_of_ours_that_was_tuned_by_hand_is_kept_unless_forced(
    repository: Path, spec: CascadeSpec
) -> None:
    path = repository / "small" / "config.pbtxt"
    original = path.read_text()
    path.write_text(original.replace("count: 1", "count: 2"))
    render(spec, repository)
    assert "count: 2" in path.read_text()
    render_member(repository / "small", force=True)
    assert path.read_text() == original


def test_a_member_without_a_config_gets_both_flavours_from_its_manifest(
    repository: Path, spec: CascadeSpec
) -> None:
    before = snapshot(repository)
    for name in ("config.pbtxt", "configs/gpu.pbtxt"):
        (repository / "small" / name).unlink()
    render(spec, repository)
    after = snapshot(repository)
    assert {name: after[name] for name in before} == before


def test_a_member_with_neither_config_nor_manifest_is_left_alone(repository: Path, spec: CascadeSpec) -> None:
    for name in ("config.pbtxt", "manifest.json"):
        (repository / "small" / name).unlink()
    before = snapshot(repository / "small")
    render(spec, repository)
    assert snapshot(repository / "small") == before
    # Triton completes what an ONNX file leaves unsaid, with a batch limit of 4.
    assert check(repository, ["cascade"])
    assert [member.max_batch_size for member in plan_of(repository).members] == [4, 8]


def test_a_member_that_nothing_describes_is_a_fault(repository: Path, spec: CascadeSpec) -> None:
    for name in ("config.pbtxt", "manifest.json", "1/model.onnx"):
        (repository / "small" / name).unlink()
    (repository / "small" / "1" / "model.py").write_text("")
    render(spec, repository)
    assert any("no config.pbtxt" in fault.text for fault in check(repository).faults)


def test_an_ensemble_overwrites_neither_of_its_folders_if_it_is_another_model(
    repository: Path, spec: CascadeSpec
) -> None:
    for name in ("together", "together_mean"):
        theirs = add_member(repository, name)
        (repository / theirs.name / "config.pbtxt").write_text('backend: "onnxruntime"\n')
        before = snapshot(repository)
        with pytest.raises(RepositoryError, match="choose another name"):
            render_ensemble(ensemble_from_cascade(spec, "together"), repository)
        assert snapshot(repository) == before
        shutil.rmtree(repository / name)


def test_another_model_of_that_name_is_not_overwritten(repository: Path, spec: CascadeSpec) -> None:
    path = repository / "cascade" / "config.pbtxt"
    path.parent.mkdir()
    path.write_text('name: "cascade"\nbackend: "python"\n')
    before = snapshot(repository)
    with pytest.raises(RepositoryError, match="choose another name, or overwrite it with `force`"):
        render(spec, repository)
    assert snapshot(repository) == before
    render(spec, repository, force=True)
    assert check(repository)


def plan_of(repository: Path) -> CascadeSpec:
    return cascade_from_path(repository / "cascade" / "1" / "cascade.json")


def test_a_manifest_of_another_member_is_refused(repository: Path, spec: CascadeSpec) -> None:
    path = repository / "small" / "manifest.json"
    path.write_text(path.read_text().replace('"name": "small"', '"name": "tiny"'))
    with pytest.raises(RepositoryError, match="name: got tiny, expected small"):
        render(spec, repository)


def test_a_broken_manifest_is_a_spec_error(repository: Path, spec: CascadeSpec) -> None:
    (repository / "small" / "manifest.json").write_text("{")
    with pytest.raises(SpecError, match=r"manifest\.json"):
        render(spec, repository)


def test_versions_count_upwards(repository: Path, spec: CascadeSpec) -> None:
    render(spec, repository, version=3)
    assert (repository / "cascade" / "3" / "cascade.json").is_file()
    render(dataclasses.replace(spec, score="top2_gap"), repository)
    assert cascade_from_path(repository / "cascade" / "3" / "cascade.json").score == "top2_gap"
    with pytest.raises(RepositoryError, match="got 2, expected at least 3"):
        render(spec, repository, version=2)
    render(spec, repository, version=4)
    assert check(repository)


def test_a_plain_rendering_takes_away_the_runtime_of_a_standalone_one(repository: Path, spec: CascadeSpec) -> None:
    render(spec, repository, standalone=True)
    beside = repository / "cascade" / "1" / "orchestrator"
    assert (beside / "bls" / "model.py").is_file()
    (beside / "bls" / "gone_since.py").write_text("old = True\n")
    render(spec, repository, standalone=True)
    assert not (beside / "bls" / "gone_since.py").exists()
    render(spec, repository)
    assert not beside.exists()


def test_an_ensemble_is_two_folders_and_holds_no_python(repository: Path, spec: CascadeSpec) -> None:
    render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    assert set(snapshot(repository / "together")) == {"config.pbtxt", "labels.txt", "1/.gitkeep"}
    assert set(snapshot(repository / "together_mean")) == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert check(repository)


def test_an_ensemble_takes_no_larger_batch_than_its_smallest_member(repository: Path, spec: CascadeSpec) -> None:
    add_member(repository, "narrow", max_batch_size=5)
    narrow = Member(name="narrow", output="logits", max_batch_size=5)
    together = dataclasses.replace(spec, name="together", stages=(Stage(members=(*spec.members, narrow)),))
    render_ensemble(together, repository)
    assert config_from_path(repository / "together" / "config.pbtxt").max_batch_size == 5
    assert config_from_path(repository / "together_mean" / "config.pbtxt").max_batch_size == 5


def test_an_ensemble_takes_members_of_half_precision(repository: Path, spec: CascadeSpec) -> None:
    model = linear_model(1)
    model.graph.node[0].output[0] = "wide"
    model.graph.node.append(onnx.helper.make_node("Cast", ["wide"], ["logits"], to=onnx.TensorProto.FLOAT16))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    output = TensorSpec(name="logits", dtype="FP16", dims=(CLASSES,))
    half = add_member(repository, "half", model=model, output=output)
    together = dataclasses.replace(spec, name="together", stages=(Stage(members=(*spec.members, half)),))
    render_ensemble(together, repository)
    report = check(repository)
    assert report, report.faults
    assert any("FP16" in note.text for note in report.notes)


def test_all_members_of_a_cascade_make_its_ensemble(spec: CascadeSpec) -> None:
    together = ensemble_from_cascade(spec, "together")
    assert [member.name for member in together.members] == ["small", "large"]
    assert len(together.stages) == 1
    assert together.fit is None
    last = dataclasses.replace(spec, combine="last")
    with pytest.raises(RepositoryError, match='got combine "last"'):
        ensemble_from_cascade(last, "together")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.pbtxt").write_text("name: 3\n"), "config.pbtxt at line 1"),
        (lambda folder: _rewrite(folder, "max_batch_size: 8", "max_batch_size: 0"), "got max_batch_size 0"),
        (lambda folder: _rewrite(folder, 'name: "logits"', 'name: "scores"'), "got outputs scores"),
        (lambda folder: _rewrite(folder, "TYPE_FP32\n  dims: 3", "TYPE_INT8\n  dims: 3"), "got INT8"),
        (lambda folder: _bare_script(folder), "got no outputs in its config.pbtxt"),
    ],
)
def test_a_member_an_ensemble_cannot_use_is_refused_before_anything_is_written(
    repository: Path, spec: CascadeSpec, spoil: object, message: str
) -> None:
    spoil(repository / "large")
    before = snapshot(repository)
    with pytest.raises(RepositoryError, match=message):
        render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    assert snapshot(repository) == before


def _bare_script(folder: Path) -> None:
    for name in ("config.pbtxt", "manifest.json", "1/model.onnx"):
        (folder / name).unlink()
    (folder / "1" / "model.py").write_text("")


def _rewrite(folder: Path, old: str, new: str) -> None:
    path = folder / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
