import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec import (
    CascadeSpec,
    Fit,
    FusedPrefix,
    Gear,
    Gears,
    InputSpec,
    Limits,
    Member,
    Preprocess,
    Stage,
    cascade_from_json,
    cascade_from_path,
    json_from_cascade,
)

SPEC = CascadeSpec(
    name="made_up",
    inputs=(InputSpec(
        name="image", dtype="UINT8", dims=(3, 8, 8), preprocess=Preprocess(mode="RGB", height_px=8, width_px=8)
    ),),
    classes=3,
    labels=("a", "b", "ü"),
    stages=(
        Stage(members=(Member(name="one", output="logits", cost=1.5),), threshold=0.7, low=0.1),
        Stage(members=(Member(name="two", output="logits"), Member(name="three", output="p", weight=2.0))),
    ),
    fit=Fit(
        data_sha256="0" * 64, rows=9, split="plan", target="t", accuracy=0.9,
        accuracy_ci95=(0.8, 1.0), exit_share=(0.5, 0.5), mean_cost=2.0,
    ),
)  # fmt: skip
TEXT = json_from_cascade(SPEC)


def changed(**changes: object) -> str:
    return json.dumps({**json.loads(TEXT), **changes})


def with_stage(index: int, **changes: object) -> str:
    document = json.loads(TEXT)
    document["stages"][index].update(changes)
    return json.dumps(document)


def test_writing_and_reading_back_gives_the_same_cascade_and_the_same_bytes() -> None:
    assert cascade_from_json(TEXT) == SPEC
    assert json_from_cascade(cascade_from_json(TEXT)) == TEXT


def test_the_pattern_of_headers_is_kept_and_left_out_where_there_is_none() -> None:
    assert "header_pattern" not in TEXT
    text = json_from_cascade(dataclasses.replace(SPEC, header_pattern="x-.*|traceparent"))
    assert cascade_from_json(text).header_pattern == "x-.*|traceparent"
    assert json_from_cascade(cascade_from_json(text)) == text


