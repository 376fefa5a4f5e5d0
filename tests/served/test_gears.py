"""Gears on the real server: rows decided as by replay, shifted to under a standing queue, left again after it."""

import asyncio

import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient

from orchestrator.decision import Policy
from orchestrator.spec.answer import GEARED
from tests.served.asking import ask, client_of, refusal
from tests.served.fixtures import Offline, ServedRepository, counters_of, metrics_of

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]

# The member takes 64 rows at once: after the batches that set out before the gate is shut, several more wait.
WAITERS = 400


@pytest.mark.parametrize("gear", [0, 1, 2])
def test_a_named_gear_answers_every_row_as_replay_does(testbed: ServedRepository, gear: int) -> None:
    rows = np.arange(256)

    async def asked() -> object:
        async with client_of(testbed.server.grpc_address) as client:
            return await ask(client, "geared_cascade", testbed.images[rows], gear=gear)

    offline = Offline(testbed.specs["geared_cascade"], testbed.records, Policy(gear=gear))
    assert len(offline.wrong(asyncio.run(asked()), rows)) == 0
    assert (offline.answers.status & GEARED).any() == (gear > 0)


def test_a_gear_the_plan_has_not_is_refused(testbed: ServedRepository) -> None:
    async def asked() -> tuple[str, str]:
        async with client_of(testbed.server.grpc_address) as client:
            return await refusal(client, "geared_cascade", testbed.images[:1], gear=3)

    code, message = asyncio.run(asked())
    assert code == "INVALID_ARGUMENT"
    assert "0 to 2" in message


def test_a_standing_queue_shifts_to_a_cheaper_gear_and_an_empty_one_back(testbed: ServedRepository) -> None:
    hard = testbed.easy_and_hard()[1]
    waiters = np.resize(hard, WAITERS)
    cheaper = Offline(testbed.specs["geared_cascade"], testbed.records, Policy(gear=1))
    sure_when_cheaper = np.flatnonzero((cheaper.answers.exit_stage == 0) & ~cheaper.near)
    row = np.intersect1d(hard, sure_when_cheaper)[0]

    async def exit_of(client: InferenceServerClient, row: np.intp, **parameters: int) -> int:
        answer = await ask(client, "geared_gated", testbed.images[[row]], **parameters)
        return int(answer.exit_stage[0])

    def all_deferred() -> bool:
        return (
            counters_of(testbed.server, "geared_gated")["deferred_total 0"] >= before["deferred_total 0"] + WAITERS
        )

    async def asked() -> list[int]:
        async with client_of(testbed.server.grpc_address) as client:
            with testbed.closed("gated") as gate:
                # They name gear 0, so that all of them wait whatever the first few do to it.
                waiting = [asyncio.create_task(exit_of(client, row, gear=0)) for row in waiters]
                async with asyncio.timeout(30):
                    while not all_deferred():
                        await asyncio.sleep(0.1)
                await asyncio.sleep(0.2)
                gate.touch()
                assert set(await asyncio.gather(*waiting)) == {1}
            # A request that finds nothing waiting takes one step back; a slow machine may take one forth again.
            exits = [await exit_of(client, row)]
            while exits[-1] == 0 and len(exits) < 50:
                exits.append(await exit_of(client, row))
            return exits

    before = metrics_of(testbed.server, "geared_gated")
    exits = asyncio.run(asked())
    after = metrics_of(testbed.server, "geared_gated", until=lambda now: now["gear"] == 0)
    assert exits[0] == 0, "the cheaper gear answers at stage 0"
    assert exits[-1] == 1, "the dearer gear defers it again"
    shifts = [after[name] - before[name] for name in ("gear_shifts_total cheaper", "gear_shifts_total dearer")]
    assert shifts[0] == shifts[1] >= 3
