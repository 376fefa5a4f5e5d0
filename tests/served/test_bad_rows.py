"""Rows that break a member's batch, on the real server: 16 clients at once, only requests with one fail."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tritonclient.grpc.aio as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from orchestrator.client.answers import ServedAnswers
from orchestrator.repository.render import render
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec, FusedPrefix, InputSpec, Limits, Member, Stage
from orchestrator.spec.answer import DEGRADED
from tests.onnx_models import model_of
from tests.served.asking import ask, client_of
from tests.served.fixtures import metrics_of
from tests.servers import running_server
from tests.serving.models import add_onnx

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]

K, CLIENTS, REQUESTS = 3, 16, 25
# A row: what the first member says, what the second says, and for each whether it cannot take the row.
WIDTH = 2 * K + 2
CONFIG = f"""
max_batch_size: 16
input [{{ name: "image" data_type: TYPE_FP32 dims: [{WIDTH}] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
dynamic_batching {{ max_queue_delay_microseconds: 2000 }}
output [
"""


def marked_model(**members: int) -> onnx.ModelProto:
    """One graph with an output per member, each named with its place; a mark of 1 is an index out of bounds."""
    constants = {"table": np.zeros((1, 1), np.float32), "last": np.array([1])}
    nodes = []
    for name, place in members.items():
        ends = {"start": place * K, "end": place * K + K, "mark": 2 * K + place, "after": 2 * K + place + 1}
        constants |= {f"{name}_{key}": np.array([value]) for key, value in ends.items()}
        nodes += [
            helper.make_node("Slice", ["image", f"{name}_start", f"{name}_end", "last"], [f"{name}_says"]),
            helper.make_node("Slice", ["image", f"{name}_mark", f"{name}_after", "last"], [f"{name}_marks"]),
            helper.make_node("Squeeze", [f"{name}_marks", "last"], [f"{name}_flat"]),
            helper.make_node("Cast", [f"{name}_flat"], [f"{name}_index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", f"{name}_index"], [f"{name}_zero"]),
            helper.make_node("Add", [f"{name}_says", f"{name}_zero"], [name]),
        ]
    outputs = {name: ["n", K] for name in members}
    return model_of(nodes, {"image": ["n", WIDTH]}, outputs, constants, opset=17, ir=8)


def spec_of(
    name: str, *stages: tuple[str, ...], on_failure: str = "error", fused_prefix: FusedPrefix | None = None
) -> CascadeSpec:
    made = tuple(
        Stage(
            members=tuple(Member(name=one, output=one, cost=1.0 + place, max_batch_size=16) for one in members),
            threshold=0.9 if place < len(stages) - 1 else None,
            on_failure=on_failure,
        )
        for place, members in enumerate(stages)
    )
    return CascadeSpec(
        name=name,
        inputs=(InputSpec(name="image", dtype="FP32", dims=(WIDTH,)),),
        classes=K,
        combine="last",
        stages=made,
        fused_prefix=fused_prefix,
        limits=Limits(max_batch_size=64),
    )


SPECS = {
    spec.name: spec
    for spec in (
        spec_of("two_stages", ("first",), ("second",)),
        spec_of("pair", ("first", "twin"), ("second",)),
        spec_of(
            "leading", ("first",), ("second",), fused_prefix=FusedPrefix(name="both", stages=2, max_batch_size=16)
        ),
        spec_of("lenient", ("first",), ("second",), on_failure="answer"),
        spec_of("lost", ("first",), ("gone",)),
    )
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    repository: Path = tmp_path_factory.mktemp("bad_rows") / "repository"
    repository.mkdir()
    both = {"first": 0, "second": 1}
    own = {name: {name: place} for name, place in (("first", 0), ("twin", 0), ("second", 1), ("gone", 1))}
    for name, members in {**own, "both": both}.items():
        entries = ", ".join(f'{{ name: "{one}" data_type: TYPE_FP32 dims: [{K}] }}' for one in members)
        add_onnx(repository, name, marked_model(**members), config=f"{CONFIG} {entries} ]")
    for spec in SPECS.values():
        render(spec, repository, standalone=True)
    shutil.rmtree(repository / "gone")
    with running_server(repository) as running:
        yield running


def requests_from(seed: int) -> list[npt.NDArray[np.float32]]:
    """Requests of 1 to 4 rows: sure at stage 0 or not, one in ten with a mark for either member."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(REQUESTS):
        rows = np.zeros((int(random.integers(1, 5)), WIDTH), np.float32)
        for row in rows:
            hard = random.random() < 0.4
            row[random.integers(K)] = 0.1 if hard else 9.0
            row[K + random.integers(K)] = 9.0
            if random.random() < 0.1:
                row[2 * K + int(hard)] = 1.0
        made.append(rows)
    return made


def expected(rows: npt.NDArray[np.float32]) -> SimpleNamespace:
    """Label, exit stage and mark by row, as each would be answered alone."""
    hard = rows[:, :K].max(axis=1) < 1
    label = np.where(hard, rows[:, K : 2 * K].argmax(axis=1), rows[:, :K].argmax(axis=1))
    marked = rows[:, 2 * K :].any(axis=1)
    return SimpleNamespace(hard=hard, label=label, marked=marked, exit_stage=hard.astype(int))


Asked = tuple[npt.NDArray[np.float32], ServedAnswers | InferenceServerException]


async def answers_to_all(server: EmbeddedServer, model: str) -> list[Asked]:
    """Every request of every client with its answer or its error; each client sends one after the other."""

    async def one_client(client: triton.InferenceServerClient, seed: int) -> list[Asked]:
        found: list[Asked] = []
        for rows in requests_from(seed):
            try:
                found.append((rows, await ask(client, model, rows)))
            except InferenceServerException as error:
                found.append((rows, error))
        return found

    async with client_of(server.grpc_address) as client:
        parts = await asyncio.gather(*(one_client(client, seed) for seed in range(CLIENTS)))
    return [one for part in parts for one in part]


@pytest.mark.parametrize("name", ["two_stages", "pair", "leading"])
def test_only_requests_with_a_marked_row_fail_and_all_others_are_right(server: EmbeddedServer, name: str) -> None:
    failed, codes = 0, list[str]()
    for rows, answer in asyncio.run(answers_to_all(server, name)):
        wanted = expected(rows)
        if wanted.marked.any():
            failed += 1
            assert isinstance(answer, InferenceServerException)
            codes.append(str(answer.status()))
            stage = int(wanted.hard[wanted.marked].all())
            text = f"stage {stage} member {('first', 'second')[stage]}: onnx runtime error 2: Non-zero status code"
            assert answer.message().startswith(text)
            continue
        assert not isinstance(answer, InferenceServerException), answer
        assert answer.label.tolist() == wanted.label.tolist()
        assert answer.exit_stage.tolist() == wanted.exit_stage.tolist()
        assert not answer.status.any()
    assert failed > 40
    assert set(codes) <= {"StatusCode.UNAVAILABLE", "StatusCode.INVALID_ARGUMENT"}
    # Whose fault it is cannot be told before a member has answered any row, nor in a large batch of bad rows.
    assert codes.count("StatusCode.INVALID_ARGUMENT") > 0.9 * failed
    counted = metrics_of(server, name)
    assert counted["asked_again_total first"] > 0, "no bad row ever met another: nothing was tested"
    assert counted["asked_again_total second"] > 0
    assert counted["failed_rows_total"] > 0


def test_where_the_plan_says_answer_only_marked_rows_are_degraded(server: EmbeddedServer) -> None:
    for rows, answer in asyncio.run(answers_to_all(server, "lenient")):
        wanted = expected(rows)
        assert not isinstance(answer, InferenceServerException), answer
        degraded = (answer.status & DEGRADED) != 0
        assert degraded.tolist() == wanted.marked.tolist()
        # What one stage cannot take, the other answers.
        assert answer.exit_stage.tolist() == (wanted.hard ^ wanted.marked).astype(int).tolist()
        fine = ~wanted.marked
        assert answer.label[fine].tolist() == wanted.label[fine].tolist()


def test_a_member_that_is_not_there_is_not_asked_again(server: EmbeddedServer) -> None:
    for rows, answer in asyncio.run(answers_to_all(server, "lost")):
        wanted = expected(rows)
        if wanted.hard.any() or wanted.marked.any():
            assert isinstance(answer, InferenceServerException)
            if not wanted.marked.any():
                assert answer.message().startswith("stage 1 member gone: ")
        else:
            assert not isinstance(answer, InferenceServerException), answer
    assert metrics_of(server, "lost")["asked_again_total gone"] == 0


async def answers_at_once(server: EmbeddedServer, model: str, rows: npt.NDArray[np.float32]) -> list[Asked]:
    """Each row as a request of its own, all in flight at the same time."""
    async with client_of(server.grpc_address) as client:
        asked = (ask(client, model, row[None]) for row in rows)
        answers = await asyncio.gather(*asked, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, InferenceServerException):
            raise answer
    return list(zip(rows[:, None], answers, strict=True))


@pytest.mark.parametrize("hard", [False, True], ids=["stage 0", "stage 1"])
def test_every_good_row_is_answered_however_many_of_its_batch_are_bad(server: EmbeddedServer, hard: bool) -> None:
    rows = np.zeros((320, WIDTH), np.float32)
    rows[:, 1] = 0.1 if hard else 9.0
    rows[:, K + 2] = 9.0
    # Every other row: no part of two rows or more is free of them.
    rows[::2, 2 * K + hard] = 1.0
    for asked, answer in asyncio.run(answers_at_once(server, "two_stages", rows)):
        if expected(asked).marked.any():
            assert isinstance(answer, InferenceServerException)
        else:
            assert not isinstance(answer, InferenceServerException), answer.message()
            assert answer.label.tolist() == [2 if hard else 1]
