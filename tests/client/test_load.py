from __future__ import annotations

import asyncio

import numpy as np

from orchestrator.client.load import closed_loop


def test_a_closed_loop_asks_every_row_once_and_keeps_order() -> None:
    inside, most = 0, 0

    async def ask(row: np.ndarray) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.001)
        inside -= 1
        return int(row[0, 0])

    result = asyncio.run(closed_loop(ask, np.arange(20.0)[:, None], concurrency=4))
    assert result.answers == list(range(20))
    assert most == 4
    assert (result.latency_ms > 0).all()
