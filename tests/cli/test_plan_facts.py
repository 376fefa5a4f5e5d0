"""Members without a manifest: the plan has their tensors from config.pbtxt, from records, or says it has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.cli.app import run
from orchestrator.repository.check import check
from orchestrator.repository.completion import UNKNOWN_INPUT
from orchestrator.spec import CascadeSpec, cascade_from_path
from tests.cli.planning import write_made
from tests.repository.builders import linear_model, snapshot

INPUT = 'input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }'
OUTPUT = 'output { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] }'
PLAIN = f'backend: "onnxruntime" max_batch_size: 16 {INPUT} {OUTPUT}'


def write_config(repository: Path, name: str, config: str | None, **names: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(linear_model(1, **names).SerializeToString())
    if config is not None:
        (repository / name / "config.pbtxt").write_text(config)


def plan(tmp_path: Path, *, meta: dict[str, Any] | None = None, code: int = 0) -> CascadeSpec:
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
    spec = plan(tmp_path)
    assert (spec.input.name, spec.input.dtype, spec.input.dims) == ("x", "FP32", (4,))
    assert member(spec) == expected


def test_inputs_of_other_names_are_named_and_an_optional_one_is_left_out(tmp_path: Path) -> None:
    write_config(tmp_path / "models", "a", PLAIN)
    write_config(tmp_path / "models", "b", PLAIN.replace('"x"', '"pixels"'))
    optional = 'input { name: "seed" data_type: TYPE_INT64 dims: [ 1 ] optional: true }'
    write_config(tmp_path / "models", "c", f"{PLAIN.replace('onnxruntime', 'python')} {optional}")
    spec = plan(tmp_path)
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
    plan(tmp_path, meta={"a": meta}, code=2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "plan.json").exists()


def test_an_output_that_the_records_name_is_taken_among_several(tmp_path: Path) -> None:
    write_config(tmp_path / "models", "a", f'{PLAIN} output {{ name: "more" data_type: TYPE_FP32 dims: [ 3 ] }}')
    assert member(plan(tmp_path, meta={"a": {"output": "more"}}))[1] == "more"


def test_where_the_models_are_elsewhere_the_records_say_how_they_are_asked(tmp_path: Path) -> None:
    told = {"input": {"name": "x", "dtype": "FP32", "dims": [4]}, "output": "logits"}
    spec = plan(tmp_path, meta={"a": {**told, "max_batch_size": 8, "instances": 2}})
    assert (spec.input.name, spec.input.dims) == ("x", (4,))
    assert member(spec) == (None, "logits", 8, 2)


def test_a_plan_made_far_from_its_models_is_completed_by_render(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = plan(tmp_path)
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
    plan(tmp_path)
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
    assert plan(tmp_path, meta={"a": told}).input.dims == (7, 4)
    # Of another shape than the configuration allows: that is another model.
    told["input"]["dims"] = [7, 5]
    assert plan(tmp_path, meta={"a": told}).input == UNKNOWN_INPUT
