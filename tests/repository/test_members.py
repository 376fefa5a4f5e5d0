"""What a plan does not know of a member's output is filled in only with what can be it."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import RepositoryError
from orchestrator.pbtxt import config_from_path
from orchestrator.repository.check import check, check_plans
from orchestrator.repository.checked import render_checked
from orchestrator.repository.index import config_of, plan_path, plans_in, versions_served
from orchestrator.repository.members import (
    UNKNOWN_OUTPUT,
    MemberFacts,
    Tensor,
    adopted_spec,
    pinned_spec,
    planned_version,
)
from orchestrator.repository.render import render
from orchestrator.spec import CascadeSpec, Member, cascade_from_path
from orchestrator.spec.planned_models import PlannedModel
from tests.repository.builders import CLASSES, DIMS, add_member, linear_model, render_output, spec_of
from tests.repository.faults import add, edit_plan, has

K = (CLASSES,)


@pytest.fixture
def repository(complete: Path) -> Path:
    return complete


def adopted_output(outputs: dict[str, tuple[int, ...]], planned: str = UNKNOWN_OUTPUT) -> str:
    """The output that is asked of a member with these outputs, all FP32."""
    facts = MemberFacts(
        inputs={"x": Tensor(name="x", dtype="FP32", dims=DIMS)},
        outputs={name: Tensor(name=name, dtype="FP32", dims=dims) for name, dims in outputs.items()},
        max_batch_size=8,
        instances=1,
    )
    return adopted_spec(spec_of(Member(name="m", output=planned)), {"m": facts}).members[0].output


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"output": K}, "output"),
        ({"output": K, "other": K}, "output"),
        ({"output": (-1,), "other": K}, "output"),
        ({"output": (1,), "scores": K}, "scores"),
        ({"output": (1,), "scores": (-1,)}, "scores"),
        ({"scores": K, "features": (-1,)}, "scores"),
    ],
)
def test_an_output_that_is_called_as_the_unknown_one_is_taken_where_it_fits(
    outputs: dict[str, tuple[int, ...]], expected: str
) -> None:
    assert adopted_output(outputs) == expected


@pytest.mark.parametrize("outputs", [{"output": (1,)}, {"output": (1,), "a": K, "b": K}])
def test_where_none_or_several_can_be_it_the_error_lists_the_outputs(outputs: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(RepositoryError, match=r"member m: got outputs output FP32\[1\]"):
        adopted_output(outputs)


def test_an_output_that_the_plan_names_is_kept() -> None:
    assert adopted_output({"output": K, "named": (1,)}, planned="named") == "named"


ONE = "version_policy { specific { versions: [1] } }"
TWO = "version_policy { specific { versions: [2] } }"
ALL = "version_policy { all { } }"


def add_version(repository: Path, version: int, *, seed: int, name: str = "small") -> None:
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(linear_model(seed).SerializeToString())


def served_plan(repository: Path) -> CascadeSpec:
    path = plan_path(repository / "cascade")
    assert path is not None
    return cascade_from_path(path)


def unpinned(spec: CascadeSpec) -> CascadeSpec:
    return spec.with_members(lambda one: dataclasses.replace(one, version=None))


def versions_of(spec: CascadeSpec) -> dict[str, int | None]:
    return {member.name: member.version for member in spec.members}


def test_render_writes_the_version_of_each_member_and_keeps_one_that_is_named(repository: Path) -> None:
    spec = unpinned(served_plan(repository))
    assert versions_of(served_plan(repository)) == {"small": 1, "large": 1}
    add_version(repository, 2, seed=1)
    render(spec, repository)
    assert versions_of(served_plan(repository)) == {"small": 2, "large": 1}
    assert check(repository, ["cascade"])
    render(pinned_spec(served_plan(repository), repository), repository)
    assert versions_of(served_plan(repository)) == {"small": 2, "large": 1}


@pytest.mark.parametrize(("policy", "version"), [(ONE, 1), (ALL, 1), (TWO, 2), ("", 2)])
def test_another_file_in_version_2_matters_only_where_version_1_is_not_served(
    repository: Path, policy: str, version: int
) -> None:
    add_version(repository, 2, seed=9)
    add(repository / "small" / "config.pbtxt", policy)
    spec = unpinned(served_plan(repository))
    render(spec, repository)
    assert versions_of(served_plan(repository))["small"] == version
    report = check(repository, ["cascade"])
    assert has(report, "cascade", "member small", "hash", "plan again") == (version == 2)


@pytest.mark.parametrize(
    ("policy", "words"), [(TWO, ("version 1", "serves 2", "version_policy")), ("", ("serves 2", "version_policy"))]
)
def test_a_named_version_that_is_not_served_is_a_fault_of_the_quick_check_too(
    repository: Path, policy: str, words: tuple[str, ...]
) -> None:
    add_version(repository, 2, seed=1)
    add(repository / "small" / "config.pbtxt", policy)
    assert has(check(repository, ["cascade"]), "cascade", "member small", *words)
    assert has(check_plans(repository), "cascade", "member small", *words)


def test_a_named_version_that_is_not_there_is_a_fault(repository: Path) -> None:
    edit_plan(repository, lambda plan: plan["stages"][0]["members"][0].update(version=7))
    assert has(check(repository, ["cascade"]), "cascade", "member small", "version 7", "not there")


def test_a_quick_check_has_nothing_to_say_of_a_repository_in_order(repository: Path) -> None:
    assert check_plans(repository)
    add(repository / "small" / "config.pbtxt", "such nonsense {")
    assert check_plans(repository)


def test_the_hash_that_is_compared_is_that_of_the_named_version(repository: Path) -> None:
    add_version(repository, 2, seed=9)
    add(repository / "small" / "config.pbtxt", ALL)
    assert check(repository, ["cascade"])
    (repository / "small" / "1" / "model.onnx").write_bytes(linear_model(5).SerializeToString())
    assert has(check(repository, ["cascade"]), "cascade", "member small", "hash", "plan again")


def test_other_weights_beside_the_model_file_are_a_fault(repository: Path) -> None:
    beside = repository / "small" / "1" / "weights.bin"
    beside.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    edit_plan(repository, lambda p: p["stages"][0]["members"][0].update(data_files={"weights.bin": digest}))
    assert check(repository, ["cascade"])
    beside.write_bytes(b"others")
    assert has(check(repository, ["cascade"]), "cascade", "member small", "weights.bin", "other weights")


def test_render_writes_down_the_weights_beside_the_model_file(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    digest = hashlib.sha256(b"weights").hexdigest()
    member = add_member(repository, "small", seed=1, data_files={"1/weights.bin": digest})
    (repository / "small" / "1" / "weights.bin").write_bytes(b"weights")
    render(spec_of(member, add_member(repository, "large", seed=2)), repository)
    assert served_plan(repository).members[0].data_files == {"weights.bin": digest}


def adopted_plan(repository: Path) -> CascadeSpec:
    """The served plan, with the small member as one that was not exported and whose file no records know."""
    (repository / "small" / "manifest.json").unlink()
    spec = served_plan(repository)
    small = dataclasses.replace(spec.members[0], sha256=None, version=None)
    return dataclasses.replace(
        spec, stages=(dataclasses.replace(spec.stages[0], members=(small,)), *spec.stages[1:])
    )


def test_a_member_that_was_not_exported_gets_the_hash_of_its_file_and_another_one_is_noticed(
    repository: Path,
) -> None:
    spec = adopted_plan(repository)
    path = repository / "small" / "1" / "model.onnx"
    render(spec, repository)
    planned = served_plan(repository).members[0]
    assert planned.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert check(repository, ["cascade"])
    assert PlannedModel(planned, repository).fault() is None
    path.write_bytes(linear_model(5).SerializeToString())
    assert has(check(repository, ["cascade"]), "cascade", "member small", "hash", "plan again")
    assert "not the file" in str(PlannedModel(planned, repository).fault())
    _, report = render_checked(repository, cascades=[served_plan(repository)])
    assert has(report, "cascade", "member small", "hash", "plan again")


def test_weights_beside_the_file_of_a_member_that_was_not_exported_are_hashed_too(repository: Path) -> None:
    spec = adopted_plan(repository)
    path = repository / "small" / "1" / "model.onnx"
    onnx.save(linear_model(0), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    render(spec, repository)
    digest = hashlib.sha256((path.parent / "weights.bin").read_bytes()).hexdigest()
    assert served_plan(repository).members[0].data_files == {"weights.bin": digest}


@pytest.mark.parametrize("file", ["1/model.py", "1/model.plan", "2/model.pt"])
def test_a_member_that_may_be_another_file_gets_no_hash(repository: Path, file: str) -> None:
    spec = adopted_plan(repository)
    other = repository / "small" / file
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(b"other")
    if file == "1/model.py":
        (repository / "small" / "1" / "model.onnx").unlink()
        config = (repository / "small" / "config.pbtxt").read_text()
        (repository / "small" / "config.pbtxt").write_text(config.replace('"onnxruntime"', '"python"'))
    assert pinned_spec(spec, repository).members[0].sha256 is None


def test_an_ensembles_steps_name_the_versions(repository: Path) -> None:
    steps = config_from_path(repository / "together" / "config.pbtxt").ensemble_scheduling.step
    assert {step.model_name: step.model_version for step in steps} == {
        "small": 1, "large": 1, "together_mean": 1,
    }  # fmt: skip
    assert versions_of(plans_in(repository)[1][0]) == {"small": 1, "large": 1}


def test_a_plan_of_a_version_that_is_not_the_newest_is_read_from_where_it_is_served(repository: Path) -> None:
    shutil.copytree(repository / "cascade" / "1", repository / "cascade" / "2")
    assert plan_path(repository / "cascade") == repository / "cascade" / "2" / "cascade.json"
    add(repository / "cascade" / "config.pbtxt", ONE)
    assert plan_path(repository / "cascade") == repository / "cascade" / "1" / "cascade.json"


def test_a_copy_keeps_the_versions(repository: Path, tmp_path: Path) -> None:
    add_version(repository, 4, seed=1)
    spec = unpinned(served_plan(repository))
    render_output(repository, tmp_path / "copy", cascades=[spec])
    assert versions_of(served_plan(tmp_path / "copy")) == {"small": 4, "large": 1}


@given(
    right=st.sets(st.integers(1, 6), max_size=6),
    other=st.sets(st.integers(1, 6), max_size=6),
    policy=st.sampled_from(["", ONE, TWO, ALL, "version_policy { latest { num_versions: 2 } }"]),
)
def test_the_version_meant_is_served_and_has_the_planned_file_where_any_has(
    tmp_path_factory: pytest.TempPathFactory, right: set[int], other: set[int], policy: str
) -> None:
    folder = tmp_path_factory.mktemp("member")
    (folder / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{policy}\n')
    for version in right | other:
        (folder / str(version)).mkdir()
        (folder / str(version) / "model.onnx").write_bytes(b"right" if version in right else b"other")
    member = Member(name="small", output="logits", sha256=hashlib.sha256(b"right").hexdigest())
    served = versions_served(folder, config_of(folder))
    fitting = [version for version in served if version in right]
    expected = max(fitting, default=max(served, default=None))
    assert planned_version(member, folder, config=config_of(folder)) == expected
