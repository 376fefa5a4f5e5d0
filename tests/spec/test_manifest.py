"""A member's manifest names any number of tensors; one of the time when there was one input is still read."""

import dataclasses
import json
from pathlib import Path

import pytest

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.spec import Manifest, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import json_from_manifest
from tests.repository.builders import TOKENS, manifest_of


def reread(folder: Path, text: str) -> Manifest:
    (folder / "manifest.json").write_text(text)
    return manifest_from_path(folder / "manifest.json")


def with_inputs(*inputs: TensorSpec) -> Manifest:
    return manifest_of("m", "0" * 64, inputs=inputs)


def test_several_inputs_are_written_and_read_in_order(tmp_path: Path) -> None:
    text = json_from_manifest(with_inputs(*TOKENS))
    assert json.loads(text)["inputs"][0] == {"name": "input_ids", "dtype": "INT64", "dims": [-1]}
    assert reread(tmp_path, text) == with_inputs(*TOKENS)


def test_a_manifest_with_one_input_is_read_as_a_list_of_one(tmp_path: Path) -> None:
    manifest = manifest_of("m", "0" * 64)
    old = json.loads(json_from_manifest(manifest))
    old["input"] = old.pop("inputs")[0]
    read = reread(tmp_path, json.dumps(old))
    assert (read, read.input) == (manifest, manifest.inputs[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "inputs: got none, expected at least one tensor"),
        ({"inputs": {}}, "inputs: got dict, expected an array"),
        ({"input": TOKENS[0]}, "input: unknown field"),
        ({"inputs": [TOKENS[0]] * 2}, "inputs: got input_ids more than once"),
        ({"inputs": [TOKENS[0], dataclasses.replace(TOKENS[1], dims=())], "macs": -1}, "macs: got -1"),
        ({"inputs": [{"name": "x", "dims": [-2], "dtype": "FP32"}]}, "inputs[0].dims: got -2"),
    ],
)
def test_wrong_inputs_are_said_by_their_place(tmp_path: Path, change: dict[str, object], message: str) -> None:
    value = json.loads(json_from_manifest(with_inputs(*TOKENS)))
    with pytest.raises(SpecError) as error:
        reread(tmp_path, json.dumps(value | change, default=dataclasses.asdict))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (TOKENS, "input_ids INT64 [-1], attention_mask INT64 [-1]"),
        (TOKENS[:1], "input_ids INT64 [-1]"),
        ((TensorSpec(name="text", dtype="STRING", dims=(1,)),), "text STRING [1]"),
    ],
)
def test_what_needs_one_tensor_of_fixed_size_says_so(inputs: tuple[TensorSpec, ...], got: str) -> None:
    with pytest.raises(RepositoryError) as error:
        _ = with_inputs(*inputs).input
    assert (
        str(error.value)
        == f"inputs of member m: got {got}, expected one tensor of numbers with fixed dims for this"
    )
