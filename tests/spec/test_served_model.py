import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InputError, ServerFaultError
from orchestrator.spec.rows import ready_rows
from orchestrator.spec.served_model import (
    ModelInfo,
    chunks,
    input_tensor,
    model_from_json,
    scores_output,
    wanted_outputs,
)


def described(inputs: list[dict], outputs: list[dict], max_batch_size: object = 8) -> ModelInfo:
    return model_from_json(
        {"name": "m", "versions": ["1"], "platform": "p", "inputs": inputs, "outputs": outputs},
        {"max_batch_size": max_batch_size},
    )


def tensor(name: str, *shape: object, datatype: str = "FP32") -> dict:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


@given(st.integers(1, 500), st.integers(0, 64))
def test_chunks_cover_every_row_once_in_order_within_the_limit(rows: int, limit: int) -> None:
    parts = chunks(rows, limit)
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert min(sizes) >= 1
    if limit:
        assert max(sizes) <= limit
        assert len(parts) == -(-rows // limit)
        assert len(parts) == 1 or max(sizes) <= -(-rows // len(parts))
    else:
        assert len(parts) == 1


def test_whole_numbers_may_come_as_strings_and_a_limit_of_zero_may_be_left_out() -> None:
    info = described([tensor("x", "-1", "3")], [tensor("y", "-1", "2")], "16")
    assert (info.inputs[0].shape, info.max_batch_size) == ((-1, 3), 16)
    assert model_from_json({"name": "m"}, {}).max_batch_size == 0


def test_metadata_that_cannot_be_read_is_the_servers_fault() -> None:
    with pytest.raises(ServerFaultError, match="metadata of model m"):
        described([{"name": "x"}], [])


def test_a_model_with_several_inputs_or_a_fixed_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"2 inputs \(a, b\)"):
        input_tensor(described([tensor("a", -1, 1), tensor("b", -1, 1)], []))
    with pytest.raises(InputError, match="free batch axis"):
        input_tensor(described([tensor("a", 4, 1)], [], 0))


def test_scores_are_probabilities_or_the_only_floating_point_vector() -> None:
    scores, label = tensor("s", -1, 3), tensor("l", -1, 1, datatype="INT64")
    assert scores_output(described([], [label, scores])) == "s"
    assert scores_output(described([], [scores, tensor("probabilities", -1, 3)])) == "probabilities"
    assert scores_output(described([], [tensor("margin", -1, 1), scores])) == "s"
    assert scores_output(described([], [tensor("margin", -1, 1)])) == "margin"
    assert scores_output(dataclasses.replace(described([], [scores, tensor("t", -1, 3)]), scores="t")) == "t"
    for outputs in ([label], [scores, tensor("t", -1, 3)], [tensor("map", -1, 3, 3)], []):
        with pytest.raises(InputError, match="model m"):
            scores_output(described([], outputs))


def test_outputs_are_named_in_the_request_only_where_there_are_others() -> None:
    scores, features = tensor("s", -1, 3), tensor("features", -1, 3, 3)
    assert wanted_outputs(described([], [scores])) is None
    assert wanted_outputs(described([], [scores, features])) == ("s",)
    whole = [tensor("probabilities", -1, 3), tensor("label", -1, 1, datatype="INT64")]
    assert wanted_outputs(described([], whole)) is None
    assert wanted_outputs(described([], [*whole, features])) == ("probabilities", "label")


def test_a_free_size_takes_any_and_a_fixed_one_only_its_own() -> None:
    info = described([tensor("x", -1, 3, -1)], [])
    for width in (1, 7):
        assert list(ready_rows(info, np.zeros((2, 3, width), np.float32))) == ["x"]
    with pytest.raises(InputError, match=r"\[n, 3, any\]"):
        ready_rows(info, np.zeros((2, 4, 1), np.float32))


@pytest.mark.parametrize("form", [list, np.array, lambda texts: np.array(texts, object)[:, None]])
def test_text_in_any_form_is_sent_as_utf_8_of_one_element_per_row(form: Callable[[list[str]], Any]) -> None:
    info = described([tensor("x", -1, 1, datatype="BYTES")], [])
    texts = ["", "a\nb", 'with "quotes"', "\N{GRINNING FACE}", "a\0b"]
    assert ready_rows(info, form(texts))["x"].tolist() == [[text.encode()] for text in texts]


def test_bytes_are_sent_as_they_are_and_zeros_at_the_end_of_listed_texts_stay() -> None:
    info = described([tensor("x", -1, 1, datatype="BYTES")], [])
    assert ready_rows(info, [b"\xff\xd8", "a\0"])["x"].tolist() == [[b"\xff\xd8"], [b"a\0"]]


@pytest.mark.parametrize("bad", [None, 5, 1.5, "\ud800"])
def test_what_is_no_text_is_refused_with_its_row(bad: object) -> None:
    rows = np.empty((3, 1), object)
    rows[:, 0] = ["a", bad, "b"]
    with pytest.raises(InputError, match=r"row 1: got .*, expected text"):
        ready_rows(described([tensor("x", -1, 1, datatype="BYTES")], []), rows)


def test_several_inputs_are_given_by_name_and_with_one_number_of_rows() -> None:
    info = described([tensor("a", -1, 2), tensor("b", -1, 1, datatype="BYTES")], [])
    good = {"b": ["x", "y"], "a": np.zeros((2, 2), np.float32)}
    assert list(ready_rows(info, good)) == ["a", "b"]
    for rows, said in [
        ({"a": good["a"]}, "tensors a, expected a, b"),
        ({**good, "c": good["a"]}, "tensors b, a, c, expected a, b"),
        ({**good, "b": ["x"]}, "2 rows in a, 1 rows in b, expected the same number"),
        (good["a"], "2 inputs"),
    ]:
        with pytest.raises(InputError, match=said):
            ready_rows(info, rows)


def test_a_configuration_that_names_a_kind_of_scores_that_there_is_not_is_refused() -> None:
    for value in ({"string_value": "scores"}, {}, "logits"):
        with pytest.raises(ServerFaultError, match="model m"):
            model_from_json({"name": "m"}, {"parameters": {"output_kind": value}})
    found = model_from_json({"name": "m"}, {"parameters": {"output_kind": {"string_value": "logits"}}})
    assert found.output_kind == "logits"
    assert model_from_json({"name": "m"}, {"parameters": {"other": {"string_value": "1"}}}).output_kind is None


@pytest.mark.parametrize(
    ("platform", "backend", "expected"),
    [("onnxruntime_onnx", "", True), ("", "onnxruntime", True), ("python", "", False), ("ensemble", "", False)],
)
def test_text_of_a_model_that_onnx_runtime_reads_is_known(platform: str, backend: str, expected: bool) -> None:
    inputs = [tensor("t", -1, 1, datatype="BYTES"), tensor("x", -1, 1)]
    metadata = {"name": "m", "versions": ["1"], "platform": platform, "inputs": inputs, "outputs": []}
    found = model_from_json(metadata, {"max_batch_size": 8, "backend": backend})
    assert [one.is_c_string for one in found.inputs] == [expected, False]
