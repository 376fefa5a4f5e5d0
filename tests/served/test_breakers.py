"""A member that fails every call is left alone by the cascades that ask it, and asked again when it works."""

import asyncio
import time

import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient

from orchestrator.bls.breaker import CLOSED, LEAST_CALLS, PROBE_S
from orchestrator.spec.answer import DEGRADED
from tests.served.asking import ask, client_of, refusal, until
from tests.served.fixtures import Offline, ServedRepository, counters_of, sure_labels

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]
STRICT, LENIENT = "moody_cascade", "lenient_cascade"


def figures(testbed: ServedRepository, name: str) -> list[float]:
    """A series of moody's breakers, by cascade."""
    found = (counters_of(testbed.server, model) for model in (STRICT, LENIENT))
    return [value for one in found for key, value in one.items() if key.startswith(name) and "moody" in key]


async def both_answer(client: InferenceServerClient, rows: np.ndarray) -> None:
    for model in (STRICT, LENIENT):
        answer = await ask(client, model, rows)
        assert (int(answer.label[0]), int(answer.status[0])) == (int(sure_labels(rows)[0]), 0)


async def both_leave_it_alone(testbed: ServedRepository, client: InferenceServerClient, rows: np.ndarray) -> None:
    calls, since_s = testbed.calls("moody"), time.monotonic()
    for _ in range(20):
        code, message = await refusal(client, STRICT, rows)
        assert code == "UNAVAILABLE"
        assert message.startswith("stage 1 member moody: not asked, most of its calls fail: ")
        degraded = await ask(client, LENIENT, rows)
        assert (int(degraded.status[0]), int(degraded.exit_stage[0])) == (DEGRADED, 0)
        assert degraded.cost[0] == testbed.specs[LENIENT].stages[0].cost
    probes = 2 * (1 + (time.monotonic() - since_s) / PROBE_S)
    assert testbed.calls("moody") - calls <= probes


def test_rows_are_refused_or_degraded_without_a_call_until_a_probe_is_answered(testbed: ServedRepository) -> None:
    easy, hard = testbed.easy_and_hard()
    labels = Offline(testbed.specs["three_stages"], testbed.records).answers.label
    rows = testbed.images[hard[:1]]

    async def asked() -> None:
        async with client_of(testbed.server.grpc_address) as client:
            await both_answer(client, rows)
            with testbed.failing("moody"):
                for _ in range(LEAST_CALLS + 20):  # calls of other tests may be in the window
                    await refusal(client, STRICT, rows)
                    await ask(client, LENIENT, rows)
                await both_leave_it_alone(testbed, client, rows)
                fine = await ask(client, STRICT, testbed.images[easy[:1]])
                assert int(fine.label[0]) == labels[easy[0]]
                await until(lambda: min(figures(testbed, "breaker_state")) > CLOSED, "metrics of open breakers")
            await until(lambda: max(figures(testbed, "breaker_state")) == CLOSED, "breakers that are closed")
            await both_answer(client, rows)

    asyncio.run(asked())
    assert min(figures(testbed, "breaker_opened_total")) >= 1