def with_member(**changes: object) -> str:
    return with_stage(0, members=[{"name": "one", "output": "logits", **changes}])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed(format=3), "format: got 3, expected 2"),
        (changed(format=0), "format: got 0"),
        (changed(format=True), "format: got True"),
        (with_stage(1, threshold=0.5), "got 2 thresholds for 2 stages, expected 1"),
        (TEXT.replace("0.7", "NaN"), "got NaN, expected a finite number"),
        (TEXT.replace("0.7", "Infinity"), "got Infinity"),
        (TEXT.replace("0.7", '"high"'), "threshold: got 'high'"),
        (with_stage(0, low=0.8), "expected less than the threshold"),
        (with_stage(0, members=[]), "expected at least one"),
        (with_stage(0, on_failure="shrug"), "expected one of error, answer"),
        (changed(classes=1), "classes: got 1, expected a whole number of at least 2"),
        (changed(labels=["a"]), "labels: got 1, expected 3"),
        (changed(combine="median"), "expected one of mean_logit"),
        (changed(name="../up"), "expected a model name"),
        (changed(stages=[]), "stages: got none"),
        (changed(surprise=1), "surprise: unknown field"),
        (TEXT.replace('"two"', '"one"'), "one more than once"),
        (TEXT.replace('"two"', '"made_up"'), "a cycle"),
        (TEXT.replace('"weight": 2.0', '"weight": 0'), "weight: got 0"),
        (changed(limits={"max_batch_size": 0}), "limits.max_batch_size: got 0"),
        (changed(inputs=["image"]), "inputs[0]: got str, expected an object"),
        (changed(inputs="image"), "inputs: got str, expected an array"),
        ("[1, 2]", "expected an object"),
        (changed(classes=2**24 + 1), "classes: got 16777217, expected a whole number of at least 2 and at most"),
        *((changed(limits={name: 10**20}), f"limits.{name}: got 100000000000000000000, expected a whole number")
          for name in ("max_batch_size", "max_deferred_rows", "workers_per_stage", "default_deadline_us")),
        (with_member(instances=1025), "instances: got 1025"),
        (with_member(max_batch_size=2**21), "max_batch_size: got 2097152"),
        (with_member(cost=1e31), "cost: got 1e+31, expected 0, or numbers from"),
        (with_stage(0, threshold=1e9), "threshold: got 1000000000.0, expected a number from -1000 to 1000"),
        (TEXT.replace('"dims": [\n        3', '"dims": [\n        2147483647'), "dims: got 137438953408 values"),
        (TEXT.replace('"rows": 9', f'"rows": {2**54}'), "fit.rows: got 18014398509481984"),
        (TEXT.replace('"accuracy": 0.9', '"accuracy": 2'), "fit.accuracy: got 2, expected a number from 0 to 1"),
        (TEXT.replace('"extra": {}', '"extra": []'), "fit.extra: got [], expected an object"),
        (TEXT.replace('"extra": {}', '"extra": ' + "[" * 900 + "]" * 900), "nested too deep to use"),
        (TEXT.replace('"rows": 9', '"rows": ' + "9" * 5000), "got a number of 5000 digits"),
        (TEXT.replace('"mean_cost": 2.0', '"mean_cost": 1e999'), "got the number 1e999"),
        (TEXT.replace('"rows": 9', '"rows": 9, "rows": 8'), "got 'rows' twice in one object"),
        (changed(labels=["a", "b", "\ud800"]), "got half a character in '\\ud800'"),
        (changed(labels=[["a"], {}, None]), "labels: got ['a'], expected text"),
        (changed(labels=["a", "b", "c\0"]), "labels: got 'c\\x00'"),
        (with_member(data_files={"a\0": "b"}), "expected paths inside the version folder"),
        (TEXT.replace('"threshold": 0.7,', ""), "stages[0].threshold: missing"),
        ('{"a":' * 100_000, "nested too deep"),
        *((TEXT[:cut], "complete JSON document") for cut in (0, 1, 10, 100, len(TEXT) - 3)),
        (changed(header_pattern="("), "header_pattern: got '(', expected a regular expression"),
        (changed(header_pattern=""), "header_pattern: got '', expected a regular"),
        (changed(header_pattern="(a+)+"), "header_pattern: got '(a+)+', which could take too long"),
        *((with_member(version=one), "members[0].version: got") for one in (0, -1, 1.0, "1", True, 2**63)),
        *((with_member(data_files=one), "data_files: got")
          for one in (["a"], {"a": 1}, {"../a": "b"}, {"/a": "b"}, "a")),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_its_field(text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        cascade_from_json(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        cascade_from_json(changed(surprise=1, inputs=3, stages=[{"members": [{"name": "x"}]}]))
    assert set(caught.value.faults) == {"surprise", "inputs", "stages[0].members[0].output"}


def test_a_missing_file_and_a_binary_file_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not exist"):
        cascade_from_path(tmp_path / "cascade.json")
    (tmp_path / "cascade.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not UTF-8"):
        cascade_from_path(tmp_path / "cascade.json")


def test_a_byte_order_mark_is_passed_over_and_what_is_no_text_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cascade.json"
    path.write_text(TEXT, encoding="utf-8-sig")
    assert cascade_from_path(path) == SPEC
    path.write_text(TEXT, encoding="utf-16")
    with pytest.raises(SpecError, match="is not UTF-8 text"):
        cascade_from_path(path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for odd, said in ((tmp_path, "is a folder"), (pipe, "is a pipe"), (Path("a\0b"), "null character")):
        with pytest.raises(SpecError, match=said):
            cascade_from_path(odd)


def test_versions_and_files_beside_models_are_kept_and_left_out_where_there_are_none() -> None:
    member = Member(name="one", output="logits", version=3, sha256="a" * 64, data_files={"w.data": "b" * 64})
    stages = (Stage(members=(member,), threshold=0.7), SPEC.stages[1])
    plan = dataclasses.replace(
        SPEC, stages=stages, fused_prefix=FusedPrefix(name="prefix", stages=2, version=2, sha256="c" * 64)
    )
    assert cascade_from_json(json_from_cascade(plan)) == plan
    for word in ("version", "data_files"):
        assert f'"{word}"' not in TEXT
    bare = json_from_cascade(dataclasses.replace(SPEC, fused_prefix=FusedPrefix(name="prefix", stages=2)))
    assert set(json.loads(bare)["fused_prefix"]) == {"name", "stages", "max_batch_size"}


FULL = dataclasses.replace(
    SPEC,
    limits=Limits(workers_per_stage=2, member_timeout_ms=1234),
    fused_prefix=FusedPrefix(name="prefix", stages=2, version=3),
    gears=Gears(cheaper=(Gear(thresholds=(0.5,), mean_cost=1.0, accuracy=0.8, exit_share=(0.6, 0.4)),)),
)


def numbers(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where numbers stand in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from numbers(part, (*path, key))
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("number", [10**33, -(10**33), 1e300])
@pytest.mark.parametrize("path", list(numbers(json.loads(json_from_cascade(FULL)))), ids=str)
def test_every_number_has_a_bound_that_the_error_names(path: tuple[str | int, ...], number: float) -> None:
    document = json.loads(json_from_cascade(FULL))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = number
    with pytest.raises(SpecError) as caught:
        cascade_from_json(json.dumps(document))
    field = next(key for key in reversed(path) if isinstance(key, str))
    assert any(field in name and "expected" in text for name, text in caught.value.faults.items())


def test_the_time_limit_of_a_call_is_kept_and_left_out_where_it_is_the_usual_one() -> None:
    assert "member_timeout_ms" not in TEXT
    assert cascade_from_json(json_from_cascade(FULL)) == FULL


IDS = {"name": "ids", "dtype": "INT64", "dims": [-1]}
TEXT_IN = {"name": "text", "dtype": "STRING", "dims": [1]}
TOKENS = {
    "model": "tokens", "inputs": {"in": "text"}, "max_batch_size": 8, "cost": 2.0, "version": 3,
    "outputs": [{"name": "ids", "from": "input_ids", "dtype": "INT64", "dims": [-1], "pad": 1,
                 "buckets": [4, 16]}],
}  # fmt: skip


def format_2(**changes: object) -> dict[str, Any]:
    """A plan over text: the first member reads it, the second tokens of it and a mask of numbers."""
    first = {"name": "one", "output": "logits", "inputs": {"x": "text"}, "cost": 1.0}
    second = {"name": "two", "output": "logits", "inputs": {"input_ids": "ids", "mask": "mask"}, "cost": 10.0}
    return {
        "format": 2, "name": "words", "classes": 3,
        "inputs": [TEXT_IN, {"name": "mask", "dtype": "FP32", "dims": [2, -1], "non_finite": "pass"}],
        "derived": [TOKENS],
        "stages": [{"members": [first], "threshold": 0.5}, {"members": [second]}],
        **changes,
    }  # fmt: skip


def spec_of(**changes: object) -> CascadeSpec:
    return cascade_from_json(json.dumps(format_2(**changes)))


def test_several_tensors_are_read_and_written_again_and_cost_what_they_cost() -> None:
    spec = spec_of()
    assert cascade_from_json(json_from_cascade(spec)) == spec
    assert list(spec.tensors) == ["text", "mask", "ids"]
    assert [[one.name for one in spec.derived_for(stage)] for stage in range(2)] == [[], ["tokens"]]
    assert spec.stage_costs == (1.0, 12.0)
    assert spec.models == ("one", "two", "tokens")
    assert spec.tensors_of(spec.members[1]) == {"input_ids": "ids", "mask": "mask"}
    both = dataclasses.replace(spec.members[0], inputs={})
    assert spec.tensors_of(both) == {"text": "text", "mask": "mask"}


def test_what_takes_one_tensor_alone_says_so_in_one_line() -> None:
    assert SPEC.input == SPEC.inputs[0]
    for spec in (spec_of(), spec_of(derived=[], inputs=[TEXT_IN, IDS, format_2()["inputs"][1]])):
        with pytest.raises(
            SpecError, match=r"cascade words: inputs: got text STRING\[1\], .*, expected one tensor of"
        ) as one:
            _ = spec.input
        assert "\n" not in str(one.value)


def test_a_tensor_is_derived_for_the_first_stage_that_needs_it_whatever_lies_between() -> None:
    words = {
        "model": "splitter",
        "inputs": {"a": "text"},
        "outputs": [{"name": "w", "dtype": "INT32", "dims": [4]}],
    }
    tokens = {**TOKENS, "inputs": {"in": "w"}}
    spec = spec_of(derived=[tokens, words])
    assert [[one.name for one in spec.derived_for(stage)] for stage in range(2)] == [[], ["splitter", "tokens"]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": []}, "inputs: got none, expected at least one"),
        ({"inputs": [TEXT_IN, TEXT_IN, IDS]}, "inputs: got text more than once, expected each input once"),
        ({"inputs": [TEXT_IN]}, "stages: member two reads mask, which nothing gives, expected one of text, ids"),
        ({"derived": []}, "stages: member two reads ids, which nothing gives"),
        ({"derived": [{**TOKENS, "inputs": {"in": "words"}}]}, "derived: model tokens reads words, which nothing"),
        ({"derived": [TOKENS, {**TOKENS, "model": "again"}]}, "derived: got ids twice"),
        ({"derived": [{**TOKENS, "outputs": [{**IDS, "name": "text"}, IDS]}]}, "derived: got text twice"),
        ({"derived": [{**TOKENS, "inputs": {"in": "ids"}}]}, "derived: got a cycle (tokens)"),
        ({"derived": [{**TOKENS, "outputs": []}]}, "derived[0].outputs: got none"),
        ({"derived": [{**TOKENS, "model": "two"}]}, "stages: got two more than once"),
        ({"derived": [{**TOKENS, "cost": -1}]}, "derived[0].cost: got -1"),
        ({"derived": [{**TOKENS, "inputs": ["text"]}]}, "derived[0].inputs: got ['text'], expected an object"),
        ({"fused_prefix": {"name": "p", "stages": 2}}, "fused_prefix: got text STRING[1], mask FP32[2, -1]"),
        *(
            ({"inputs": [{**tensor, **part}, *format_2()["inputs"][1:]], "derived": [TOKENS]}, f"inputs[0].{said}")
            for tensor, part, said in (
                (TEXT_IN, {"dims": [2]}, "dims: got [2], expected [1]: a row's text is one element"),
                (TEXT_IN, {"dims": [-1]}, "dims: got [-1], expected [1]"),
                (TEXT_IN, {"non_finite": "pass"}, "non_finite: got pass, expected none for text"),
                (TEXT_IN, {"buckets": [3]}, "buckets: got [3], expected it only where a size of dims is -1"),
                (TEXT_IN, {"preprocess": {"mode": "L", "height_px": 1, "width_px": 1}}, "preprocess: got an"),
                (IDS, {"dims": [-1, -1]}, "dims: got 2 sizes of -1, expected at most one length that varies"),
                (IDS, {"dims": [-2]}, "dims: got -2"),
                (IDS, {"dims": [-1.0]}, "dims: got -1.0"),
                (IDS, {"dims": [0]}, "dims: got 0"),
                (IDS, {"buckets": [4, 4]}, "buckets: got [4, 4], expected lengths that ascend"),
                (IDS, {"buckets": [4, 2]}, "buckets: got [4, 2]"),
                (IDS, {"buckets": [0]}, "buckets: got 0"),
                (IDS, {"pad": 0.5}, "pad: got 0.5, expected a value of INT64"),
                (IDS, {"pad": "x"}, "pad: got 'x', expected a number"),
                (IDS, {"dims": [3], "pad": 1}, "pad: got 1, expected it only where"),
                (IDS, {"dtype": "UINT8", "pad": 256}, "pad: got 256, expected a value of UINT8"),
                (IDS, {"dtype": "BYTES"}, "dtype: got 'BYTES', expected one of BOOL"),
            )
        ),
    ],
)  # fmt: skip
def test_each_fault_of_the_tensors_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(**changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


FORMAT_1: dict[str, Any] = {
    "format": 1, "name": "words", "classes": 3, "input": {"name": "x", "dtype": "FP32", "dims": [4]},
    "lead": {"name": "prefix", "stages": 2},
    "stages": [
        {"members": [{"name": "one", "output": "logits", "input": None}], "threshold": 0.5},
        {"members": [{"name": "two", "output": "logits"}]},
    ],
}  # fmt: skip


def test_format_1_means_what_it_meant_and_is_written_as_format_2() -> None:
    spec = cascade_from_json(json.dumps(FORMAT_1))
    assert spec.input == InputSpec(name="x", dtype="FP32", dims=(4,))
    assert spec.fused_prefix == FusedPrefix(name="prefix", stages=2)
    assert [one.inputs for one in spec.members] == [{}, {}]
    again = json.loads(json_from_cascade(spec))
    assert (again["format"], again["fused_prefix"]["name"]) == (2, "prefix")
    assert cascade_from_json(json.dumps(again)) == spec
    renamed = {"members": [{"name": "two", "output": "logits", "input": "pixels"}]}
    spec = cascade_from_json(json.dumps({**FORMAT_1, "lead": None, "stages": [FORMAT_1["stages"][0], renamed]}))
    assert spec.members[1].inputs == {"pixels": "x"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input": 3}, "input: got int, expected an object"),
        ({"input": {"name": "x"}}, "input.dtype: missing"),
        ({"inputs": []}, "inputs: unknown field, expected format 2"),
        ({"derived": []}, "derived: unknown field"),
        ({"lead": {"name": "prefix", "stages": 3}}, "lead: got 3 stages, expected at most 2"),
        ({"stages": [{"members": [{"name": "one", "output": "o", "input": 3}]}]}, "members[0].input: got 3"),
        ({"stages": [3]}, "stages[0]: got int"),
        ({"stages": 3}, "stages: got int"),
        ({"stages": [{"members": 3}]}, "stages[0].members: got int"),
        ({"stages": [{"members": [3]}]}, "stages[0].members[0]: got int"),
    ],
)  # fmt: skip
def test_faults_of_format_1_have_its_names(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        cascade_from_json(json.dumps({**FORMAT_1, **changes}))
    assert said in str(caught.value)
    with pytest.raises(SpecError, match="input: missing"):
        cascade_from_json(json.dumps({key: part for key, part in FORMAT_1.items() if key != "input"}))


def test_the_plan_on_the_page_about_inputs_can_be_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text(encoding="utf-8")
    spec = cascade_from_json(page.split("```json")[1].split("```")[0])
    assert [[one.name for one in spec.derived_for(stage)] for stage in range(2)] == [[], ["tokenizer"]]
