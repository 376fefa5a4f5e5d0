from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from orchestrator.client.over_grpc import AsyncGrpcClient, GrpcClient, in_order
from orchestrator.errors import RefusedError, UnavailableError
from tests.fakes.kserve import FakeKServe, cascade, images, member
from tests.fakes.kserve_fronts import GrpcFront


def test_many_requests_of_one_event_loop_are_under_way_at_once() -> None:
    fake = FakeKServe([cascade()], delay_s=0.1)

    async def run(address: str) -> list[int]:
        async with AsyncGrpcClient(address) as client:
            answers = await asyncio.gather(*(client.infer("digits_cascade", images([key])) for key in range(20)))
        return [int(answer.label[0]) for answer in answers]

    with GrpcFront(fake) as front:
        assert asyncio.run(run(front.address)) == [key % 10 for key in range(20)]
    assert fake.most_at_once > 5


def test_one_client_serves_several_threads() -> None:
    fake = FakeKServe([cascade()], delay_s=0.02)
    labels: dict[int, list[int]] = {}

    with GrpcFront(fake) as front, GrpcClient(front.address) as client:

        def ask(key: int) -> None:
            labels[key] = client.infer("digits_cascade", images([key] * 3)).label.tolist()

        threads = [threading.Thread(target=ask, args=(key,)) for key in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert labels == {key: [key] * 3 for key in range(10)}


def test_a_client_can_be_made_before_there_is_a_loop_and_survives_its_server_coming_back() -> None:
    fake = FakeKServe([member()])
    front = GrpcFront(fake)
    client = AsyncGrpcClient(front.address, retries=20, timeout_s=20)

    async def run() -> list[int]:
        async with client:
            with front:
                first = await client.infer("digits_small", images([1]))
            async with AsyncGrpcClient(front.address, retries=0) as impatient:
                with pytest.raises(UnavailableError):
                    await impatient.infer("digits_small", images([1]))
            again = asyncio.create_task(client.infer("digits_small", images([2])))
            await asyncio.sleep(0.2)
            with GrpcFront(fake, front.port):
                return [int(first.label[0]), int((await again).label[0])]

    assert asyncio.run(run()) == [1, 2]


def test_a_cancelled_request_is_cancelled_and_not_translated() -> None:
    fake = FakeKServe([member()])

    async def run(address: str) -> None:
        async with AsyncGrpcClient(address) as client:
            await client.metadata("digits_small")
            fake.delay_s = 1
            task = asyncio.create_task(client.infer("digits_small", images([1])))
            while not fake.calls:
                await asyncio.sleep(0.005)
            task.cancel()
            await task

    with GrpcFront(fake) as front, pytest.raises(asyncio.CancelledError):
        asyncio.run(run(front.address))


def test_the_first_failure_stops_parts_that_have_not_begun() -> None:
    fake = FakeKServe([cascade(max_batch_size=1)], delay_s=0.05)
    rows = images(range(20))
    rows[0] = np.nan
    with GrpcFront(fake) as front, GrpcClient(front.address, in_flight=2) as client, pytest.raises(RefusedError):
        client.infer("digits_cascade", rows)
    assert len(fake.calls) < 8


def test_in_order_keeps_order_whatever_finishes_first() -> None:
    async def late(value: int) -> int:
        await asyncio.sleep(0.03 if value == 0 else 0)
        return value

    assert asyncio.run(in_order([lambda v=v: late(v) for v in range(5)], in_flight=2)) == [0, 1, 2, 3, 4]
