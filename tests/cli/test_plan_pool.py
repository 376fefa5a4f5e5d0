"""Members without a manifest: the plan has their tensors from config.pbtxt, from records, or says it has not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.repository.check import check
from orchestrator.repository.members import UNKNOWN_INPUT
from orchestrator.spec import CascadeSpec, RowLength, cascade_from_path
from tests.cli.planning import one_line, plan, write_made
from tests.planner.builders import made_records
from tests.repository.builders import TOKENS, add_member, linear_model, snapshot, token_model

SCORES = made_records(0, rows=300).outputs["a"]


@pytest.mark.parametrize("name", ["m" * 250, "../a", "a b", "\N{GREEK SMALL LETTER ALPHA}"])
@pytest.mark.parametrize(
    "goal", [("--max-mean-cost", "6"), ("--impose-exits", "0.5,0.2,0.1")], ids=["plan", "impose"]
)
def test_names_no_plan_can_have_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, goal: tuple[str, ...]
) -> None:
    records = write_made(tmp_path / "r.npz", **{f"outputs/{name}": SCORES, f"cost/{name}": np.float64(5)})
    assert plan(records, *goal) == 2
    assert f"records: got members named {name[:40]!r}, expected up to 128 letters" in one_line(capsys)


@pytest.mark.parametrize("scores", [SCORES, np.zeros_like(SCORES)], ids=["negative", "zero"])
def test_outputs_that_are_not_the_probabilities_they_are_said_to_be_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scores: np.ndarray
) -> None:
    meta = np.array(json.dumps({"members": {"a": {"output_kind": "probabilities"}}}))
    records = write_made(tmp_path / "r.npz", meta=meta, **{"outputs/a": scores})
    assert plan(records, "--max-mean-cost", "6") == 2
    assert "outputs of a: got numbers below 0, or nothing above it, in" in one_line(capsys)


def test_a_member_called_ensemble_is_refused_by_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = write_made(tmp_path / "r.npz", **{"outputs/ensemble": SCORES, "cost/ensemble": np.float64(5)})
    by_name = ("--reference", "ensemble", "--epsilon", "0.3")
    for goal in (by_name, ("--label-free", "--epsilon", "0.3"), ("--max-mean-cost", "6")):
        assert plan(records, *goal) == 2
        assert "leave it out with --members" in capsys.readouterr().err
    assert plan(records, *by_name, "--members", "a,b,c") == 0


LABELLED = 'output [{ name: "s", data_type: TYPE_FP32, dims: [3], label_filename: "names.txt" }]'


def planned_labels(records: Path, *options: object) -> list[str] | None:
    output = records.parent / "plan.json"
    assert run(["plan", *map(str, (records, "--max-mean-cost", "6", "-o", output, *options))]) == 0
    return json.loads(output.read_text())["labels"]


def meta(**facts: object) -> np.ndarray:
    return np.array(json.dumps(facts))


def test_a_plan_calls_its_classes_what_members_do_else_what_the_records_do(tmp_path: Path) -> None:
    records = write_made(tmp_path / "r.npz", meta=meta(class_names=["x", "y", "z"], labels_by="order"))
    assert planned_labels(write_made(tmp_path / "bare.npz"), "--repository", tmp_path / "none") is None
    assert planned_labels(records, "--repository", tmp_path / "none") == ["x", "y", "z"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.pbtxt").write_text(LABELLED)
    (tmp_path / "b/names.txt").write_text("ant\nbee\ncow\n")
    assert planned_labels(records, "--repository", tmp_path) == ["ant", "bee", "cow"]


def test_labels_that_went_by_names_that_are_others_now_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.pbtxt").write_text(LABELLED)
    (tmp_path / "b/names.txt").write_text("ant\ncow\nbee\n")
    names = ["ant", "bee", "cow"]
    for by in ("order", "map", None):
        records = write_made(tmp_path / "r.npz", meta=meta(class_names=names, labels_by=by))
        assert planned_labels(records, "--repository", tmp_path) == ["ant", "cow", "bee"]
    capsys.readouterr()
    records = write_made(tmp_path / "r.npz", meta=meta(class_names=names, labels_by="name"))
    assert run(["plan", str(records), "--max-mean-cost", "6", "--repository", str(tmp_path)]) == 2
    assert (
        "labels that went by class names, 'bee' for class 1, expected 'cow', which the members call it"
        in one_line(capsys)
    )


@pytest.mark.parametrize("names", [["x"], "xyz", {"x": 1}, [1, 2, 3], [["x"], "y", "z"], ["x\ny", "y", "z"]])
def test_class_names_that_are_none_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: object
) -> None:
    records = write_made(tmp_path / "r.npz", meta=meta(class_names=names))
    assert plan(records, "--max-mean-cost", "6") == 2
    error = one_line(capsys)
    assert "class_names: got" in error or "labels: got" in error


INPUT = 'input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }'
OUTPUT = 'output { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] }'
PLAIN = f'backend: "onnxruntime" max_batch_size: 16 {INPUT} {OUTPUT}'


def write_config(repository: Path, name: str, config: str | None, **names: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(linear_model(1, **names).SerializeToString())
    if config is not None:
        (repository / name / "config.pbtxt").write_text(config)


def imposed_plan(tmp_path: Path, *, meta: dict[str, Any] | None = None, code: int = 0) -> CascadeSpec:
    records = write_made(tmp_path / "r.npz", meta=np.array(json.dumps({"members": meta or {}})))
    words = ["plan", str(records), "--impose-exits", "0.5,0.2", "-o", str(tmp_path / "plan.json")]
    assert run([*words, "--repository", str(tmp_path / "models")]) == code
    return None if code else cascade_from_path(tmp_path / "plan.json")


def member(spec: CascadeSpec, name: str = "a") -> tuple[object, ...]:
    (one,) = [member for member in spec.members if member.name == name]
    return one.input, one.output, one.max_batch_size, one.instances


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PLAIN, (None, "logits", 16, 1)),
        (None, (None, "logits", 4, 1)),
        ('backend: "onnxruntime" max_batch_size: 100', (None, "logits", 100, 1)),
        (f"{PLAIN} instance_group [ {{ count: 2 }}, {{ count: 1 }} ]", (None, "logits", 16, 3)),
        (f"{PLAIN} instance_group {{ count: 2 kind: KIND_GPU gpus: [ 0, 1 ] }}", (None, "logits", 16, 4)),
        (f"{PLAIN} instance_group {{ kind: KIND_CPU }}", (None, "logits", 16, 1)),
        (PLAIN.replace('"logits"', '"p"').replace("FP32 dims: [ 3 ]", "FP16 dims: [ -1 ]"), (None, "p", 16, 1)),
        (f'{PLAIN} output {{ name: "margin" data_type: TYPE_FP32 dims: [ 1 ] }}', (None, "logits", 16, 1)),
        (f'{PLAIN} output {{ name: "top" data_type: TYPE_INT64 dims: [ 3 ] }}', (None, "logits", 16, 1)),
        (PLAIN.replace("[ 3 ]", "[ 3 ] reshape { shape: [ 3, 1, 1 ] }"), (None, "logits", 16, 1)),
    ],
)
def test_a_config_says_how_its_model_is_asked(
    tmp_path: Path, config: str | None, expected: tuple[object, ...]
) -> None:
    for name in "bc":
        write_config(tmp_path / "models", name, PLAIN)
    write_config(tmp_path / "models", "a", config)
    spec = imposed_plan(tmp_path)
    assert (spec.input.name, spec.input.dtype, spec.input.dims) == ("x", "FP32", (4,))
    assert member(spec) == expected


def test_inputs_of_other_names_are_named_and_an_optional_one_is_left_out(tmp_path: Path) -> None:
    write_config(tmp_path / "models", "a", PLAIN)
    write_config(tmp_path / "models", "b", PLAIN.replace('"x"', '"pixels"'))
    optional = 'input { name: "seed" data_type: TYPE_INT64 dims: [ 1 ] optional: true }'
    write_config(tmp_path / "models", "c", f"{PLAIN.replace('onnxruntime', 'python')} {optional}")
    spec = imposed_plan(tmp_path)
    assert [member(spec, name)[0] for name in "abc"] == [None, "pixels", None]


@pytest.mark.parametrize(
    ("config", "meta", "message"),
    [
        (f'{PLAIN} output {{ name: "more" data_type: TYPE_FP32 dims: [ 3 ] }}', {}, "--output-tensor a=NAME"),
        (
            PLAIN.replace("[ 3 ]", "[ 5 ]"),
            {},
            "got outputs logits FP32[5], expected one of 3 floating-point scores",
        ),
        (PLAIN, {"output": "scores"}, "got scores from its output scores, expected one of logits"),
        (f"{PLAIN} nonsense: 1", {}, "config.pbtxt at line 1"),
        (PLAIN, {"input": "x"}, "records, meta of a, input: got 'x', expected {"),
        (PLAIN, {"instances": 0}, "records, meta of a, instances: got 0, expected a whole number of at least 1"),
        (PLAIN, {"output": 3}, "records, meta of a, output: got 3, expected the name of a tensor"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, meta: dict[str, Any], message: str
) -> None:
    write_config(tmp_path / "models", "a", config)
    imposed_plan(tmp_path, meta={"a": meta}, code=2)
    assert message in one_line(capsys)
    assert not (tmp_path / "plan.json").exists()


def test_an_output_that_the_records_name_is_taken_among_several(tmp_path: Path) -> None:
    write_config(tmp_path / "models", "a", f'{PLAIN} output {{ name: "more" data_type: TYPE_FP32 dims: [ 3 ] }}')
    assert member(imposed_plan(tmp_path, meta={"a": {"output": "more"}}))[1] == "more"


def test_where_the_models_are_elsewhere_the_records_say_how_they_are_asked(tmp_path: Path) -> None:
    told = {"input": {"name": "x", "dtype": "FP32", "dims": [4]}, "output": "logits"}
    spec = imposed_plan(tmp_path, meta={"a": {**told, "max_batch_size": 8, "instances": 2}})
    assert (spec.input.name, spec.input.dims) == ("x", (4,))
    assert member(spec) == (None, "logits", 8, 2)


def test_a_plan_made_far_from_its_models_is_completed_by_render(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = imposed_plan(tmp_path)
    said = capsys.readouterr().err
    assert "no manifest of a, b, c in" in said
    assert spec.input == UNKNOWN_INPUT
    repository = tmp_path / "elsewhere"
    write_config(repository, "a", f"{PLAIN} instance_group {{ count: 2 kind: KIND_CPU }}")
    write_config(repository, "b", PLAIN.replace('"x"', '"pixels"').replace("16", "8"), input="pixels")
    write_config(repository, "c", None)
    before = snapshot(repository)
    assert run(["render", str(tmp_path / "plan.json"), "--repository", str(repository)]) == 0
    done = cascade_from_path(repository / "cascade" / "1" / "cascade.json")
    assert (done.input.name, done.input.dims) == ("x", (4,))
    assert [member(done, name) for name in "abc"] == [
        (None, "logits", 16, 2), ("pixels", "logits", 8, 1), (None, "logits", 4, 1),
    ]  # fmt: skip
    after = snapshot(repository)
    assert {name: after[name] for name in before} == before
    assert check(repository)


@pytest.mark.parametrize(
    ("old", "new", "words", "code"),
    [
        ("[ 4 ]", "[ -1 ]", "give the plan's input fixed dims", 2),
        ("max_batch_size: 16", "max_batch_size: 0", "takes no batches", 1),
    ],
)
def test_what_no_cascade_can_do_is_said_by_plan_and_refused_by_render(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str, code: int
) -> None:
    repository = tmp_path / "models"
    for name in "abc":
        write_config(repository, name, PLAIN.replace(old, new).replace("onnxruntime", "python"))
        (repository / name / "1" / "model.py").write_text("")
    imposed_plan(tmp_path)
    assert words in capsys.readouterr().err
    before = snapshot(tmp_path)
    assert run(["render", str(tmp_path / "plan.json"), "--repository", str(repository)]) == code
    said = capsys.readouterr()
    assert "nothing was written" in said.out or "expected fixed dims in cascade.json" in said.err
    assert snapshot(tmp_path) == before


def test_rows_of_any_shape_have_that_of_the_recorded_ones(tmp_path: Path) -> None:
    for name in "abc":
        write_config(
            tmp_path / "models", name, PLAIN.replace("[ 4 ]", "[ -1, 4 ]").replace("onnxruntime", "python")
        )
    told = {"input": {"name": "x", "dtype": "FP32", "dims": [7, 4]}}
    assert imposed_plan(tmp_path, meta={"a": told}).input.dims == (7, 4)
    # Of another shape than the configuration allows: that is another model.
    told["input"]["dims"] = [7, 5]
    assert imposed_plan(tmp_path, meta={"a": told}).input == UNKNOWN_INPUT


def add_token_member(repository: Path, name: str, *, pad: int = 0, longest: int = 100, **changes: Any) -> None:
    length = RowLength(
        longest=longest, pad={"input_ids": pad, "attention_mask": 0}, macs_at=9, macs_coefficients=(0, 1, 0)
    )
    add_member(repository, name, model=token_model(1), inputs=TOKENS, length=length, **changes)


def test_members_of_tokens_and_of_numbers_bring_all_that_they_take(tmp_path: Path) -> None:
    for name, longest in (("a", 100), ("b", 64)):
        add_token_member(tmp_path / "models", name, longest=longest)
    add_member(tmp_path / "models", "c")
    spec = imposed_plan(tmp_path)
    ids, mask, x = spec.inputs
    assert (ids.name, ids.dtype, ids.dims, ids.pad, ids.buckets) == ("input_ids", "INT64", (-1,), 0, (32, 64))
    assert (mask.name, mask.buckets, x.name, x.dims) == ("attention_mask", (32, 64), "x", (4,))
    assert {one.name: spec.tensors_of(one) for one in spec.members} == {
        name: {"x": "x"} if name == "c" else {"input_ids": "input_ids", "attention_mask": "attention_mask"}
        for name in "abc"
    }
    assert run(["render", str(tmp_path / "plan.json"), "--repository", str(tmp_path / "models")]) == 0
    assert check(tmp_path / "models")


def test_members_that_pad_one_tensor_differently_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_token_member(tmp_path / "models", "a")
    add_token_member(tmp_path / "models", "b", pad=1)
    imposed_plan(tmp_path, code=2)
    said = one_line(capsys)
    assert "input input_ids: got INT64 [-1] padded with 0 for a, INT64 [-1] padded with 1 for b" in said
    assert "--input THEIRS=OURS" in said
