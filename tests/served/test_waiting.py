"""A hard request waits for a slow member; easy ones and deadlines do not. The slow member waits at a gate."""

import asyncio
import time

import numpy as np
import pytest

from tests.served.asking import ask, client_of, refusal, until
from tests.served.fixtures import Offline, ServedRepository, counters_of, metrics_of, sure_labels

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]
MODEL = "gated_cascade"
CLIENTS = 16


def test_an_easy_request_sent_after_a_hard_one_is_answered_first_for_16_clients(testbed: ServedRepository) -> None:
    easy, hard = testbed.easy_and_hard()
    finished: list[str] = []

    async def client(number: int, sent: asyncio.Event) -> None:
        async with client_of(testbed.server.grpc_address) as asking:

            async def timed(kind: str, row: np.intp) -> None:
                answer = await ask(asking, MODEL, testbed.images[[row]])
                finished.append(kind)
                assert answer.exit_stage.tolist() == [0 if kind == "easy" else 1]
                if kind == "hard":
                    assert answer.label.tolist() == sure_labels(testbed.images[[row]]).tolist()

            late = asyncio.create_task(timed("hard", hard[number]))
            await sent.wait()
            await timed("easy", easy[number])
            await late

    async def everybody() -> None:
        sent = asyncio.Event()
        before = metrics_of(testbed.server, MODEL)["deferred_total 0"]
        clients = [asyncio.create_task(client(number, sent)) for number in range(CLIENTS)]
        await until(
            lambda: counters_of(testbed.server, MODEL)["deferred_total 0"] == before + CLIENTS,
            "hard rows deferred",
        )
        assert finished == []
        sent.set()
        while len(finished) < CLIENTS and not any(one.done() for one in clients):
            await asyncio.sleep(0.01)
        assert finished == ["easy"] * CLIENTS
        gate.touch()
        await asyncio.gather(*clients)

    with testbed.closed("gated") as gate:
        asyncio.run(asyncio.wait_for(everybody(), 30))
    assert finished == ["easy"] * CLIENTS + ["hard"] * CLIENTS


def test_one_request_with_easy_and_hard_rows_keeps_its_order(testbed: ServedRepository) -> None:
    easy, hard = testbed.easy_and_hard()
    rows = np.stack([easy[:10], hard[:10]], axis=1).ravel()

    async def asked() -> None:
        async with client_of(testbed.server.grpc_address) as client:
            answer = await ask(client, MODEL, testbed.images[rows])
        offline = Offline(testbed.specs["three_stages"], testbed.records).answers
        assert answer.exit_stage.tolist() == [0, 1] * 10
        assert answer.label[::2].tolist() == offline.label[easy[:10]].tolist()
        assert answer.label[1::2].tolist() == sure_labels(testbed.images[hard[:10]]).tolist()

    asyncio.run(asked())


def test_at_its_deadline_a_row_answers_with_what_is_known_and_the_gate_stays_shut(
    testbed: ServedRepository,
) -> None:
    row = testbed.easy_and_hard()[1][:1]
    first, last = (stage.cost for stage in testbed.specs[MODEL].stages)

    async def asked() -> None:
        async with client_of(testbed.server.grpc_address) as client:
            begun_s = time.monotonic()
            patient = asyncio.create_task(ask(client, MODEL, testbed.images[row]))
            answer = await ask(client, MODEL, testbed.images[row], deadline_us=300_000)
            taken_s = time.monotonic() - begun_s
            assert not gate.exists()
            assert not patient.done()
            gate.touch()
            later = await patient
        assert 0.29 <= taken_s < 1.5
        assert (answer.status.tolist(), answer.exit_stage.tolist()) == ([2], [0])
        assert answer.confidence[0] < testbed.specs[MODEL].stages[0].threshold
        assert answer.probabilities[0].sum() == pytest.approx(1, abs=1e-5)
        assert (later.status.tolist(), later.exit_stage.tolist()) == ([0], [1])
        # Asked at once, so charged for, though nobody waited for its answer.
        assert answer.cost.tolist() == [np.float32(first + last)]

    with testbed.closed("gated") as gate:
        asyncio.run(asyncio.wait_for(asked(), 30))


def test_a_deadline_that_passes_before_any_answer_is_unavailable(testbed: ServedRepository) -> None:
    async def asked() -> None:
        async with client_of(testbed.server.grpc_address) as client:
            begun_s = time.monotonic()
            code, message = await refusal(client, "gated_first", testbed.images[:1], deadline_us=300_000)
            assert time.monotonic() - begun_s < 1.5
            assert not gate.exists()
            assert code == "UNAVAILABLE"
            assert message.startswith("deadline passed")
            gate.touch()
            answer = await ask(client, "gated_first", testbed.images[:3], deadline_us=20_000_000)
            assert answer.label.tolist() == sure_labels(testbed.images[:3]).tolist()
            assert answer.status.tolist() == [0, 0, 0]

    with testbed.closed("first") as gate:
        asyncio.run(asyncio.wait_for(asked(), 30))
