import dataclasses
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import RepositoryError
from orchestrator.repository.check import check
from orchestrator.repository.index import plans_in, require_members
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble
from orchestrator.spec import CascadeSpec, Derived, DerivedTensor, Member
from tests.repository.builders import add_member, render_output, snapshot, spec_of


@pytest.fixture
def spec(repository: Path, spec: CascadeSpec) -> CascadeSpec:
    add_member(repository, "unrelated", seed=3)
    render(spec, repository)
    render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    return spec


def test_the_new_folder_holds_what_the_plans_need_and_stands_alone(
    repository: Path, spec: CascadeSpec, tmp_path: Path
) -> None:
    before = snapshot(repository)
    cascades, ensembles = plans_in(repository)
    assert [one.name for one in (*cascades, *ensembles)] == ["cascade", "together"]
    output = tmp_path / "build" / "compose"
    done = render_output(repository, output, cascades=cascades, ensembles=ensembles, standalone=True)
    assert snapshot(repository) == before
    shutil.rmtree(repository)
    models = sorted(path.name for path in output.iterdir() if path.is_dir())
    assert models == ["cascade", "large", "small", "together", "together_mean"]
    assert (output / "cascade" / "1" / "orchestrator" / "bls" / "model.py").is_file()
    report = check(output)
    assert report, report.faults
    assert set(done.written) == {path for path in output.rglob("*") if path.is_file()} - {
        output / ".rendered-by-committee"
    }


def test_it_can_be_made_again_over_itself(repository: Path, spec: CascadeSpec, tmp_path: Path) -> None:
    output = tmp_path / "out"
    render_output(repository, output, cascades=[spec])
    first = snapshot(output)
    render_output(repository, output, cascades=[spec])
    assert snapshot(output) == first


def test_members_that_are_cascades_themselves_come_with_their_own_members(
    repository: Path, spec: CascadeSpec, tmp_path: Path
) -> None:
    inner = Member(name="cascade", output="probabilities", output_kind="probabilities", max_batch_size=32)
    mean = Member(name="together", output="probabilities", output_kind="probabilities", max_batch_size=8)
    outer = spec_of(inner, mean, name="outer")
    output = tmp_path / "out"
    render_output(repository, output, cascades=[outer], standalone=True)
    names = {path.name for path in output.iterdir() if path.is_dir()}
    assert names == {"outer", "cascade", "together", "together_mean", "small", "large"}
    assert (output / "cascade" / "1" / "orchestrator").is_dir()
    report = check(output)
    assert report, report.faults


def test_plans_that_call_each_other_are_refused(repository: Path, spec: CascadeSpec, tmp_path: Path) -> None:
    one = spec_of(Member(name="two", output="probabilities"), name="one")
    two = spec_of(Member(name="one", output="probabilities"), name="two")
    for name in ("one", "two"):
        (repository / name).mkdir()
    with pytest.raises(RepositoryError, match=r"a cycle, (one -> two -> one|two -> one -> two)"):
        render_output(repository, tmp_path / "out", cascades=[one, two])
    assert not (tmp_path / "out").exists()


def test_a_version_of_the_source_is_kept(repository: Path, spec: CascadeSpec, tmp_path: Path) -> None:
    render(spec, repository, version=5)
    render_output(repository, tmp_path / "out", cascades=[spec])
    assert (tmp_path / "out" / "cascade" / "5" / "cascade.json").is_file()


@pytest.mark.parametrize("where", ["", "inside", "..", "../model_repository"])
def test_the_repository_itself_is_never_the_output(repository: Path, spec: CascadeSpec, where: str) -> None:
    before = snapshot(repository)
    with pytest.raises(RepositoryError, match="in, around or at the repository"):
        render_output(repository, repository / where, cascades=[spec])
    assert snapshot(repository) == before


def test_a_missing_model_is_called_what_it_is_and_such_models_are_offered(
    repository: Path, spec: CascadeSpec
) -> None:
    maker = Derived(
        name="away",
        inputs={"x": "x"},
        outputs=(DerivedTensor(name="made", dtype="INT64", dims=(-1,)),),
        max_batch_size=1,
    )
    render(spec, repository)
    with pytest.raises(RepositoryError) as caught:
        require_members(dataclasses.replace(spec, derived=(maker,)), repository)
    assert "deriving models missing from" in str(caught.value)
    assert "members" not in str(caught.value)
    away = spec.with_members(lambda one: dataclasses.replace(one, name=f"{one.name}_away"))
    with pytest.raises(RepositoryError) as caught:
        require_members(away, repository)
    assert "members missing from" in str(caught.value)
    assert spec.members[0].name in str(caught.value.expected)
    assert spec.name not in str(caught.value.expected)


def test_a_missing_member_leaves_no_folder_behind(repository: Path, spec: CascadeSpec, tmp_path: Path) -> None:
    shutil.rmtree(repository / "small")
    with pytest.raises(RepositoryError, match="got small"):
        render_output(repository, tmp_path / "out", cascades=[spec])
    assert [path.name for path in tmp_path.iterdir()] == ["model_repository"]


def test_members_come_with_the_models_that_they_call(repository: Path, spec: CascadeSpec, tmp_path: Path) -> None:
    """Steps of ensembles, what those call, and what a Python model's files name: also a cascade of ours."""
    tensor = '{{ name: "{}" data_type: TYPE_FP32 dims: {} }}'
    io = f"max_batch_size: 4 input {tensor.format('x', 4)} output {tensor.format('p', 3)}"
    maps = 'model_version: -1 input_map { key: "x" value: "x" } output_map { key: "p" value: "p" }'

    def step(name: str) -> str:
        return f'platform: "ensemble" {io} ensemble_scheduling {{ step {{ model_name: "{name}" {maps} }} }}'

    for name, config in (
        ("pipe", step("inner_pipe")),
        ("inner_pipe", step("script")),
        ("script", f'backend: "python" {io} parameters {{ key: "asks" value {{ string_value: "cascade" }} }}'),
    ):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(config)
    (repository / "script" / "1" / "model.py").write_text('OTHER = "unrelated"\n')
    outer = spec_of(Member(name="pipe", output="p", max_batch_size=4), name="outer", labels=None)
    output = tmp_path / "out"
    render_output(repository, output, cascades=[outer], standalone=True)
    names = {path.name for path in output.iterdir() if path.is_dir()}
    assert names == {"outer", "pipe", "inner_pipe", "script", "unrelated", "cascade", "small", "large"}
    assert (output / "cascade" / "1" / "orchestrator").is_dir()
    report = check(output)
    assert report, report.faults
