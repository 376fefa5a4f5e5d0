"""The stand-in for Triton's ONNX Runtime backend, on the real server: it means what the C++ backend means."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from onnx import TensorProto
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from orchestrator.errors import ServingError
from orchestrator.serving.process import EmbeddedServer
from tests.servers import running_server
from tests.serving.models import (
    add_onnx,
    column_model,
    first_row_model,
    free_width_model,
    lookup_model,
    scalar_model,
    scale_model,
    sum_model,
    text_model,
    two_by_two_model,
    whole_batch_model,
)

pytestmark = pytest.mark.triton

# Long enough that requests sent together become one batch, one instance so that they cannot part.
GATHER = """
instance_group [{ kind: KIND_CPU count: 1 }]
dynamic_batching { max_queue_delay_microseconds: 500000 }
"""
ROWS_OF_THREE = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [3] }]
"""
PARAMETERS = """
parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
parameters { key: "inter_op_thread_count" value: { string_value: "1" } }
parameters { key: "enable_mem_arena" value: { string_value: "on" } }
parameters { key: "memory.enable_memory_arena_shrinkage" value: { string_value: "cpu:0" } }
optimization { graph { level: -1 } }
"""
FIXED = '"y" data_type: TYPE_FP32 dims: [3]'
OPEN = '"y" data_type: TYPE_FP32 dims: [-1]'
OPEN_INPUT = OPEN.replace('"y"', '"x"')
MAGIC = 'optimization { execution_accelerators { cpu_execution_accelerator [{ name: "magic" }] } }'


def rows(count: int, start: float = 0.0) -> np.ndarray:
    """float32 (count, 3), every number different."""
    return start + np.arange(3 * count, dtype=np.float32).reshape(count, 3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder = tmp_path_factory.mktemp("repository")
    add_onnx(folder, "auto", scale_model())
    add_onnx(folder, "auto_two", two_by_two_model(), config="instance_group [{ kind: KIND_CPU count: 1 }]")
    add_onnx(folder, "auto_fixed", sum_model(), config="instance_group [{ kind: KIND_CPU count: 1 }]")
    add_onnx(folder, "gathered", scale_model(), config=ROWS_OF_THREE + GATHER)
    add_onnx(folder, "half_given", scale_model(), config=f"max_batch_size: 16 {GATHER.split('dynamic')[0]}")
    add_onnx(folder, "two", two_by_two_model(), config=f"max_batch_size: 8 {GATHER}")
    add_onnx(folder, "count", whole_batch_model(), config=f"max_batch_size: 8 {GATHER}")
    add_onnx(folder, "lookup", lookup_model(), config=f"max_batch_size: 8 {GATHER}")
    add_onnx(folder, "first", first_row_model(), config=f"max_batch_size: 8 {GATHER}")
    add_onnx(folder, "text", text_model(), config=GATHER)
    add_onnx(folder, "auto_column", column_model())
    add_onnx(folder, "auto_scalar", scalar_model())
    add_onnx(folder, "alone", scale_model(), config="max_batch_size: 1")
    add_onnx(folder, "free_width", free_width_model(), config=ROWS_OF_THREE.replace(FIXED, OPEN))
    add_onnx(folder, "tuned", scale_model(), config=ROWS_OF_THREE + PARAMETERS)
    add_onnx(folder, "grid", scale_model(dims=("rows", 2, "width")), config=f"max_batch_size: 4 {GATHER}")
    add_onnx(folder, "half", scale_model(element=TensorProto.FLOAT16))
    add_onnx(folder, "whole", scale_model(element=TensorProto.INT64))
    reshaped = 'max_batch_size: 8 input [{ name: "x" data_type: TYPE_FP32 dims: [1, 3] reshape: { shape: [3] } }]'
    outputs = 'output [{ name: "y" data_type: TYPE_FP32 dims: [3, 1] reshape: { shape: [3] } }]'
    add_onnx(folder, "reshaped", scale_model(), config=f"{reshaped} {outputs}")
    versions = add_onnx(folder, "versions", scale_model(factor=10.0), config="version_policy: { all {} }")
    (versions / "3").mkdir()
    onnx.save(scale_model(factor=30.0), str(versions / "3" / "model.onnx"))
    named = add_onnx(folder, "named", scale_model(), config='default_model_filename: "net.onnx"')
    (named / "1" / "model.onnx").rename(named / "1" / "net.onnx")
    bare = add_onnx(folder, "bare", scale_model())
    (bare / "config.pbtxt").unlink()
    with running_server(folder) as running:
        yield running


def ask(
    server: EmbeddedServer,
    model: str,
    inputs: Mapping[str, np.ndarray],
    outputs: tuple[str, ...] = (),
    *,
    version: str = "",
    http: bool = False,
) -> dict[str, np.ndarray]:
    """Outputs by name, those asked for or all."""
    kind = httpclient if http else grpcclient
    with kind.InferenceServerClient(server.http_address if http else server.grpc_address) as client:
        tensors = []
        for name, array in inputs.items():
            tensors.append(kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            tensors[-1].set_data_from_numpy(array)
        wanted = [kind.InferRequestedOutput(name) for name in outputs] or None
        timeout = {} if http else {"client_timeout": 30}
        result = client.infer(model, tensors, outputs=wanted, model_version=version, **timeout)
    response = result.get_response()
    outputs_of = response["outputs"] if http else response.outputs
    names = [entry["name"] if http else entry.name for entry in outputs_of]
    return {name: result.as_numpy(name) for name in names}


def executions(server: EmbeddedServer, model: str) -> int:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        return int(client.get_inference_statistics(model).model_stats[0].execution_count)


def configuration(server: EmbeddedServer, model: str) -> dict[str, Any]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        found = client.get_model_config(model, as_json=True)["config"]
    return {key: found.get(key) for key in ("max_batch_size", "input", "output", "dynamic_batching")}


# --- what a configuration leaves out


@pytest.mark.parametrize("model", ["auto", "bare", "named"])
def test_tensors_batch_size_and_batching_are_completed_from_the_file(server: EmbeddedServer, model: str) -> None:
    assert configuration(server, model) == {
        "max_batch_size": 4,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["3"]}],
        "dynamic_batching": {"preferred_batch_size": [4]},
    }
    np.testing.assert_array_equal(ask(server, model, {"x": rows(4)})["y"], 2 * rows(4))


