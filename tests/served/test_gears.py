"""Gears on the real server: judged as replay says, shifted to under a standing queue, left again after it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient

from orchestrator.decision import GEARED, Policy
from tests.served.asking import ask, client_of, refusal
from tests.served.lab import Lab, Offline, counters_of, metrics_of

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]

# The member takes 64 rows at once: after the batches that set out before the gate is shut, several more wait.
WAITERS = 400


@pytest.mark.parametrize("gear", [0, 1, 2])
def test_a_named_gear_answers_every_row_as_replay_does(lab: Lab, gear: int) -> None:
    rows = np.arange(256)

    async def asked() -> object:
        async with client_of(lab.server.grpc_address) as client:
            return await ask(client, "geared_cascade", lab.images[rows], gear=gear)

    offline = Offline(lab.specs["geared_cascade"], lab.records, Policy(gear=gear))
    assert len(offline.wrong(asyncio.run(asked()), rows)) == 0
    assert (offline.answers.status & GEARED).any() == (gear > 0)


def test_a_gear_the_plan_has_not_is_refused(lab: Lab) -> None:
    async def asked() -> tuple[str, str]:
        async with client_of(lab.server.grpc_address) as client:
            return await refusal(client, "geared_cascade", lab.images[:1], gear=3)

    code, message = asyncio.run(asked())
    assert code == "INVALID_ARGUMENT"
    assert "0 to 2" in message


def test_a_standing_queue_shifts_to_a_cheaper_gear_and_an_empty_one_back(lab: Lab) -> None:
    hard = lab.easy_and_hard()[1]
    waiters = np.resize(hard, WAITERS)
    cheaper = Offline(lab.specs["geared_cascade"], lab.records, Policy(gear=1))
    sure_when_cheaper = np.flatnonzero((cheaper.answers.exit_stage == 0) & ~cheaper.near)
    row = np.intersect1d(hard, sure_when_cheaper)[0]

    async def exit_of(client: InferenceServerClient, row: np.intp) -> int:
        return int((await ask(client, "geared_gated", lab.images[[row]])).exit_stage[0])

    def all_deferred() -> bool:
        return counters_of(lab.server, "geared_gated")["deferred_total 0"] >= before["deferred_total 0"] + WAITERS

    async def asked() -> tuple[list[int], list[int], dict[str, float]]:
        async with client_of(lab.server.grpc_address) as client:
            with lab.closed("gated") as gate:
                waiting = [asyncio.create_task(exit_of(client, row)) for row in waiters]
                async with asyncio.timeout(30):
                    while not all_deferred():
                        await asyncio.sleep(0.1)
                await asyncio.sleep(0.2)
                gate.touch()
                first = await asyncio.gather(*waiting)
            during = metrics_of(lab.server, "geared_gated")
            # A request that finds nothing waiting takes one step back; a slow machine may take one forth again.
            tries = [await exit_of(client, row)]
            while tries[-1] == 0 and len(tries) < 50:
                tries.append(await exit_of(client, row))
            return first, tries, during

    before = metrics_of(lab.server, "geared_gated")
    first, tries, during = asyncio.run(asked())
    assert set(first) == {1}, "nobody had waited when they came"
    assert during["gear_shifts_total cheaper"] - before["gear_shifts_total cheaper"] == 2
    assert tries[0] == 0, "the cheaper gear answers at stage 0"
    assert tries[-1] == 1, "the dearer gear defers it again"
