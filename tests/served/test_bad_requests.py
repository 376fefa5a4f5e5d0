"""A bad request gets one clear line and its own code, and harms nobody, least of all those in its batch."""

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from orchestrator.cli.batch import REFUSED
from orchestrator.planner.replay import replay
from tests.batch.fixtures import Batching
from tests.served.asking import ask, client_of, refusal, until
from tests.served.fixtures import ServedRepository, pending_of, sure_labels

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]
GOOD = np.zeros((1, 1, 8, 8), np.float32)
BAD_PARAMETERS: list[dict[str, Any]] = [
    {"speed": 1},
    {"min_stage": -1},
    {"max_stage": 2},
    {"min_stage": 1, "max_stage": 0},
    {"min_stage": "all"},
    {"threshold_shift": 1.5},
    {"deadline_us": 0},
]


def spoilt(value: float, rows: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    array = np.zeros((rows, 1, 8, 8), np.float32)
    array[rows - 1, 0, 4, 4] = value
    return array


def post(testbed: ServedRepository, parameters: bytes) -> tuple[int, str]:
    """Asks over HTTP with parameters as they stand, which no client would send; returns what was said."""
    zeros = b", ".join([b"0"] * 64)
    tensor = b'{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [' + zeros + b"]}"
    request = urllib.request.Request(
        f"http://{testbed.server.http_address}/v2/models/gated_first/infer",
        data=b'{"inputs": [' + tensor + b'], "parameters": ' + parameters + b"}",
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("deferred", [False, True], ids=["all_sure", "some_deferred"])
def test_bad_requests_in_one_batch_with_good_ones_fail_alone(testbed: ServedRepository, deferred: bool) -> None:
    async def asked() -> None:
        async with client_of(testbed.server.grpc_address) as client:
            before = await batches_of(client)
            waiting = len(BAD_PARAMETERS) * 2 + 4
            # While this one waits at the gate, Triton gathers the others into one batch.
            plug = asyncio.create_task(ask(client, "gated_first", testbed.images[:1]))
            await until(lambda: testbed.arrived("first") == 1, "the first request at the door")
            good, bad = [], []
            for index, parameters in enumerate(BAD_PARAMETERS):
                rows = testbed.images[5 * index : 5 * index + index % 3 + 1]
                deferring = {"min_stage": 1} if deferred and index % 2 else {}
                good.append((rows, asyncio.create_task(ask(client, "gated_first", rows, **deferring))))
                bad.append(asyncio.create_task(refusal(client, "gated_first", rows, **parameters)))
            for value in (np.nan, np.inf, -np.inf):
                bad.append(asyncio.create_task(refusal(client, "gated_first", spoilt(value))))
            garbled = asyncio.create_task(asyncio.to_thread(post, testbed, b'{"gear": "\xff\xfe"}'))
            await until(lambda: pending_of(testbed.server, "gated_first") == waiting, "the others in the queue")
            gate.touch()
            await plug
            status, said = await garbled
            assert status == 400
            assert "UTF-8" in said
            assert ".py" not in said
            for index, (rows, answer) in enumerate(good):
                found = await answer
                assert found.label.tolist() == sure_labels(rows).tolist()
                assert set(found.exit_stage.tolist()) == {1 if deferred and index % 2 else 0}
            for code, _ in await asyncio.gather(*bad):
                assert code == "INVALID_ARGUMENT"
            after = await batches_of(client, at_least=sum(before.values()) + 2)
        # All good rows reached the first member in one call: the bad ones were in that batch, not beside it.
        merged = sum(len(rows) for rows, _ in good)
        assert after.get(merged, 0) - before.get(merged, 0) == 1
        assert sum(after.values()) - sum(before.values()) == 2

    with testbed.closed("first") as gate:
        asyncio.run(asyncio.wait_for(asked(), 40))


async def batches_of(client: Any, *, at_least: int = 0) -> dict[int, int]:
    """How many calls of each size the first member has answered, once they are so many and stay so for a while.

    Triton counts a call after it has answered it.
    """
    seen: dict[int, int] | None = None
    for _ in range(100):
        told = await client.get_inference_statistics("first", as_json=True)
        stats = told["model_stats"][0].get("batch_stats", [])
        now = {int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in stats}
        if now == seen and sum(now.values()) >= at_least:
            return now
        seen = now
        await asyncio.sleep(0.3)
    raise AssertionError(f"got {seen}, expected {at_least} calls")


def test_a_batch_of_bad_requests_alone_is_refused_too(testbed: ServedRepository) -> None:
    async def asked() -> list[tuple[str, str]]:
        async with client_of(testbed.server.grpc_address) as client:
            return await asyncio.gather(
                *(refusal(client, "digits_cascade", GOOD, speed=number) for number in range(64))
            )

    for code, message in asyncio.run(asked()):
        assert code == "INVALID_ARGUMENT"
        for known in ("speed", "min_stage", "max_stage", "threshold_shift", "deadline_us"):
            assert known in message


def test_the_protocols_own_parameters_are_not_refused(testbed: ServedRepository) -> None:
    tensor = grpcclient.InferInput("image", [1, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(GOOD)
    with grpcclient.InferenceServerClient(testbed.server.grpc_address) as client:
        result = client.infer("digits_cascade", [tensor], priority=1, timeout=20_000_000)
    assert result.as_numpy("label").shape == (1, 1)


def test_a_row_that_is_not_finite_is_named(testbed: ServedRepository) -> None:
    async def asked() -> tuple[str, str]:
        async with client_of(testbed.server.grpc_address) as client:
            return await refusal(client, "digits_cascade", spoilt(np.nan, rows=7))

    code, message = asyncio.run(asked())
    assert code == "INVALID_ARGUMENT"
    assert "1 of 7 rows, first row 6" in message


@pytest.mark.parametrize(
    ("rows", "dtype", "model", "code", "says"),
    [
        (GOOD.astype(np.float64), "FP64", "digits_cascade", "INVALID_ARGUMENT", ("FP64", "FP32")),
        (GOOD[0], "FP32", "digits_cascade", "INVALID_ARGUMENT", ("[1,8,8]", "[-1,1,8,8]")),
        (GOOD[:, 0], "FP32", "digits_cascade", "INVALID_ARGUMENT", ("[1,8,8]", "[-1,1,8,8]")),
        (np.zeros((1, 3, 8, 8), np.float32), "FP32", "digits_cascade", "INVALID_ARGUMENT", ("[1,3,8,8]",)),
        (np.zeros((0, 1, 8, 8), np.float32), "FP32", "digits_cascade", "INVALID_ARGUMENT", ("image", "got 0")),
        (np.zeros((257, 1, 8, 8), np.float32), "FP32", "digits_cascade", "INVALID_ARGUMENT", ("<= 256",)),
        (GOOD, "FP32", "nobody", "NOT_FOUND", ("nobody",)),
    ],
    ids=["dtype", "rank", "no_channel_axis", "channels", "empty", "over_the_limit", "unknown_model"],
)
def test_what_does_not_fit_the_interface_is_one_clear_code(
    testbed: ServedRepository, rows: Any, dtype: str, model: str, code: str, says: tuple[str, ...]
) -> None:
    tensor = grpcclient.InferInput("image", list(rows.shape), dtype)
    tensor.set_data_from_numpy(rows)
    with grpcclient.InferenceServerClient(testbed.server.grpc_address) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, [tensor], client_timeout=20)
        assert client.is_model_ready("digits_cascade")
    assert str(caught.value.status()) == f"StatusCode.{code}"
    message = str(caught.value.message())
    assert "\n" not in message
    for part in says:
        assert part in message


def test_an_input_of_another_name_is_refused_by_name(testbed: ServedRepository) -> None:
    tensor = grpcclient.InferInput("picture", [1, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(GOOD)
    with (
        grpcclient.InferenceServerClient(testbed.server.grpc_address) as client,
        pytest.raises(InferenceServerException, match="picture") as caught,
    ):
        client.infer("digits_cascade", [tensor], client_timeout=20)
    assert str(caught.value.status()) == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("stored", ["lists", "columns"])
def test_bad_rows_of_a_table_are_refused_by_row_and_all_others_answered(
    testbed: ServedRepository, tmp_path: Path, capsys: pytest.CaptureFixture[str], stored: str
) -> None:
    job = Batching(None, SimpleNamespace(address=testbed.server.grpc_address), tmp_path, capsys)
    (tmp_path / "repository").symlink_to(testbed.repository)
    good = [image.ravel().tolist() for image in testbed.images[:6]]

    def with_cell(value: object) -> list[object]:
        return [*good[0][:9], value, *good[0][10:]]

    bad = {
        "null": with_cell(None),
        "expected a number that float32 holds": with_cell("many"),
        "got 1e+300": with_cell(1e300),
        "NaN or infinity": with_cell(float("nan")),
        "expected the model's [1, 8, 8]": [1.0, 2.0],
        "got null, expected a value in every row": None,
    }
    if stored == "columns":
        # A row of other cells is one of other columns, which are null.
        bad = {words: cells for words, cells in bad.items() if cells is not None and len(cells) == 64}
    rows = [*good[:2], *bad.values(), *good[2:]]
    names = [f"p{place}" for place in range(64)]
    lines = ({"image": cells} if stored == "lists" else dict(zip(names, cells, strict=True)) for cells in rows)
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"image": \n'
    (tmp_path / "in.jsonl").write_text(text)
    options = () if stored == "lists" else ("--columns", ",".join(names))
    said = job.batch("in.jsonl", "out.npz", *options, code=REFUSED)
    assert f"6 of {len(rows) + 1} rows answered, {len(bad) + 1} refused" in said
    places = [*range(2), *range(2 + len(bad), len(rows))]
    answers = job.answers()
    assert answers["id"] == places
    known = replay(testbed.specs["digits_cascade"], testbed.records)
    assert answers["label"] == known.label[:6].tolist()
    reasons = job.refused()
    for place, words in enumerate([*bad, "no JSON"], 2):
        reason = reasons[place if words != "no JSON" else len(rows)]
        assert words in reason
        assert "\n" not in reason
    (tmp_path / "out.npz").unlink()
    # What holds for every row is one line, and nothing is written.
    (tmp_path / "in.jsonl").write_text(json.dumps({"pixels": good[0], "other": 1}) + "\n")
    assert "expected a column image" in job.batch("in.jsonl", "out.npz", code=2)
    assert not (tmp_path / "out.npz").exists()