def test_a_batch_size_that_is_given_stays_and_adds_batching_where_there_is_something_to_batch(
    server: EmbeddedServer,
) -> None:
    found = configuration(server, "half_given")
    assert found["max_batch_size"] == 16
    assert found["dynamic_batching"] == {"preferred_batch_size": [16]}
    assert found["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3"]}]
    alone = configuration(server, "alone")
    assert alone["max_batch_size"] == 1
    assert alone["dynamic_batching"] is None


def test_a_tensor_without_axes_of_its_own_is_completed_as_one_number(server: EmbeddedServer) -> None:
    (column,) = configuration(server, "auto_column")["output"]
    assert column["dims"] == ["1"]
    assert "reshape" in column
    np.testing.assert_array_equal(ask(server, "auto_column", {"x": rows(2)})["y"], [[3.0], [12.0]])
    (scalar,) = configuration(server, "auto_scalar")["output"]
    assert scalar["dims"] == ["1"]
    numbers = {"x": np.float32([2.5]), "y": np.float32([1.0])}
    np.testing.assert_array_equal(ask(server, "auto_scalar", numbers)["total"], [3.5])


def test_a_model_without_a_batch_axis_is_completed_and_served_as_such(server: EmbeddedServer) -> None:
    found = configuration(server, "auto_fixed")
    assert found["max_batch_size"] is None
    assert found["dynamic_batching"] is None
    assert found["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["2", "3"]}]
    np.testing.assert_array_equal(ask(server, "auto_fixed", {"x": rows(2)})["y"], [15.0])


def test_several_inputs_and_outputs_are_completed(server: EmbeddedServer) -> None:
    found = configuration(server, "auto_two")
    assert [entry["name"] for entry in found["input"]] == ["a", "b"]
    assert [entry["data_type"] for entry in found["output"]] == ["TYPE_FP32", "TYPE_INT64"]


# --- answers


@pytest.mark.parametrize("http", [False, True])
def test_one_request_gets_its_rows_back(server: EmbeddedServer, http: bool) -> None:
    np.testing.assert_array_equal(ask(server, "tuned", {"x": rows(5)}, http=http)["y"], 2 * rows(5))


@pytest.mark.parametrize(
    ("model", "array", "expected"),
    [
        ("half", rows(2).astype(np.float16), 2 * rows(2).astype(np.float16)),
        ("whole", rows(2).astype(np.int64), 2 * rows(2).astype(np.int64)),
        # The file leaves the output's width free.
        ("free_width", rows(2), rows(2)),
        ("reshaped", rows(2).reshape(2, 1, 3), 2 * rows(2).reshape(2, 3, 1)),
    ],
)
def test_dtypes_and_shapes_of_all_kinds_pass_through(
    server: EmbeddedServer, model: str, array: np.ndarray, expected: np.ndarray
) -> None:
    answer = ask(server, model, {"x": array})["y"]
    assert answer.dtype == expected.dtype
    np.testing.assert_array_equal(answer, expected)


def test_text_passes_through_also_where_it_is_no_ascii(server: EmbeddedServer) -> None:
    texts = np.array([["zwölf"], [""], ["a\n b"], ["cut\0here"]], dtype=object)
    answer = ask(server, "text", {"text": texts})["same"]
    # The C++ backend hands texts on as C strings.
    assert [text.decode() for text in answer.ravel()] == ["zwölf", "", "a\n b", "cut"]


def test_the_newest_version_answers_unless_another_is_asked_for(server: EmbeddedServer) -> None:
    for version, factor in (("", 30.0), ("1", 10.0), ("3", 30.0)):
        answer = ask(server, "versions", {"x": rows(1, 1.0)}, version=version)["y"]
        np.testing.assert_array_equal(answer, factor * rows(1, 1.0))


def test_only_the_outputs_asked_for_come_back(server: EmbeddedServer) -> None:
    pair = {"a": np.float32([[1, 5]]), "b": np.float32([[2, 0]])}
    assert set(ask(server, "two", pair)) == {"total", "largest"}
    assert set(ask(server, "two", pair, ("largest",))) == {"largest"}


# --- several requests in one batch


def test_requests_sent_together_run_as_one_batch(server: EmbeddedServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(server, "count", {"x": rows(2)})["rows"], range(4)))
    for answer in answers:
        np.testing.assert_array_equal(answer, [[8], [8]])
    assert executions(server, "count") == 1


