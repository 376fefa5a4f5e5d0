"""Rows of several tensors, text, lengths that vary and derived tensors on the real server, by stock clients."""

import asyncio
import dataclasses
import json
import shutil
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton

from orchestrator.decision import AnsweredRows
from orchestrator.planner.replay import replay
from orchestrator.repository.check import check
from orchestrator.repository.render import render
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec, Limits
from orchestrator.spec.answer import ANSWER_COLUMNS
from tests.bls.kinds import DERIVING, KINDS, Kind
from tests.bls.test_exactly_once import RECORDS, ROWS, WIDTH, K, plan
from tests.served.asking import ask_tensors, client_of, refused, tensors_of
from tests.served.fixtures import metrics_of
from tests.servers import running_server

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]

SEVERAL, LENGTHS, DERIVED = (next(kind for kind in KINDS if kind.name == name)
                             for name in ("several tensors", "lengths", "derived later"))  # fmt: skip
MEMBER = f"""
import json
import numpy as np
import triton_python_backend_utils as pb


def numbers(texts):
    return np.array([[float(word) for word in text.split(b",")] for text in texts[:, 0]], np.float32)


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.names = [one["name"] for one in config["input"]]
        self.place = int(config["parameters"]["place"]["string_value"])

    def execute(self, requests):
        return [self.answered(one) for one in requests]

    def answered(self, request):
        given = {{one: pb.get_input_tensor_by_name(request, one).as_numpy() for one in self.names}}
        if "input_ids" in given:
            assert given["input_ids"].shape == given["mask"].shape
            rows = given["input_ids"][:, :{WIDTH}]
        else:
            rows = numbers(given["text"]) if "text" in given else given["pixels"]
        said = np.ascontiguousarray(rows[:, self.place * {K} : (self.place + 1) * {K}], np.float32)
        return pb.InferenceResponse([pb.Tensor("logits", said)])
"""
# The last number of a text, which tells the deriving model to misbehave.
FAIL, FEWER, ODD, LESS = ORDERS = range(90, 94)
TOKENS = (
    f"FAIL, FEWER, ODD, LESS = {list(ORDERS)}"
    + """
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.derived(one) for one in requests]

    def derived(self, request):
        texts = pb.get_input_tensor_by_name(request, "words").as_numpy()[:, 0]
        try:
            rows = [[float(word) for word in text.split(b",")] for text in texts]
        except ValueError:
            return pb.InferenceResponse([], pb.TritonError("no numbers"))
        order = max(row[-1] for row in rows)
        if order == FAIL:
            raise RuntimeError("out of order")
        if order == FEWER:
            rows = rows[1:] or rows * 2
        rows = [row + [7.0] * (int(sum(map(abs, row)) * 10) % 4) for row in rows]
        longest = max(map(len, rows))
        ids = np.array([row + [-1.0] * (longest - len(row)) for row in rows], np.float32)
        mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
        ids = ids.astype(np.int32 if order == ODD else np.float32)
        tensors = [pb.Tensor("input_ids", ids), pb.Tensor("mask", mask)]
        return pb.InferenceResponse(tensors[: 1 if order == LESS else 2])
"""
)
GONE, GONE_CASCADE = "gone_tokens", "without_tokens"
TYPES = {"text": ("STRING", 1), "pixels": ("FP32", WIDTH), "input_ids": ("FP32", -1), "mask": ("INT64", -1)}


def write(repository: Path, name: str, code: str, inputs: str, outputs: str, place: int = 0) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(code)
    (folder.parent / "config.pbtxt").write_text(
        f'backend: "python" max_batch_size: 8 {inputs} {outputs} instance_group [{{ kind: KIND_CPU count: 1 }}]'
        f' parameters {{ key: "place" value {{ string_value: "{place}" }} }} dynamic_batching {{}}'
    )


def tensor(side: str, name: str, dtype: str, size: int) -> str:
    return f'{side} [{{ name: "{name}" data_type: TYPE_{dtype} dims: [{size}] }}]'


