"""The served cascade answers what the offline replay of its plan answers, row for row, whatever the batching."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.client.over_grpc import AsyncGrpcClient
from orchestrator.decision import Policy
from tests.served.asking import ask, client_of, joined
from tests.served.fixtures import Lab, Offline, metrics_of

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
    lab: Lab, model: str, batches: list[npt.NDArray[np.intp]], **parameters: float
) -> tuple[SimpleNamespace, npt.NDArray[np.intp]]:
    """Answers to all batches, several under way at a time, and the rows they belong to."""
    gate = asyncio.Semaphore(CLIENTS)
    async with client_of(lab.server.grpc_address) as client:

        async def one(rows: npt.NDArray[np.intp]) -> SimpleNamespace:
            async with gate:
                return await ask(client, model, lab.images[rows], **parameters)

        parts = await asyncio.gather(*(one(rows) for rows in batches))
    return joined(list(parts)), np.concatenate(batches)


def check(lab: Lab, model: str, batches: list[npt.NDArray[np.intp]], policy: Policy | None = None) -> Offline:
    """Compares served and replayed answers, every column of them."""
    given = policy or Policy()
    parameters: dict[str, float] = {"min_stage": given.min_stage, "threshold_shift": given.threshold_shift}
    if given.max_stage is not None:
        parameters["max_stage"] = given.max_stage
    served, rows = asyncio.run(serve_all(lab, model, batches, **(parameters if policy else {})))
    offline = Offline(lab.specs[model], lab.records, policy)
    assert offline.near.mean() < 0.02
    wrong = offline.wrong(served, rows)
    assert wrong.tolist() == []
    return offline


def test_single_rows_are_answered_as_in_the_replay(lab: Lab) -> None:
    offline = check(lab, "digits_cascade", [np.array([row]) for row in range(len(lab.images))])
    assert len(np.unique(offline.answers.exit_stage)) > 1


@pytest.mark.parametrize("name", ["digits_cascade", "three_stages"])
def test_random_batches_are_answered_as_in_the_replay(lab: Lab, name: str) -> None:
    check(lab, name, random_batches(len(lab.images), 1))


def test_a_batch_larger_than_every_member_takes_is_cut_and_put_together_again(lab: Lab) -> None:
    order = np.random.default_rng(2).permutation(len(lab.images))
    check(lab, "digits_cascade", [order[:256], order[256:512], order[512:]])


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
def test_request_parameters_act_as_in_the_replay(lab: Lab, policy: Policy) -> None:
    offline = check(lab, "three_stages", random_batches(len(lab.images), 3), policy)
    plain = Offline(lab.specs["three_stages"], lab.records)
    assert (offline.answers.exit_stage != plain.answers.exit_stage).any()


@pytest.mark.parametrize("name", ["pair_mean_logit", "pair_mean_prob", "pair_vote", "pair_last"])
def test_members_asked_in_parallel_combine_as_in_the_replay(lab: Lab, name: str) -> None:
    offline = check(lab, name, random_batches(len(lab.images), 4))
    shares = np.bincount(offline.answers.exit_stage, minlength=2)
    assert (shares > 0).all()


def test_two_cascades_asked_at_once_answer_for_themselves_and_count_for_themselves(lab: Lab) -> None:
    names = ("digits_cascade", "three_stages")
    before = {name: metrics_of(lab.server, name) for name in names}

    async def both() -> list[tuple[SimpleNamespace, npt.NDArray[np.intp]]]:
        batches = random_batches(len(lab.images), 5)
        return await asyncio.gather(*(serve_all(lab, name, batches) for name in names))

    for name, (served, rows) in zip(names, asyncio.run(both()), strict=True):
        assert Offline(lab.specs[name], lab.records).wrong(served, rows).tolist() == []
    for name in names:
        wanted = before[name]["rows_total"] + len(lab.images)
        after = metrics_of(lab.server, name, until=lambda now, wanted=wanted: now["rows_total"] >= wanted)
        assert after["rows_total"] == wanted
        assert f"exits_total {len(lab.specs[name].stages) - 1}" in after
        assert f"exits_total {len(lab.specs[name].stages)}" not in after


def test_10000_mixed_requests_of_16_clients_get_10000_right_answers(lab: Lab) -> None:
    random = np.random.default_rng(6)
    batches = [random.integers(0, len(lab.images), size=size) for size in random.integers(1, 33, size=REQUESTS)]
    offline = Offline(lab.specs["digits_cascade"], lab.records)
    before = metrics_of(lab.server, "digits_cascade")
    answered, wrong = 0, []

    async def client(number: int) -> None:
        nonlocal answered
        async with AsyncGrpcClient(lab.server.grpc_address, retries=0) as asking:
            for rows in batches[number::CLIENTS]:
                answers = await asking.infer("digits_cascade", lab.images[rows])
                answered += 1
                wrong.extend(offline.wrong(answers, rows).tolist())

    async def everybody() -> None:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))

    asyncio.run(everybody())
    assert answered == REQUESTS
    assert wrong == []
    wanted = before["latency_us_count"] + REQUESTS
    after = metrics_of(lab.server, "digits_cascade", until=lambda now: now["latency_us_count"] >= wanted)
    counted = {key: after[key] - before[key] for key in after}
    assert counted["latency_us_count"] == REQUESTS
    assert sum(value for key, value in counted.items() if key.startswith("exits_total")) == sum(map(len, batches))
    assert counted["failed_rows_total"] == 0
