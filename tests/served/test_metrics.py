"""The committee's counters on the metrics port equal what was sent and answered."""

import asyncio

import numpy as np
import pytest

from orchestrator.bls.pieces import REPEATS
from tests.served.asking import ask, client_of, refusal
from tests.served.fixtures import BREAK, ServedRepository, metrics_of

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]


def test_counters_equal_what_was_sent(testbed: ServedRepository) -> None:
    easy, hard = testbed.easy_and_hard()
    first, last = (stage.cost for stage in testbed.specs["moody_cascade"].stages)
    broken = testbed.images[hard[:3]].copy()
    broken[:, 0, 0, 0] = BREAK

    async def asked() -> None:
        async with client_of(testbed.server.grpc_address) as client:
            for row in easy[:7]:
                await ask(client, "moody_cascade", testbed.images[[row]])
            await ask(client, "moody_cascade", testbed.images[np.concatenate([easy[:4], hard[:5]])])
            await ask(client, "moody_cascade", testbed.images[hard[:2]], max_stage=0)
            await refusal(client, "moody_cascade", broken, min_stage=1)
            await refusal(client, "moody_cascade", testbed.images[:4] * np.nan)
            await refusal(client, "moody_cascade", testbed.images[:2], speed=1)

    before = metrics_of(testbed.server, "moody_cascade")
    asyncio.run(asked())
    wanted = before["rows_total"] + 7 + 9 + 2 + 3
    after = metrics_of(testbed.server, "moody_cascade", until=lambda now: now["rows_total"] >= wanted)
    counted = {key: after[key] - before[key] for key in after}
    buckets = {key: counted.pop(key) for key in list(counted) if key.startswith("latency_us_bucket")}
    assert counted.pop("latency_us_sum") > 0
    assert counted == {
        "rows_total": 7 + 9 + 2 + 3,
        "exits_total 0": 7 + 4 + 2,
        "exits_total 1": 5,
        "deferred_total 0": 5 + 3,
        "status_total degraded": 0,
        "status_total deadline": 0,
        "status_total abstained": 0,
        "status_total capped": 2,
        "status_total geared": 0,
        "member_failures_total digits_small": 0,
        "member_failures_total moody": 3,
        "breaker_opened_total digits_small 0": 0,
        "breaker_opened_total moody 1": 0,
        "breaker_state digits_small 0": 0,
        "breaker_state moody 1": 0,
        "calls_given_up_total digits_small 0": 0,
        "calls_given_up_total moody 1": 0,
        "calls_out digits_small 0": 0,
        "calls_out moody 1": 0,
        "asked_again_total digits_small": 0,
        # All rows are of one request, so nothing is gained by halves of it.
        "asked_again_total moody": 1 + REPEATS,
        "failed_rows_total": 3 + 4 + 2,
        "table_full_rows_total": 0,
        "cost_total": 21 * first + 8 * last,
        "latency_us_count": 7 + 1 + 1 + 1,
    }
    assert buckets["latency_us_bucket +Inf"] == counted["latency_us_count"]
