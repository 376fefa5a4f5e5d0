"""Gears on the real server: judged as replay says, shifted to under a standing queue, left again after it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient

from orchestrator.decision import GEARED, Policy
from tests.served.asking import ask, client_of, refusal
from tests.served.lab import Lab, Offline, metrics_of

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]


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

    async def exit_of(client: InferenceServerClient, row: np.intp) -> int:
        return int((await ask(client, "geared_gated", lab.images[[row]])).exit_stage[0])

    async def asked() -> tuple[int, float, int]:
        async with client_of(lab.server.grpc_address) as client:
            with lab.closed("gated") as gate:
                waiting = [asyncio.create_task(exit_of(client, row)) for row in hard[:200]]
                await asyncio.sleep(1.0)
                gate.touch()
                first, *_ = await asyncio.gather(*waiting)
            during = metrics_of(lab.server, "geared_gated")
            # A request that finds nothing waiting takes one step back; a slow machine may take one forth again.
            tries = 1
            while await exit_of(client, hard[0]) == 0 and tries < 50:
                tries += 1
            return first, during["gear_shifts_total cheaper"], tries

    first, cheaper, tries = asyncio.run(asked())
    assert first == 1, "nobody had waited when it came"
    assert cheaper >= 1
    assert 1 < tries < 50
