"""Every fault of a repository is shown where it is, and none breaks the check itself."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import CommitteeError, RepositoryError
from orchestrator.pbtxt import config_from_path, text_from_config
from orchestrator.repository.check import check
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble, render_member
from orchestrator.spec import Fit, Member, Stage, cascade_from_path, json_from_cascade
from tests.repository.builders import PIXELS, TOKENS, add_member, linear_model, render_output, spec_of, token_model
from tests.repository.faults import FAULTS, TOGETHER, Spoil, edit, has


@pytest.fixture
def repository(complete: Path) -> Path:
    return complete


def test_a_good_repository_passes_and_says_what_was_looked_at(repository: Path) -> None:
    report = check(repository)
    assert report
    assert report.checked == ("cascade", "large", "small", "together", "together_mean")
    assert report.faults == report.notes == ()


def test_named_models_bring_their_members_and_nothing_else(repository: Path) -> None:
    (repository / "notes").mkdir()
    report = check(repository, ["cascade"])
    assert report
    assert report.checked == ("cascade", "large", "small")
    assert not check(repository)


def test_an_unknown_name_is_a_fault_that_lists_the_known(repository: Path) -> None:
    report = check(repository, ["cascde", "small"])
    assert has(report, "cascde", "folder", "no such model, the repository has cascade, large, small")
    assert report.checked == ("small",)


def test_members_are_reported_once_however_many_plans_share_them(repository: Path) -> None:
    (repository / "small" / "1" / "model.onnx").unlink()
    report = check(repository)
    assert sum(one.model == "small" and one.field == "model file" for one in report.faults) == 1


def test_what_only_costs_time_or_deserves_a_look_is_a_note(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    random = add_member(repository, "random", random_weights=True)
    other = add_member(repository, "other", model=linear_model(2, input="pixels"), inputs=(PIXELS,))
    spec = spec_of(
        dataclasses.replace(random, cost=5.0, instances=3), dataclasses.replace(other, inputs={"pixels": "x"})
    )
    fit = Fit(
        data_sha256="0" * 64, rows=9, split="plan", target="x", accuracy=None, accuracy_ci95=None,
        exit_share=(0.5, 0.5), mean_cost=1.0, random_weights=True,
    )  # fmt: skip
    render(dataclasses.replace(spec, fit=fit), repository)
    edit(
        repository / "cascade/config.pbtxt", "dynamic_batching {", "dynamic_batching {\n  preserve_ordering: true"
    )
    report = check(repository)
    assert report, report.faults
    assert has(report, "random", "weights", "never trained", notes=True)
    assert has(report, "cascade", "fit", "random weights", notes=True)
    assert has(report, "cascade", "member random", "costs 5 MACs in the plan, 12", notes=True)
    assert has(report, "cascade", "member random", "plan says 3 instances, its config runs 1", notes=True)
    assert has(report, "cascade", "member other", "named pixels, the cascade's x", "copied", notes=True)
    field = "config.pbtxt dynamic_batching"
    assert has(report, "cascade", field, "preserve_ordering", "render keeps it", notes=True)


def test_more_calls_at_once_than_the_server_has_threads_is_a_note(repository: Path, tmp_path: Path) -> None:
    members = tuple(add_member(repository, f"m{i}", seed=i) for i in range(6))
    stages = (*(Stage(members=(member,), threshold=0.5) for member in members[:-1]), Stage(members=members[-1:]))
    spec = spec_of(*members, name="deep")
    limits = dataclasses.replace(spec.limits, workers_per_stage=8)
    render(dataclasses.replace(spec, stages=stages, limits=limits), repository)
    report = check(repository, ["deep"])
    assert has(report, "deep", "limits workers_per_stage", "up to 41 calls", "thread-pool-size=49", notes=True)


def test_plans_that_call_each_other_are_a_fault(repository: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        member = Member(name=other, output="probabilities", output_kind="probabilities", max_batch_size=32)
        spec = spec_of(member, name=name)
        (repository / other).mkdir(exist_ok=True)
        render(spec, repository)
    report = check(repository)
    assert any(one.field == "members" and "a cycle" in one.text for one in report.faults)


def test_a_cascade_may_be_a_member_of_another(repository: Path) -> None:
    inner = Member(name="cascade", output="probabilities", output_kind="probabilities", max_batch_size=32)
    render(spec_of(inner, name="outer"), repository)
    report = check(repository)
    assert report, report.faults


def test_weights_in_a_file_of_their_own_are_looked_for_but_not_read(repository: Path) -> None:
    folder = repository / "small" / "1"
    onnx.save_model(
        onnx.load(folder / "model.onnx"), folder / "model.onnx", save_as_external_data=True,
        location="weights.bin", size_threshold=0,
    )  # fmt: skip
    assert not any("weights.bin" in one.text for one in check(repository, ["small"]).faults)
    (folder / "weights.bin").unlink()
    text = "weights.bin, which holds weights of model.onnx, is missing"
    assert has(check(repository), "small", "model file", text)


def test_a_runtime_of_another_version_beside_the_shim_is_a_note(repository: Path, tmp_path: Path) -> None:
    spec = spec_of(*_members(repository))
    render_output(repository, tmp_path / "out", cascades=[spec], standalone=True)
    assert not check(tmp_path / "out").notes
    edit(tmp_path / "out" / "cascade" / "1" / "orchestrator" / "__init__.py", "__version__", "__old_version__")
    report = check(tmp_path / "out")
    assert report
    assert has(report, "cascade", "orchestrator", "differs from the installed one in 1 files", notes=True)


def _members(repository: Path) -> tuple[Member, ...]:
    document = json.loads((repository / "cascade" / "1" / "cascade.json").read_text())
    return tuple(Member(**stage["members"][0]) for stage in document["stages"])


def test_an_ensemble_of_other_makers_is_checked_by_its_steps(repository: Path) -> None:
    (repository / "theirs" / "1").mkdir(parents=True)
    text = """
        platform: "ensemble" max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 3 }
        ensemble_scheduling { step {
          model_name: "small" model_version: -1
          input_map { key: "x" value: "x" } output_map { key: "OUT" value: "y" } } }
    """
    (repository / "theirs" / "config.pbtxt").write_text(text.replace("OUT", "logits"))
    assert check(repository)
    (repository / "theirs" / "config.pbtxt").write_text(text.replace("OUT", "scores"))
    assert has(check(repository), "theirs", "step small", "got output scores, expected logits")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist; name an existing folder with `repository`"),
        (lambda path: path.write_text(""), "got a file, expected a folder"),
        (lambda path: path.mkdir(), "is empty: expected one folder per model"),
    ],
)
def test_a_repository_that_is_none_is_one_clear_error(tmp_path: Path, make: Spoil, message: str) -> None:
    path = tmp_path / "repository"
    make(path)
    with pytest.raises(RepositoryError, match=message):
        check(path)


def test_a_large_model_is_not_loaded_to_be_checked(repository: Path) -> None:
    """A sparse external file of 4 GB costs hashing nothing: only the ONNX file itself is read."""
    folder = repository / "small" / "1"
    model = onnx.load(folder / "model.onnx")
    weight = model.graph.initializer[0]
    values = np.frombuffer(weight.raw_data, np.float32)
    assert values.size
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(4 << 30)
    check(repository, ["small"])


def test_the_report_as_json_is_whole(repository: Path) -> None:
    (repository / "notes").mkdir()
    value = json.loads(json.dumps(check(repository).as_json()))
    assert value["passed"] is False
    assert value["checked"][0] == "cascade"
    assert value["faults"]
    for fault in value["faults"]:
        assert fault == {"model": "notes", "field": "version", "text": fault["text"]}


def test_an_equal_plan_written_by_other_hands_is_no_fault(repository: Path) -> None:
    path = repository / "cascade" / "1" / "cascade.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert check(repository)
    path.write_text(json_from_cascade(spec_of(*_members(repository))))
    assert check(repository)


def test_a_config_without_the_kind_of_scores_is_noted(repository: Path) -> None:
    path = repository / "small/config.pbtxt"
    path.write_text(path.read_text().replace('key: "output_kind"', 'key: "nothing"'))
    report = check(repository)
    assert has(report, "small", "config.pbtxt parameter output_kind", "render the member again", notes=True)


def test_a_step_of_an_ensemble_may_be_given_an_optional_input(repository: Path) -> None:
    (repository / "script" / "1").mkdir(parents=True)
    (repository / "script" / "1" / "model.py").write_text("")
    given = [f'input {{ name: "{name}" data_type: TYPE_FP32 dims: 4 %s }}' for name in ("x", "seed")]
    output = 'output { name: "p" data_type: TYPE_FP32 dims: 3 }'
    config = f'backend: "python" max_batch_size: 8 {given[0] % ""} {given[1] % "optional: true"} {output}'
    (repository / "script" / "config.pbtxt").write_text(config)
    (repository / "pipe" / "1").mkdir(parents=True)
    maps = "".join(f'input_map {{ key: "{name}" value: "{name}" }} ' for name in ("x", "seed"))
    steps = (
        f'ensemble_scheduling {{ step {{ model_name: "script" {maps} output_map {{ key: "p" value: "p" }} }} }}'
    )
    config = f'platform: "ensemble" max_batch_size: 8 {given[0] % ""} {given[1] % ""} {output} {steps}'
    (repository / "pipe" / "config.pbtxt").write_text(config)
    report = check(repository, ["pipe"])
    assert report, report.faults
    (repository / "pipe" / "config.pbtxt").write_text(config.replace('key: "seed"', 'key: "sead"'))
    assert any("got input sead, expected x, seed" in fault.text for fault in check(repository, ["pipe"]).faults)


@pytest.mark.parametrize("name", FAULTS)
def test_the_report_shows_each_fault_where_it_is(repository: Path, name: str) -> None:
    spoil, model, field, words = FAULTS[name]
    assert check(repository)
    spoil(repository)
    report = check(repository)
    assert not report
    assert has(report, model, field, *words), report.faults
    assert all(len(one.text.splitlines()) == 1 and one.text for one in (*report.faults, *report.notes))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(st.sampled_from(TOGETHER), min_size=2))
def test_every_fault_is_shown_in_one_run(
    made: Path, tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    repository = shutil.copytree(made, tmp_path_factory.mktemp("many") / "model_repository")
    for name in sorted(names):
        FAULTS[name][0](repository)
    report = check(repository)
    for name in names:
        _, model, field, words = FAULTS[name]
        assert has(report, model, field, *words), (name, report.faults)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_cut_or_flipped_anywhere_never_break_the_check_itself(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    repository = shutil.copytree(made, tmp_path_factory.mktemp("spoilt") / "model_repository")
    files = sorted(path for path in repository.rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    report = check(repository)
    if path.name in ("model.onnx", "labels.txt", "model.py") and "together_mean" not in path.parts:
        assert not report


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.integers() | st.floats(-2, 2) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON, file=st.sampled_from(["cascade/1/cascade.json", "small/manifest.json"]))
def test_any_value_anywhere_in_a_plan_or_manifest_is_taken_or_is_a_fault(
    made: Path, repository: Path, data: st.DataObject, value: object, file: str
) -> None:
    path = repository / file
    try:
        document = json.loads(path.read_text())
        here: object = document
        keys: list[object] = []
        while isinstance(here, dict | list) and here and (not keys or data.draw(st.booleans())):
            keys.append(data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here)))))
            here = here[keys[-1]]
        parent = document
        for key in keys[:-1]:
            parent = parent[key]
        parent[keys[-1]] = value
        path.write_text(json.dumps(document))
        check(repository)
        with contextlib.suppress(CommitteeError):
            render_member(repository / "small")
        with contextlib.suppress(CommitteeError):
            spec = cascade_from_path(repository / "cascade" / "1" / "cascade.json")
            render(spec, repository, force=True)
            render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    finally:
        shutil.rmtree(repository)
        shutil.copytree(made, repository)


def test_classes_that_the_file_leaves_free_but_its_operators_fix_are_those_of_the_config(repository: Path) -> None:
    path = repository / "small" / "1" / "model.onnx"
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    path.write_bytes(model.SerializeToString())
    # ONNX Runtime infers the axis when it loads the file, and Triton compares with that.
    assert onnxruntime.InferenceSession(path).get_outputs()[0].shape == ["n", 3]
    report = check(repository)
    assert not has(report, "small", "config.pbtxt output logits"), report.faults


def test_a_member_of_several_inputs_passes_and_one_that_lacks_some_does_not(tmp_path: Path) -> None:
    add_member(tmp_path, "text", model=token_model(1), inputs=TOKENS)
    assert check(tmp_path)
    path = tmp_path / "text/config.pbtxt"
    config = config_from_path(path)
    config.input[1].name = "mask"
    path.write_text(text_from_config(config))
    report = check(tmp_path)
    assert has(report, "text", "config.pbtxt input mask", "got mask, expected one of input_ids, attention_mask")
    assert has(report, "text", "config.pbtxt input", "lacks attention_mask")
