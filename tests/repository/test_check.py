from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import CommitteeError, RepositoryError
from orchestrator.repository import (
    CheckReport,
    check,
    ensemble_from_cascade,
    render,
    render_ensemble,
    render_member,
    render_output,
)
from orchestrator.spec import CascadeSpec, Fit, Member, Stage, cascade_from_path, json_from_cascade
from tests.repository.making import add_member, linear_model, spec_of

Spoil = Callable[[Path], object]


def build(repository: Path) -> CascadeSpec:
    """Two members, a cascade of them and their ensemble."""
    spec = spec_of(add_member(repository, "small", seed=1), add_member(repository, "large", seed=2))
    render(spec, repository)
    render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    return spec


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    build(tmp_path / "model_repository")
    return tmp_path / "model_repository"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, text
    path.write_text(text.replace(old, new, 1))


def add(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")


def edit_plan(repository: Path, change: Callable[[dict], object]) -> None:
    path = repository / "cascade" / "1" / "cascade.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2))


def has(report: CheckReport, model: str, field: str, *words: str, notes: bool = False) -> bool:
    found = report.notes if notes else report.faults
    return any(
        one.model == model and one.field == field and all(word in one.text for word in words) for one in found
    )


def small_model(repository: Path, model: onnx.ModelProto) -> None:
    (repository / "small" / "1" / "model.onnx").write_bytes(model.SerializeToString())


# every fault: how to bring it about, and where the report must show it
FAULTS: dict[str, tuple[Spoil, str, str, tuple[str, ...]]] = {
    "plan cut short": (
        lambda r: (r / "cascade/1/cascade.json").write_text('{"format": 1, "name": "cas'),
        "cascade", "cascade.json document", ("line 1",),
    ),
    "plan empty": (
        lambda r: (r / "cascade/1/cascade.json").write_text(""),
        "cascade", "cascade.json document", ("one complete JSON document",),
    ),
    "plan not text": (
        lambda r: (r / "cascade/1/cascade.json").write_bytes(b"\xff\xfe"),
        "cascade", "cascade.json file", ("not UTF-8",),
    ),
    "plan gone": (
        lambda r: (r / "cascade/1/cascade.json").unlink(),
        "cascade", "cascade.json", ("missing beside model.py",),
    ),
    "plan of a newer format": (
        lambda r: edit_plan(r, lambda v: v.update(format=2)),
        "cascade", "cascade.json format", ("got 2, expected 1", "install a newer committee"),
    ),
    "plan of an older format": (
        lambda r: edit_plan(r, lambda v: v.update(format=0)),
        "cascade", "cascade.json format", ("got 0, expected 1", "committee plan"),
    ),
    "one threshold too many": (
        lambda r: edit_plan(r, lambda v: v["stages"][1].update(threshold=0.5)),
        "cascade", "cascade.json stages", ("got 2 thresholds for 2 stages, expected 1",),
    ),
    "threshold NaN": (
        lambda r: edit_plan(r, lambda v: v["stages"][0].update(threshold=float("nan"))),
        "cascade", "cascade.json document", ("got NaN",),
    ),
    "labels that are no text": (
        lambda r: edit_plan(r, lambda v: v.update(labels=[0, 1, 2])),
        "cascade", "cascade.json labels", ("got 0, expected text",),
    ),
    "plan names a member that is not there": (
        lambda r: edit_plan(r, lambda v: v["stages"][0]["members"][0].update(name="tiny")),
        "cascade", "member tiny", ("no such model, the repository has large, small",),
    ),
    "plan of another name": (
        lambda r: edit_plan(r, lambda v: v.update(name="other")),
        "cascade", "cascade.json name", ("got other, expected the folder's name cascade",),
    ),
    "plan in a version that is not served": (
        lambda r: (r / "cascade/2").mkdir(),
        "cascade", "cascade.json", ("lies in version 1, but Triton serves version 2",),
    ),
    "plan changed after rendering": (
        lambda r: edit_plan(r, lambda v: v["limits"].update(max_batch_size=99)),
        "cascade", "config.pbtxt max_batch_size", ("got max_batch_size: 32", "99", "render again"),
    ),
    "plan batch above the member's": (
        lambda r: edit_plan(r, lambda v: v["stages"][0]["members"][0].update(max_batch_size=9)),
        "cascade", "member small", ("max_batch_size 9 in the plan", "at most its config's 8"),
    ),
    "plan with another input dtype": (
        lambda r: edit_plan(r, lambda v: v["input"].update(dtype="UINT8")),
        "cascade", "member large", ("input x is FP32, expected the plan's UINT8",),
    ),
    "plan with another input shape": (
        lambda r: edit_plan(r, lambda v: v["input"].update(dims=[2, 2])),
        "cascade", "member large", ("dims [4], expected the plan's [2, 2]",),
    ),
    "plan with other classes": (
        lambda r: edit_plan(r, lambda v: v.update(classes=4, labels=list("abcd"))),
        "cascade", "member small", ("dims [3], expected [4]",),
    ),
    "plan with an unknown output": (
        lambda r: edit_plan(r, lambda v: v["stages"][0]["members"][0].update(output="scores")),
        "cascade", "member small", ("got output scores in the plan, expected one of logits",),
    ),
    "plan with an unknown input": (
        lambda r: edit_plan(r, lambda v: v["stages"][0]["members"][0].update(input="pixels")),
        "cascade", "member small", ("got input pixels in the plan, expected one of x",),
    ),
    "plan with the other output kind": (
        lambda r: edit_plan(r, lambda v: v["stages"][0]["members"][0].update(output_kind="probabilities")),
        "cascade", "member small", ("output_kind probabilities", "expected logits"),
    ),
    "member weights changed": (
        lambda r: small_model(r, linear_model(7)),
        "cascade", "member small", ("the thresholds were fitted on", "plan again"),
    ),
    "member weights changed, by its manifest": (
        lambda r: small_model(r, linear_model(7)),
        "small", "manifest.json sha256", ("another file than was exported",),
    ),
    "member gone": (
        lambda r: shutil.rmtree(r / "small"),
        "cascade", "member small", ("no such model",),
    ),
    "member config gone": (
        lambda r: (r / "small/config.pbtxt").unlink(),
        "cascade", "member small", ("no config.pbtxt",),
    ),
    "member config malformed": (
        lambda r: (r / "small/config.pbtxt").write_text('name: "small"\nbackend: onnx\n'),
        "small", "config.pbtxt", ("at line 2",),
    ),
    "member config of another name": (
        lambda r: edit(r / "small/config.pbtxt", 'name: "small"', 'name: "tiny"'),
        "small", "config.pbtxt name", ("got tiny, expected the folder's name small",),
    ),
    "member without batches": (
        lambda r: edit(r / "small/config.pbtxt", "max_batch_size: 8", "max_batch_size: 0"),
        "cascade", "member small", ("max_batch_size 0",),
    ),
    "member decoupled": (
        lambda r: add(r / "small/config.pbtxt", "model_transaction_policy { decoupled: true }"),
        "cascade", "member small", ("decoupled",),
    ),
    "member with state": (
        lambda r: edit(r / "small/config.pbtxt", "dynamic_batching", "sequence_batching"),
        "cascade", "member small", ("sequence of requests",),
    ),
    "member model file gone": (
        lambda r: (r / "small/1/model.onnx").unlink(),
        "small", "model file", ("1/model.onnx is missing",),
    ),
    "member version gone": (
        lambda r: shutil.rmtree(r / "small/1"),
        "small", "version", ("no version folder",),
    ),
    "member model file cut short": (
        lambda r: (r / "small/1/model.onnx").write_bytes((r / "small/1/model.onnx").read_bytes()[:40]),
        "small", "model file", ("export it again",),
    ),
    "member model file empty": (
        lambda r: (r / "small/1/model.onnx").write_bytes(b""),
        "small", "model file", ("without outputs",),
    ),
    "member graph with another output": (
        lambda r: small_model(r, linear_model(1, output="scores")),
        "small", "config.pbtxt output logits", ("expected one of scores",),
    ),
    "member graph with another input": (
        lambda r: small_model(r, linear_model(1, input="pixels")),
        "small", "config.pbtxt input", ("lacks pixels",),
    ),
    "member graph with other classes": (
        lambda r: small_model(r, linear_model(1, classes=5)),
        "small", "config.pbtxt output logits", ("got dims [3], expected [5]",),
    ),
    "member graph of a fixed batch": (
        lambda r: small_model(r, linear_model(1, batch=1)),
        "small", "model file input x", ("batch axis fixed at 1",),
    ),
    "member config with another dtype": (
        lambda r: edit(r / "small/config.pbtxt", "TYPE_FP32", "TYPE_FP16"),
        "small", "config.pbtxt input x", ("got FP16, expected FP32",),
    ),
    "member input without a name": (
        lambda r: edit(r / "small/config.pbtxt", 'name: "x"', 'name: ""'),
        "small", "config.pbtxt input", ("expected one of x",),
    ),
    "member output of integers": (
        lambda r: edit(r / "small/config.pbtxt", "TYPE_FP32\n  dims: 3", "TYPE_INT32\n  dims: 3"),
        "cascade", "member small", ("output logits is INT32, expected FP32",),
    ),
    "member GPU config of another shape": (
        lambda r: edit(r / "small/configs/gpu.pbtxt", "max_batch_size: 8", "max_batch_size: 4"),
        "small", "configs/gpu.pbtxt max_batch_size", ("differs from config.pbtxt",),
    ),
    "member GPU config malformed": (
        lambda r: (r / "small/configs/gpu.pbtxt").write_text("{"),
        "small", "configs/gpu.pbtxt", ("at line 1",),
    ),
    "manifest broken": (
        lambda r: (r / "small/manifest.json").write_text("[]"),
        "small", "manifest.json format", ("expected an object",),
    ),
    "manifest of another member": (
        lambda r: edit(r / "small/manifest.json", '"name": "small"', '"name": "tiny"'),
        "small", "manifest.json name", ("got tiny, expected small",),
    ),
    "manifest of another file": (
        lambda r: edit(r / "small/manifest.json", "1/model.onnx", "1/model.plan"),
        "small", "manifest.json file", ("1/model.plan is missing",),
    ),
    "manifest with other labels": (
        lambda r: edit(r / "small/manifest.json", '"labels": null', '"labels": ["cow", "bee", "ant"]'),
        "cascade", "member small", ("labels",),
    ),
    "cascade config gone": (
        lambda r: (r / "cascade/config.pbtxt").unlink(),
        "cascade", "config.pbtxt", ("missing; render again",),
    ),
    "cascade config malformed": (
        lambda r: (r / "cascade/config.pbtxt").write_text("backend python"),
        "cascade", "config.pbtxt", ("at line 1",),
    ),
    "cascade on the GPU": (
        lambda r: edit(r / "cascade/config.pbtxt", "KIND_CPU", "KIND_GPU"),
        "cascade", "config.pbtxt instance_group", ("KIND_GPU", "KIND_CPU"),
    ),
    "cascade with a cache": (
        lambda r: add(r / "cascade/config.pbtxt", "response_cache { enable: true }"),
        "cascade", "config.pbtxt response_cache", ("expected nothing",),
    ),
    "cascade with warm-up": (
        lambda r: add(r / "cascade/config.pbtxt", 'model_warmup { name: "w" batch_size: 1 }'),
        "cascade", "config.pbtxt model_warmup", ("expected nothing",),
    ),
    "labels gone": (
        lambda r: (r / "cascade/labels.txt").unlink(),
        "cascade", "labels.txt", ("render again",),
    ),
    "labels in another order": (
        lambda r: (r / "cascade/labels.txt").write_text("bee\nant\ncow\n"),
        "cascade", "labels.txt", ("not the plan's labels",),
    ),
    "shim gone": (
        lambda r: (r / "cascade/1/model.py").unlink(),
        "cascade", "model file", ("1/model.py is missing",),
    ),
    "shim of another version": (
        lambda r: edit(r / "cascade/1/model.py", "importlib.import_module", "__import__"),
        "cascade", "model.py", ("is not the file this version of committee writes",),
    ),
    "ensemble step gone": (
        lambda r: shutil.rmtree(r / "together_mean"),
        "together", "step together_mean", ("no such model",),
    ),
    "ensemble member gone": (
        lambda r: shutil.rmtree(r / "large"),
        "together", "member large", ("no such model",),
    ),
    "ensemble rewired": (
        lambda r: edit(r / "together/config.pbtxt", 'key: "scores_0"', 'key: "scores_9"'),
        "together", "config.pbtxt ensemble_scheduling", ("render again",),
    ),
    "ensemble batch limit": (
        lambda r: edit(r / "together_mean/config.pbtxt", "max_batch_size: 8", "max_batch_size: 4"),
        "together_mean", "config.pbtxt max_batch_size", ("got max_batch_size: 4", "8"),
    ),
    "averaging model broken": (
        lambda r: (r / "together_mean/1/model.onnx").write_bytes(b"\x00" * 30),
        "together_mean", "model file", ("export it again",),
    ),
    "a folder that is no model": (
        lambda r: (r / "notes").mkdir(),
        "notes", "version", ("no version folder",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_the_report_shows_each_fault_where_it_is(repository: Path, name: str) -> None:
    spoil, model, field, words = FAULTS[name]
    assert check(repository)
    spoil(repository)
    report = check(repository)
    assert not report
    assert has(report, model, field, *words), report.faults
    assert all(len(one.text.splitlines()) == 1 and one.text for one in (*report.faults, *report.notes))


# Faults that do not hide one another: each spoils a place of its own.
TOGETHER = [
    "plan batch above the member's", "member config of another name", "member GPU config malformed",
    "cascade on the GPU", "labels in another order", "shim of another version", "ensemble batch limit",
    "a folder that is no model", "manifest with other labels",
]  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(st.sampled_from(TOGETHER), min_size=2))
def test_every_fault_is_shown_in_one_run(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    repository = tmp_path_factory.mktemp("many") / "model_repository"
    build(repository)
    for name in sorted(names):
        FAULTS[name][0](repository)
    report = check(repository)
    for name in names:
        _, model, field, words = FAULTS[name]
        assert has(report, model, field, *words), (name, report.faults)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_cut_or_flipped_anywhere_never_break_the_check_itself(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    repository = tmp_path_factory.mktemp("spoilt") / "model_repository"
    build(repository)
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON, file=st.sampled_from(["cascade/1/cascade.json", "small/manifest.json"]))
def test_any_value_anywhere_in_a_plan_or_manifest_is_taken_or_is_a_fault(
    repository: Path, data: st.DataObject, value: object, file: str
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
        build(repository)


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
    other = add_member(repository, "other", model=linear_model(2, input="pixels"), input=_renamed("pixels"))
    spec = spec_of(dataclasses.replace(random, cost=5.0, instances=3), dataclasses.replace(other, input="pixels"))
    fit = Fit(
        data_sha256="0" * 64, rows=9, split="plan", target="x", accuracy=None, accuracy_ci95=None,
        exit_share=(0.5, 0.5), mean_cost=1.0, random_weights=True,
    )  # fmt: skip
    render(dataclasses.replace(spec, fit=fit), repository)
    edit(
        repository / "cascade" / "config.pbtxt",
        "dynamic_batching {",
        "dynamic_batching {\n  preserve_ordering: true",
    )
    report = check(repository)
    assert report, report.faults
    assert has(report, "random", "weights", "never trained", notes=True)
    assert has(report, "cascade", "fit", "random weights", notes=True)
    assert has(report, "cascade", "member random", "costs 5 MACs in the plan, 12", notes=True)
    assert has(report, "cascade", "member random", "plan says 3 instances, its config runs 1", notes=True)
    assert has(report, "cascade", "member other", "named pixels, the cascade's x", "copied", notes=True)
    assert has(report, "cascade", "config.pbtxt dynamic_batching", "tuned by hand", notes=True)


def _renamed(name: str) -> object:
    from tests.repository.making import manifest_of  # the smallest way to a TensorSpec like the others

    return dataclasses.replace(manifest_of("x", "0" * 64).input, name=name)


def test_more_calls_at_once_than_the_server_has_threads_is_a_note(repository: Path, tmp_path: Path) -> None:
    members = [add_member(repository, f"m{i}", seed=i) for i in range(6)]
    stages = tuple(
        Stage(members=(member,), threshold=None if member is members[-1] else 0.5) for member in members
    )
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
    assert has(
        check(repository), "small", "model file", "weights.bin, which holds weights of model.onnx, is missing"
    )


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
        (lambda path: None, "does not exist; name an existing folder with --repository"),
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
    assert value["faults"] == [
        {"model": "notes", "field": fault["field"], "text": fault["text"]} for fault in value["faults"]
    ]
    assert {fault["field"] for fault in value["faults"]} == {"version"}


def test_an_equal_plan_written_by_other_hands_is_no_fault(repository: Path) -> None:
    path = repository / "cascade" / "1" / "cascade.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert check(repository)
    path.write_text(json_from_cascade(spec_of(*_members(repository))))
    assert check(repository)