def test_every_request_of_a_batch_gets_its_own_rows_whatever_their_number(server: EmbeddedServer) -> None:
    sizes = np.random.default_rng(0).integers(1, 9, size=300)
    inputs = [rows(int(size), start=1000.0 * i) for i, size in enumerate(sizes)]
    before = executions(server, "gathered")
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda array: ask(server, "gathered", {"x": array})["y"], inputs))
    for array, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer, 2 * array)
    assert executions(server, "gathered") - before < 250, "nothing was merged, so nothing was tested"


def test_requests_of_one_batch_may_ask_for_different_outputs(server: EmbeddedServer) -> None:
    before = executions(server, "two")
    wanted = [("total",), ("largest",), ("total", "largest"), ()]
    pairs = [{"a": np.float32([[i, 1], [0, i]]), "b": np.float32([[1, 1], [1, 1]])} for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: ask(server, "two", pairs[i], wanted[i]), range(4)))
    assert executions(server, "two") == before + 1
    for i, answer in enumerate(answers):
        assert set(answer) == set(wanted[i] or ("total", "largest"))
        total = pairs[i]["a"] + pairs[i]["b"]
        if "total" in answer:
            np.testing.assert_array_equal(answer["total"], total)
        if "largest" in answer:
            np.testing.assert_array_equal(answer["largest"], total.argmax(axis=1, keepdims=True))


def outcome(server: EmbeddedServer, model: str, inputs: Mapping[str, np.ndarray]) -> object:
    """The one output, or the error."""
    try:
        (answer,) = ask(server, model, inputs).values()
        return answer
    except InferenceServerException as error:
        return error


def test_a_request_that_fails_fails_its_whole_batch(server: EmbeddedServer) -> None:
    indices = [1, 2, 99, 3]
    with ThreadPoolExecutor(4) as pool:
        made = [np.int64([[index]] * 2) for index in indices]
        outcomes = list(pool.map(lambda index: outcome(server, "lookup", {"index": index}), made))
    for error in outcomes:
        assert isinstance(error, InferenceServerException)
        assert error.status() == "StatusCode.INTERNAL"
        assert error.message().startswith(
            "onnx runtime error 2: Non-zero status code returned while running Gather"
        )
        assert "\n" not in error.message()
    np.testing.assert_array_equal(outcome(server, "lookup", {"index": np.int64([[3]])}), [[30.0]])


