"""`committee plan` from records of members that read text, token ids or several tensors."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.spec import CascadeSpec, cascade_from_path
from orchestrator.spec.deriving import json_from_deriving
from orchestrator.spec.manifest import TensorSpec
from tests.recording.text_members import (
    TOKENS,
    tokenizer_manifest,
    write_numbers_member,
    write_text_member,
    write_tokens_member,
)

Plan = Callable[..., CascadeSpec]


def write_rows(path: Path, rows: int = 60) -> None:
    """Rows of which `words` knows few, and `tokens` all."""
    draw = np.random.default_rng(0)
    with path.open("w") as file:
        for row in range(rows):
            label = int(draw.integers(2))
            ids = [int(one) for one in draw.integers(1, 3, draw.integers(1, 4))] + [20] * label
            text = "good" if label and row % 3 else "no"
            shown = {"text": text, "input_ids": ids, "attention_mask": [1] * len(ids), "features": [0.5, 0, 1]}
            file.write(json.dumps({**shown, "label": label}) + "\n")


def write_tokenizer(repository: Path, name: str = "tokenizer") -> None:
    """The manifest of a model that makes the token ids."""
    (repository / name).mkdir()
    manifest = tokenizer_manifest(name, pad=3.0, max_batch_size=16)
    (repository / name / "manifest.json").write_text(json_from_deriving(manifest))


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Records the members and plans them; gives the plan."""
    write_text_member(tmp_path, sure_of_others=0.5)
    write_numbers_member(tmp_path)
    write_tokens_member(tmp_path)
    write_tokenizer(tmp_path)
    write_rows(tmp_path / "in.jsonl")
    repository = ["--repository", str(tmp_path)]

    def planned(members: str, *words: str, code: int = 0) -> CascadeSpec:
        records, output = str(tmp_path / "records.npz"), tmp_path / "plan.json"
        recorded = ["record", "--members", members, "--data", str(tmp_path / "in.jsonl"), "-o", records]
        assert run([*recorded, *repository, "--restart"]) == 0, capsys.readouterr()
        options = ["plan", records, "-o", str(output), "--no-certify", "--calibrate", "off", *repository]
        assert run([*options, *words]) == code, capsys.readouterr()
        return cascade_from_path(output)

    return planned


def test_members_of_two_kinds_make_a_cascade_of_all_their_inputs(plan: Plan) -> None:
    spec = plan("words,tokens", "--reference", "tokens", "--epsilon", "0.0")
    assert [(one.name, one.dtype, one.dims) for one in spec.inputs] == [
        ("text", "STRING", (1,)),
        ("input_ids", "INT64", (-1,)),
        ("attention_mask", "INT64", (-1,)),
    ]
    read = {member.name: spec.tensors_of(member) for member in spec.members}
    assert read == {"words": {"text": "text"}, "tokens": {one: one for one in TOKENS}}


def test_a_plan_asks_for_nothing_that_its_members_do_not_read(plan: Plan) -> None:
    spec = plan("words,tokens,table", "--max-mean-cost", "10")
    assert [member.name for member in spec.members] == ["words"]
    assert [one.name for one in spec.inputs] == ["text"]


def test_token_ids_may_be_derived_from_text_by_a_model_of_the_repository(plan: Plan) -> None:
    spec = plan("words,tokens", "--reference", "tokens", "--epsilon", "0.0", "--derive", "tokenizer")
    assert [one.name for one in spec.inputs] == ["text"]
    (derived,) = spec.derived
    assert (derived.name, derived.inputs, derived.max_batch_size) == ("tokenizer", {"text": "text"}, 16)
    assert [(one.name, one.dims, one.pad) for one in derived.outputs] == [(one, (-1,), 3.0) for one in TOKENS]
    # A plan without the transformer needs no tokenizer.
    spec = plan("words,tokens", "--max-mean-cost", "10", "--derive", "tokenizer")
    assert (spec.derived, [one.name for one in spec.inputs]) == ((), ["text"])


def test_a_model_that_was_not_exported_derives_what_its_configuration_says(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.pbtxt").write_text(
        'backend: "python" max_batch_size: 8 input { name: "SENTENCE" data_type: TYPE_STRING dims: 1 } output ['
        + ", ".join(f'{{ name: "{one}" data_type: TYPE_INT64 dims: [-1] }}' for one in TOKENS)
        + "]"
    )
    spec = plan("words,tokens", "--reference", "tokens", "--epsilon", "0.0", "--derive", "own")
    (derived,) = spec.derived
    assert (derived.name, derived.inputs, derived.max_batch_size) == ("own", {"SENTENCE": "text"}, 8)
    assert [one.name for one in spec.inputs] == ["text"]


def test_a_model_that_derives_nothing_is_one_line(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan("words,tokens", "--max-mean-cost", "10")
    capsys.readouterr()
    words = ["plan", str(tmp_path / "records.npz"), "-o", str(tmp_path / "p.json"), "--repository", str(tmp_path)]
    for name, said in (
        ("absent", "no such model in"),
        ("words", "--derive words: got outputs logits, expected one"),
    ):
        assert run([*words, "--max-mean-cost", "10", "--derive", name]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_one_name_for_two_tensors_is_one_line(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan("words,tokens", "--max-mean-cost", "10")
    capsys.readouterr()
    path = tmp_path / "words" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"][0] = dataclasses.asdict(TensorSpec(name="input_ids", dtype="STRING", dims=(1,)))
    path.write_text(json.dumps(manifest))
    words = ["plan", str(tmp_path / "records.npz"), "-o", str(tmp_path / "p.json"), "--repository", str(tmp_path)]
    assert run([*words, "--max-mean-cost", "10"]) == 2
    assert "input input_ids: got STRING [1] for words, INT64 [-1]" in capsys.readouterr().err
