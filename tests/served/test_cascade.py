"""The served cascade answers what the offline replay of its plan answers, row for row, whatever the batching."""

import asyncio
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.client.over_grpc import AsyncGrpcClient
from orchestrator.decision import Policy
from tests.served.asking import ask, client_of, joined
from tests.served.fixtures import Offline, ServedRepository, metrics_of

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]
CLIENTS = 16
REQUESTS = 10_000


def random_batches(rows: int, seed: int) -> list[npt.NDArray[np.intp]]:
    """Every row once, shuffled and cut into batches of 1 to 32."""
    random = np.random.default_rng(seed)
    order = random.permutation(rows)
    cuts = np.cumsum(random.integers(1, 33, size=rows))
    return [part for part in np.split(order, cuts[cuts < rows]) if len(part)]


async def serve_all(
    testbed: ServedRepository, model: str, batches: list[npt.NDArray[np.intp]], **parameters: float
) -> tuple[SimpleNamespace, npt.NDArray[np.intp]]:
    """Answers to all batches, several under way at a time, and the rows they belong to."""
    gate = asyncio.Semaphore(CLIENTS)
    async with client_of(testbed.server.grpc_address) as client:

        async def one(rows: npt.NDArray[np.intp]) -> SimpleNamespace:
            async with gate:
                return await ask(client, model, testbed.images[rows], **parameters)

        parts = await asyncio.gather(*(one(rows) for rows in batches))
    return joined(list(parts)), np.concatenate(batches)


def check(
    testbed: ServedRepository, model: str, batches: list[npt.NDArray[np.intp]], policy: Policy | None = None
) -> Offline:
    """Compares served and replayed answers, every column of them."""
    given = policy or Policy()
    parameters: dict[str, float] = {"min_stage": given.min_stage, "threshold_shift": given.threshold_shift}
    if given.max_stage is not None:
        parameters["max_stage"] = given.max_stage
    served, rows = asyncio.run(serve_all(testbed, model, batches, **(parameters if policy else {})))
    offline = Offline(testbed.specs[model], testbed.records, policy)
    assert offline.near.mean() < 0.02
    wrong = offline.wrong(served, rows)
    assert wrong.tolist() == []
    return offline


def test_single_rows_are_answered_as_in_the_replay(testbed: ServedRepository) -> None:
    offline = check(testbed, "digits_cascade", [np.array([row]) for row in range(len(testbed.images))])
    assert len(np.unique(offline.answers.exit_stage)) > 1


@pytest.mark.parametrize("name", ["digits_cascade", "three_stages"])
def test_random_batches_are_answered_as_in_the_replay(testbed: ServedRepository, name: str) -> None:
    check(testbed, name, random_batches(len(testbed.images), 1))


def test_a_batch_larger_than_every_member_takes_is_cut_and_put_together_again(testbed: ServedRepository) -> None:
    order = np.random.default_rng(2).permutation(len(testbed.images))
    check(testbed, "digits_cascade", [order[:256], order[256:512], order[512:]])


@pytest.mark.parametrize(
    "policy",
    [
        Policy(min_stage=1),
        Policy(min_stage=2),
        Policy(max_stage=0),
        Policy(max_stage=1),
        Policy(min_stage=1, max_stage=1),
        Policy(threshold_shift=0.1),
        Policy(threshold_shift=-0.25),
        Policy(threshold_shift=1.0),
    ],
    ids=str,
)
def test_request_parameters_act_as_in_the_replay(testbed: ServedRepository, policy: Policy) -> None:
    offline = check(testbed, "three_stages", random_batches(len(testbed.images), 3), policy)
    plain = Offline(testbed.specs["three_stages"], testbed.records)
    assert (offline.answers.exit_stage != plain.answers.exit_stage).any()


@pytest.mark.parametrize("name", ["pair_mean_logit", "pair_mean_prob", "pair_vote", "pair_last"])
def test_members_asked_in_parallel_combine_as_in_the_replay(testbed: ServedRepository, name: str) -> None:
    offline = check(testbed, name, random_batches(len(testbed.images), 4))
    shares = np.bincount(offline.answers.exit_stage, minlength=2)
    assert (shares > 0).all()


def test_two_cascades_asked_at_once_answer_for_themselves_and_count_for_themselves(
    testbed: ServedRepository,
) -> None:
    names = ("digits_cascade", "three_stages")
    before = {name: metrics_of(testbed.server, name) for name in names}

    async def both() -> list[tuple[SimpleNamespace, npt.NDArray[np.intp]]]:
        batches = random_batches(len(testbed.images), 5)
        return await asyncio.gather(*(serve_all(testbed, name, batches) for name in names))

    for name, (served, rows) in zip(names, asyncio.run(both()), strict=True):
        assert Offline(testbed.specs[name], testbed.records).wrong(served, rows).tolist() == []
    for name in names:
        wanted = before[name]["rows_total"] + len(testbed.images)
        after = metrics_of(testbed.server, name, until=lambda now, wanted=wanted: now["rows_total"] >= wanted)
        assert after["rows_total"] == wanted
        assert f"exits_total {len(testbed.specs[name].stages) - 1}" in after
        assert f"exits_total {len(testbed.specs[name].stages)}" not in after


def test_10000_mixed_requests_of_16_clients_get_10000_right_answers(testbed: ServedRepository) -> None:
    random = np.random.default_rng(6)
    batches = [
        random.integers(0, len(testbed.images), size=size) for size in random.integers(1, 33, size=REQUESTS)
    ]
    offline = Offline(testbed.specs["digits_cascade"], testbed.records)
    before = metrics_of(testbed.server, "digits_cascade")
    answered, wrong = 0, []

    async def client(number: int) -> None:
        nonlocal answered
        async with AsyncGrpcClient(testbed.server.grpc_address, retries=0) as asking:
            for rows in batches[number::CLIENTS]:
                answers = await asking.infer("digits_cascade", testbed.images[rows])
                answered += 1
                wrong.extend(offline.wrong(answers, rows).tolist())

    async def everybody() -> None:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))

    asyncio.run(everybody())
    assert answered == REQUESTS
    assert wrong == []
    wanted = before["latency_us_count"] + REQUESTS
    after = metrics_of(testbed.server, "digits_cascade", until=lambda now: now["latency_us_count"] >= wanted)
    counted = {key: after[key] - before[key] for key in after}
    assert counted["latency_us_count"] == REQUESTS
    assert sum(value for key, value in counted.items() if key.startswith("exits_total")) == sum(map(len, batches))
    assert counted["failed_rows_total"] == 0
