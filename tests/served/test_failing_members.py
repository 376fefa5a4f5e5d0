"""A later member that fails: who needs it hears which one, everybody else is answered."""

import asyncio

import numpy as np
import numpy.typing as npt
import pytest

from tests.served.asking import ask, client_of, refusal, until
from tests.served.fixtures import BREAK, SPOIL, Offline, ServedRepository, counters_of, metrics_of, sure_labels

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]


def marked(rows: npt.NDArray[np.float32], mark: float) -> npt.NDArray[np.float32]:
    """The rows with a mark in their corner; a request with them names min_stage 1, so that all are deferred."""
    copy = rows.copy()
    copy[:, 0, 0, 0] = mark
    return copy


@pytest.mark.parametrize(
    ("model", "mark", "says", "expected"),
    [
        ("moody_cascade", BREAK, "stage 1 member moody: ", "INVALID_ARGUMENT"),
        ("lost_cascade", 0.0, "stage 1 member lost: ", "UNAVAILABLE"),
    ],
    ids=["refuses_these_rows", "is_not_there"],
)
def test_a_member_that_fails_is_named_and_easy_requests_are_answered(
    testbed: ServedRepository, model: str, mark: float, says: str, expected: str
) -> None:
    easy, hard = testbed.easy_and_hard()
    labels = Offline(testbed.specs["three_stages"], testbed.records).answers.label

    async def asked() -> None:
        async with client_of(testbed.server.grpc_address) as client:
            if model == "moody_cascade":
                await ask(client, model, testbed.images[hard[:1]])  # so that it is known to answer rows
            failing = [
                refusal(client, model, marked(testbed.images[[row]], mark), min_stage=1) for row in hard[:20]
            ]
            fine = [ask(client, model, testbed.images[[row]]) for row in easy[:20]]
            refused, answered = await asyncio.gather(asyncio.gather(*failing), asyncio.gather(*fine))
        for code, message in refused:
            assert code == expected
            assert message.startswith(says)
            assert message.endswith("try again") == (expected == "UNAVAILABLE")
        assert [int(one.label[0]) for one in answered] == labels[easy[:20]].tolist()
        assert {int(one.status[0]) for one in answered} == {0}

    asyncio.run(asked())


def test_one_hard_row_of_many_fails_its_whole_request_once(testbed: ServedRepository) -> None:
    easy, hard = testbed.easy_and_hard()
    rows = testbed.images[np.concatenate([easy[:5], hard[:1]])].copy()
    rows[-1, 0, 0, 0] = BREAK

    async def asked() -> tuple[str, str]:
        async with client_of(testbed.server.grpc_address) as client:
            await ask(client, "moody_cascade", testbed.images[hard[:1]])
            return await refusal(client, "moody_cascade", rows, min_stage=1)

    code, message = asyncio.run(asked())
    assert code == "INVALID_ARGUMENT"
    assert "moody" in message


def test_a_row_with_an_output_of_nan_fails_alone_among_those_asked_with_it(testbed: ServedRepository) -> None:
    hard = testbed.easy_and_hard()[1]

    async def asked() -> None:
        async with client_of(testbed.server.grpc_address) as client:
            # Two batches may be at the member already; what is sent after them shares a pool and then a batch.
            before = metrics_of(testbed.server, "moody_cascade")["deferred_total 0"]

            def deferred(rows: int) -> bool:
                return counters_of(testbed.server, "moody_cascade")["deferred_total 0"] >= before + rows

            plugs = [asyncio.create_task(ask(client, "moody_cascade", testbed.images[[row]])) for row in hard[:4]]
            await until(lambda: deferred(4), "the first rows at the member")
            fine = [asyncio.create_task(ask(client, "moody_cascade", testbed.images[[row]])) for row in hard[4:14]]
            bad = [
                asyncio.create_task(
                    refusal(client, "moody_cascade", marked(testbed.images[[row]], SPOIL), min_stage=1)
                )
                for row in hard[14:18]
            ]
            await until(lambda: deferred(18), "all rows in the pool")
            gate.touch()
            await asyncio.gather(*plugs)
            found = [int(one.label[0]) for one in await asyncio.gather(*fine)]
            assert found == sure_labels(testbed.images[hard[4:14]]).tolist()
            for code, message in await asyncio.gather(*bad):
                assert code == "UNAVAILABLE"
                assert message.startswith("stage 1 member moody: output holds NaN")

    with testbed.closed("moody") as gate:
        asyncio.run(asyncio.wait_for(asked(), 30))


@pytest.mark.parametrize("mark", [BREAK, SPOIL], ids=["answers_an_error", "answers_nan"])
def test_where_the_plan_says_answer_a_failure_is_an_answer_with_the_degraded_bit(
    testbed: ServedRepository, mark: float
) -> None:
    hard = testbed.easy_and_hard()[1]
    rows = marked(testbed.images[hard[:6]], mark)

    async def asked() -> None:
        async with client_of(testbed.server.grpc_address) as client:
            first = await ask(client, "lenient_cascade", rows, max_stage=0)
            answer = await ask(client, "lenient_cascade", rows, min_stage=1)
            whole = await ask(client, "lenient_cascade", testbed.images[hard[:6]])
        assert (answer.status & 1).tolist() == [1] * 6
        np.testing.assert_allclose(answer.probabilities, first.probabilities, atol=1e-5)
        assert answer.label.tolist() == first.label.tolist()
        assert whole.status.tolist() == [0] * 6
        assert whole.label.tolist() == sure_labels(testbed.images[hard[:6]]).tolist()

    asyncio.run(asked())