def test_an_output_without_a_row_per_row_is_unimplemented_for_every_request_it_has_no_rows_for(
    server: EmbeddedServer,
) -> None:
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda i: outcome(server, "first", {"x": rows(1 + i % 2, i)}), range(4)))
    answered = [one for one in outcomes if not isinstance(one, InferenceServerException)]
    assert len(answered) <= 1, "one row cannot be the answer to several requests"
    for error in outcomes:
        if isinstance(error, InferenceServerException):
            assert error.status() == "StatusCode.UNIMPLEMENTED"
            assert "failed to split the output tensor 'y' in responses" in error.message()
    np.testing.assert_array_equal(outcome(server, "first", {"x": rows(1, 5)}), rows(1, 5))


def test_requests_of_different_widths_are_answered_each_in_its_own(server: EmbeddedServer) -> None:
    inputs = [np.full((1, 2, width), width, np.float32) for width in (1, 2, 3, 4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda array: ask(server, "grid", {"x": array})["y"], inputs))
    for array, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer, 2 * array)


# --- wrong requests


@pytest.mark.parametrize("http", [False, True])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 3), np.float32), "batch-size must be <= 8"),
        (np.zeros((2, 4), np.float32), "unexpected shape for input 'x'"),
        (np.zeros((2, 1, 3), np.float32), "unexpected shape for input 'x'"),
        (np.zeros((3,), np.float32), "unexpected shape for input 'x'"),
        (np.zeros((0, 3), np.float32), "size mismatch"),
        (np.zeros((2, 3), np.float64), "'FP64', but model 'gathered' expects 'FP32'"),
    ],
)
def test_a_wrong_request_is_an_invalid_argument(
    server: EmbeddedServer, array: np.ndarray, message: str, http: bool
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        ask(server, "gathered", {"x": array}, http=http)
    assert caught.value.status() == ("400" if http else "StatusCode.INVALID_ARGUMENT")


# --- configurations that do not fit their file


def test_every_configuration_that_does_not_fit_is_named_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    batched_sum = 'max_batch_size: 8 input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]'
    free_input = ROWS_OF_THREE.replace(FIXED.replace('"y"', '"x"'), OPEN_INPUT)
    wrong = {
        "config.pbtxt has inputs ['image'], expected those of the file, ['x']": (
            scale_model(), ROWS_OF_THREE.replace('"x"', '"image"')),
        "input x is TYPE_FP64 in config.pbtxt, TYPE_FP32 in the file": (
            scale_model(), ROWS_OF_THREE.replace("FP32", "FP64")),
        "input x has shape [-1, 4] by config.pbtxt, [-1, 3] in the file": (
            scale_model(), ROWS_OF_THREE.replace("[3]", "[4]")),
        "input x has shape [-1, 1, 3] by config.pbtxt, [-1, 3] in the file": (
            scale_model(), ROWS_OF_THREE.replace("[3]", "[1, 3]")),
        "x has shape [2, 3]: with a fixed first axis max_batch_size must be 0": (sum_model(), batched_sum),
        "parameter intra_op_thread_count: got 'many'": (
            scale_model(), ROWS_OF_THREE + PARAMETERS.replace('"2"', '"many"')),
        "output y has shape [-1, 3] by config.pbtxt, [-1, -1] in the file": (free_width_model(), ROWS_OF_THREE),
        "output y has shape [-1, -1] by config.pbtxt, [-1, 3] in the file": (
            scale_model(), ROWS_OF_THREE.replace(FIXED, OPEN)),
        "input x has shape [-1, -1] by config.pbtxt, [-1, 3] in the file": (scale_model(), free_input),
        "unknown execution accelerator 'magic' for the CPU, expected openvino": (
            scale_model(), f"{ROWS_OF_THREE} {MAGIC}"),
    }  # fmt: skip
    for number, (model, config) in enumerate(wrong.values()):
        add_onnx(folder, f"wrong{number}", model, config=config)
    (add_onnx(folder, "missing", scale_model(), config=ROWS_OF_THREE) / "1" / "model.onnx").unlink()
    damaged = add_onnx(folder, "damaged", scale_model(), config=ROWS_OF_THREE)
    (damaged / "1" / "model.onnx").write_bytes(b"\x08\x07no")
    with pytest.raises(ServingError) as caught, running_server(folder, log_path=tmp_path / "log"):
        pass
    text = str(caught.value)
    reasons = [f"model wrong{number}: {reason}" for number, reason in enumerate(wrong)]
    for reason in (*reasons, "model missing: ", "model damaged: ONNX Runtime cannot load"):
        assert reason in text
    assert "\n" not in text
