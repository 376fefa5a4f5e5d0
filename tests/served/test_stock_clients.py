"""What users of Triton do with its own Python clients, against the committed cascade, unchanged."""

import queue
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from tests.served.fixtures import Offline, ServedRepository

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]
MODEL = "digits_cascade"
OUTPUTS = {
    "probabilities": ("FP32", 10),
    "label": ("INT64", 1),
    "confidence": ("FP32", 1),
    "exit_stage": ("INT32", 1),
    "cost": ("FP32", 1),
    "status": ("INT32", 1),
}


@pytest.fixture(scope="module")
def grpc(testbed: ServedRepository) -> Iterator[grpcclient.InferenceServerClient]:
    with grpcclient.InferenceServerClient(testbed.server.grpc_address) as client:
        yield client


@pytest.fixture(scope="module")
def http(testbed: ServedRepository) -> Iterator[httpclient.InferenceServerClient]:
    with httpclient.InferenceServerClient(testbed.server.http_address, concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def rows(testbed: ServedRepository) -> npt.NDArray[np.float32]:
    return testbed.images[:5]


@pytest.fixture(scope="module")
def expected(testbed: ServedRepository) -> list[int]:
    labels: list[int] = Offline(testbed.specs[MODEL], testbed.records).answers.label[:5].tolist()
    return labels


def grpc_inputs(rows: npt.NDArray[np.float32]) -> list[grpcclient.InferInput]:
    tensor = grpcclient.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def http_inputs(rows: npt.NDArray[np.float32], *, binary: bool = True) -> list[httpclient.InferInput]:
    tensor = httpclient.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


def check_all(result: grpcclient.InferResult | httpclient.InferResult, expected: list[int]) -> None:
    for name, (_, width) in OUTPUTS.items():
        assert result.as_numpy(name).shape == (len(expected), width)
    assert result.as_numpy("label")[:, 0].tolist() == expected


def test_the_server_and_the_model_say_they_are_live_and_ready(
    grpc: grpcclient.InferenceServerClient, http: httpclient.InferenceServerClient
) -> None:
    for client in (grpc, http):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert not client.is_model_ready("nobody")


def test_infer_over_grpc(
    grpc: grpcclient.InferenceServerClient, rows: npt.NDArray[np.float32], expected: list[int]
) -> None:
    result = grpc.infer(MODEL, grpc_inputs(rows), request_id="seven")
    check_all(result, expected)
    assert result.get_response().id == "seven"


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_infer_over_http(
    http: httpclient.InferenceServerClient, rows: npt.NDArray[np.float32], expected: list[int], binary: bool
) -> None:
    wanted = [httpclient.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    check_all(http.infer(MODEL, http_inputs(rows, binary=binary), outputs=wanted), expected)


def test_infer_over_http_without_naming_outputs(
    http: httpclient.InferenceServerClient, rows: npt.NDArray[np.float32], expected: list[int]
) -> None:
    check_all(http.infer(MODEL, http_inputs(rows)), expected)


def test_async_infer_over_grpc_calls_back_once_per_request(
    grpc: grpcclient.InferenceServerClient, testbed: ServedRepository
) -> None:
    came: queue.Queue[tuple[int, grpcclient.InferResult, Exception | None]] = queue.Queue()
    labels = Offline(testbed.specs[MODEL], testbed.records).answers.label
    for row in range(20):
        grpc.async_infer(
            MODEL,
            grpc_inputs(testbed.images[row : row + 1]),
            callback=lambda result, error, row=row: came.put((row, result, error)),
        )
    answers = [came.get(timeout=20) for _ in range(20)]
    assert {row for row, _, _ in answers} == set(range(20))
    for row, result, error in answers:
        assert error is None
        assert result.as_numpy("label")[0, 0] == labels[row]
    assert came.empty()


def test_async_infer_over_http(http: httpclient.InferenceServerClient, testbed: ServedRepository) -> None:
    labels = Offline(testbed.specs[MODEL], testbed.records).answers.label
    under_way = [http.async_infer(MODEL, http_inputs(testbed.images[row : row + 1])) for row in range(8)]
    assert [one.get_result().as_numpy("label")[0, 0] for one in under_way] == labels[:8].tolist()


def test_metadata_names_the_served_interface(
    grpc: grpcclient.InferenceServerClient, http: httpclient.InferenceServerClient
) -> None:
    over_grpc = grpc.get_model_metadata(MODEL, as_json=True)
    over_http = http.get_model_metadata(MODEL)
    for described in (over_grpc, over_http):
        assert described["name"] == MODEL
        shape = [int(size) for size in described["inputs"][0]["shape"]]
        assert (described["inputs"][0]["name"], described["inputs"][0]["datatype"], shape) == (
            "image",
            "FP32",
            [-1, 1, 8, 8],
        )
        found = {one["name"]: (one["datatype"], int(one["shape"][1])) for one in described["outputs"]}
        assert found == OUTPUTS


def test_config_tells_the_limit_and_that_it_is_not_decoupled(
    grpc: grpcclient.InferenceServerClient, http: httpclient.InferenceServerClient
) -> None:
    for config in (grpc.get_model_config(MODEL, as_json=True)["config"], http.get_model_config(MODEL)):
        assert config["max_batch_size"] == 256
        assert config["backend"] == "python"
        assert not config.get("model_transaction_policy", {}).get("decoupled", False)


def test_statistics_count_every_request(
    grpc: grpcclient.InferenceServerClient, http: httpclient.InferenceServerClient, rows: npt.NDArray[np.float32]
) -> None:
    def successes(at_least: int = 0) -> int:
        """Their number once it is so large and stays: Triton counts a request after it has answered it."""
        seen, deadline_s = -1, time.monotonic() + 20
        while time.monotonic() < deadline_s:
            stats = http.get_inference_statistics(MODEL)["model_stats"][0]["inference_stats"]
            now = int(stats["success"]["count"])
            if now == seen >= at_least:
                break
            seen = now
            time.sleep(0.3)
        return now

    before = successes()
    for _ in range(3):
        grpc.infer(MODEL, grpc_inputs(rows))
    assert successes(before + 3) == before + 3
    told = grpc.get_inference_statistics(MODEL, as_json=True)["model_stats"][0]
    assert int(told["inference_stats"]["success"]["count"]) == before + 3


def test_classification_gives_value_index_and_label_of_the_best_three(
    grpc: grpcclient.InferenceServerClient, http: httpclient.InferenceServerClient, testbed: ServedRepository
) -> None:
    row = testbed.images[:1]
    probabilities = grpc.infer(MODEL, grpc_inputs(row)).as_numpy("probabilities")[0]
    labels = testbed.specs[MODEL].labels or ()
    best = np.argsort(-probabilities, kind="stable")[:3].tolist()
    wanted = [grpcclient.InferRequestedOutput("probabilities", class_count=3)]
    over_grpc = grpc.infer(MODEL, grpc_inputs(row), outputs=wanted).as_numpy("probabilities")
    wanted = [httpclient.InferRequestedOutput("probabilities", class_count=3)]
    over_http = http.infer(MODEL, http_inputs(row), outputs=wanted).as_numpy("probabilities")
    for words in (over_grpc, over_http):
        assert words.shape == (1, 3)
        for word, index in zip(words[0], best, strict=True):
            value, number, label = word.decode().split(":")
            assert (int(number), label) == (index, labels[index])
            assert float(value) == pytest.approx(float(probabilities[index]), abs=1e-5)


def test_only_the_outputs_asked_for_come_back(
    grpc: grpcclient.InferenceServerClient, http: httpclient.InferenceServerClient, testbed: ServedRepository
) -> None:
    easy, hard = testbed.easy_and_hard(MODEL)
    # An easy request is answered at once and a hard one later, by different code.
    for row in (easy[:1], hard[:1]):
        outputs = [grpcclient.InferRequestedOutput(name) for name in ("label", "cost")]
        result = grpc.infer(MODEL, grpc_inputs(testbed.images[row]), outputs=outputs)
        assert sorted(one.name for one in result.get_response().outputs) == ["cost", "label"]
        told = http.infer(
            MODEL, http_inputs(testbed.images[row]), outputs=[httpclient.InferRequestedOutput("exit_stage")]
        )
        assert [one["name"] for one in told.get_response()["outputs"]] == ["exit_stage"]