def spec_of(kind: Kind) -> CascadeSpec:
    """A cascade, whose members other cascades have too: each process of Python takes its time to start."""
    spec, name = planned(kind), kind.name.replace(" ", "_")
    spec = spec.with_members(lambda one: dataclasses.replace(one, name=f"{'_'.join(one.inputs)}_{one.name}"))
    return dataclasses.replace(spec, name=name, limits=Limits(max_batch_size=32, max_deferred_rows=512))


def planned(kind: Kind) -> CascadeSpec:
    return dataclasses.replace(kind.plan(plan("error"), WIDTH), gears=None)


@cache
def replayed() -> dict[str, AnsweredRows]:
    return {kind.name: replay(planned(kind), RECORDS) for kind in (SEVERAL, LENGTHS, DERIVED)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    repository = tmp_path_factory.mktemp("tensors")
    outputs = tensor("output", "logits", "FP32", K)
    made = "".join(tensor("output", name, *TYPES[name]) for name in ("input_ids", "mask"))
    write(repository, DERIVING, TOKENS, tensor("input", "words", "STRING", 1), made)
    for kind in (SEVERAL, LENGTHS, DERIVED):
        spec = spec_of(kind)
        for place, member in enumerate(spec.members):
            if (repository / member.name).exists():
                continue
            inputs = "".join(tensor("input", name, *TYPES[name]) for name in member.inputs)
            write(repository, member.name, MEMBER, inputs, outputs, place)
        render(spec, repository)
    write(repository, GONE, TOKENS, tensor("input", "words", "STRING", 1), made)
    lost = spec_of(DERIVED)
    lost = dataclasses.replace(lost, name=GONE_CASCADE, derived=(dataclasses.replace(lost.derived[0], name=GONE),))
    render(lost, repository)
    report = check(repository)
    assert report, report.faults
    shutil.rmtree(repository / GONE)
    with running_server(repository) as running:
        yield running


async def ask(client: triton.InferenceServerClient, kind: Kind, given: dict[str, np.ndarray]) -> dict[str, Any]:
    return await ask_tensors(client, kind.name.replace(" ", "_"), given)


def assert_replayed(kind: Kind, rows: list[int], found: dict[str, Any]) -> None:
    for name in ANSWER_COLUMNS:
        expected = getattr(replayed()[kind.name], name)[rows].reshape(len(rows), -1)
        np.testing.assert_array_equal(found[name], expected, err_msg=f"{kind.name} {name} of rows {rows}")


@pytest.mark.parametrize("kind", [SEVERAL, LENGTHS, DERIVED], ids=lambda kind: kind.name)
def test_64_requests_in_flight_get_what_replay_says_and_bad_ones_fail_alone(
    server: EmbeddedServer, kind: Kind
) -> None:
    draws = np.random.default_rng(3)
    asked = [draws.integers(0, len(ROWS), draws.integers(1, 5)).tolist() for _ in range(128)]
    bad = BAD[kind.name]

    async def run() -> None:
        async with client_of(server.grpc_address) as client:
            turns = asyncio.Semaphore(64)

            async def one(number: int, rows: list[int]) -> None:
                async with turns:
                    if number % 8 == 0:
                        given, code, words = bad[number // 8 % len(bad)]
                        assert_said(await refused(ask(client, kind, given)), code, words)
                    assert_replayed(kind, rows, await ask(client, kind, kind.tensors(ROWS[rows])))

            await asyncio.gather(*(one(number, rows) for number, rows in enumerate(asked)))

    asyncio.run(run())
    metrics = metrics_of(server, kind.name.replace(" ", "_"))
    assert metrics["failed_rows_total"] > 0
    if kind is not SEVERAL:
        values, filling = (
            sum(value for key, value in metrics.items() if key.startswith(name))
            for name in ("values_total", "padding_values_total")
        )
        assert 0 <= filling < values / 2


def assert_said(said: tuple[str, str], code: str, words: str) -> None:
    assert said[0] == code, said
    assert words in said[1], said


def ordered(order: int) -> dict[str, np.ndarray]:
    """A text that stage 0 is unsure of, and that makes the deriving model misbehave."""
    return DERIVED.tensors(np.array([[0.0] * (WIDTH - 1) + [order]], np.float32))


TEXTS = SEVERAL.tensors(ROWS[:2])
LONG = {name: array.repeat(3, axis=1) for name, array in LENGTHS.tensors(ROWS[:1]).items()}
ONE = LENGTHS.tensors(ROWS[:1])
# Tensors of a request, the code of its error, and words of it.
Bad = tuple[dict[str, np.ndarray], str, str]
BAD: dict[str, list[Bad]] = {
    SEVERAL.name: [
        ({**TEXTS, "x": TEXTS["x"][:1]}, "INVALID_ARGUMENT", "batch size"),
        ({"text": TEXTS["text"]}, "INVALID_ARGUMENT", "expected 2 inputs but got 1"),
        ({**TEXTS, "more": TEXTS["x"]}, "INVALID_ARGUMENT", "expected 2 inputs but got 3"),
        ({**TEXTS, "x": TEXTS["x"] * np.float32("nan")}, "INVALID_ARGUMENT", "input x: got NaN or infinity in 2"),
        ({**TEXTS, "x": TEXTS["x"][:, :4]}, "INVALID_ARGUMENT", "shape"),
        ({**TEXTS, "text": TEXTS["text"].repeat(2, axis=1)}, "INVALID_ARGUMENT", "shape"),
        ({**TEXTS, "text": np.array([[b"\xff"], [b""]], object)}, "INVALID_ARGUMENT", "member text_small"),
    ],
    LENGTHS.name: [
        (LONG, "INVALID_ARGUMENT", "expected at most 13, the last of its buckets"),
        ({**ONE, "mask": ONE["mask"][:, :0]}, "INVALID_ARGUMENT", "shape"),
        ({**ONE, "ids": np.full_like(ONE["ids"], np.inf)}, "INVALID_ARGUMENT", "input ids: got NaN or infinity"),
    ],
    DERIVED.name: [
        ({"text": np.array([[b"no numbers"]], object)}, "INVALID_ARGUMENT", "member text_small"),
        ({"text": np.array([[b"\xff\xfe"]], object)}, "INVALID_ARGUMENT", "member text_small"),
        (ordered(FAIL), "INVALID_ARGUMENT", "tokens: "),
        (ordered(FEWER), "INVALID_ARGUMENT", "tokens: "),
        (ordered(ODD), "INVALID_ARGUMENT", "tokens: "),
        (ordered(LESS), "INVALID_ARGUMENT", "tokens: answered without its output mask"),
    ],
}


def test_without_its_deriving_model_a_cascade_answers_what_needs_none(server: EmbeddedServer) -> None:
    exits = replayed()[DERIVED.name].exit_stage
    easy, hard = np.flatnonzero(exits == 0)[:8], np.flatnonzero(exits > 0)[:8]

    async def run() -> None:
        async with client_of(server.grpc_address) as client:
            asked = [
                client.infer(GONE_CASCADE, tensors_of(DERIVED.tensors(ROWS[[row]]))) for row in (*easy, *hard)
            ]
            found = await asyncio.gather(*asked, return_exceptions=True)
        for row, answer in zip(easy, found, strict=False):
            assert answer.as_numpy("label").tolist() == [[replayed()[DERIVED.name].label[row]]]
        for error in found[len(easy) :]:
            assert error.status() == "StatusCode.UNAVAILABLE"
            assert f"{GONE}: " in error.message()
            assert error.message().endswith("try again")

    asyncio.run(run())


def test_a_text_of_10_mb_is_refused_in_one_short_line(server: EmbeddedServer) -> None:
    async def run() -> None:
        async with client_of(server.grpc_address) as client:
            said = await refused(ask(client, DERIVED, {"text": np.array([[b"x" * 10_000_000]], object)}))
            assert_said(said, "INVALID_ARGUMENT", "member text_small")

    asyncio.run(run())


def test_strings_come_by_http_json_too(server: EmbeddedServer) -> None:
    rows = [0, 1]
    texts = [text.decode() for text in DERIVED.tensors(ROWS[rows])["text"][:, 0]]
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": texts}]}
    url = f"http://{server.http_address}/v2/models/derived_later/infer"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as response:
        outputs = {one["name"]: one["data"] for one in json.load(response)["outputs"]}
    assert outputs["label"] == replayed()[DERIVED.name].label[rows].tolist()
