"""What every client does, whatever carries it."""

import time

import numpy as np
import pytest

from orchestrator.decision import Policy
from orchestrator.errors import (
    InputError,
    RefusedError,
    ServerFaultError,
    TimeLimitError,
    UnavailableError,
    UnknownModelError,
)
from tests.client.asking import KINDS, client_of, served
from tests.fakes.kserve import IMAGE, FakeKServe, Slot, cascade, images, logits_of, member

pytestmark = pytest.mark.parametrize("kind", KINDS)


def test_a_cascade_answers_rows_in_order(kind: str) -> None:
    fake = FakeKServe([cascade()])
    with served(kind, fake) as address, client_of(kind, address) as client:
        answers = client.infer("digits_cascade", images([7, 18, 29]))
    assert answers.label.tolist() == [7, 8, 9]
    assert answers.exit_stage.tolist() == [0, 1, 2]
    assert answers.cost.tolist() == [1000, 2000, 3000]
    assert answers.probabilities.shape == (3, 10)
    dtypes = [getattr(answers, name).dtype.name for name in ("probabilities", "label", "confidence")]
    assert dtypes == ["float32", "int64", "float32"]
    assert [answers.exit_stage.dtype.name, answers.cost.dtype.name] == ["int32", "float32"]


def test_the_policy_travels_as_request_parameters_and_only_where_it_differs(kind: str) -> None:
    fake = FakeKServe([cascade()])
    policy = Policy(min_stage=1, max_stage=1, threshold_shift=0.5, deadline_us=70_000)
    with served(kind, fake) as address, client_of(kind, address) as client:
        answers = client.infer("digits_cascade", images([7, 29]), policy=policy)
        client.infer("digits_cascade", images([7]))
    assert answers.exit_stage.tolist() == [1, 1]
    assert answers.status.tolist() == [0, 8]
    assert fake.calls[0].parameters == {
        "min_stage": 1,
        "max_stage": 1,
        "threshold_shift": 0.5,
        "deadline_us": 70_000,
    }
    assert fake.calls[1].parameters == {}


def test_a_request_over_the_limit_is_split_answered_in_order_and_bounded(kind: str) -> None:
    fake = FakeKServe([cascade(max_batch_size=4)], delay_s=0.05)
    keys = np.arange(30)
    with served(kind, fake) as address, client_of(kind, address, in_flight=3) as client:
        answers = client.infer("digits_cascade", images(keys))
    assert answers.label.tolist() == (keys % 10).tolist()
    assert answers.exit_stage.tolist() == (keys // 10).tolist()
    sizes = [len(call.rows) for call in fake.calls]
    assert max(sizes) <= 4
    assert len(sizes) == 8
    assert fake.most_at_once == 3


def test_one_refused_part_refuses_the_whole_request(kind: str) -> None:
    fake = FakeKServe([cascade(max_batch_size=2)])
    rows = images(range(8))
    rows[5] = np.nan
    with (
        served(kind, fake) as address,
        client_of(kind, address) as client,
        pytest.raises(RefusedError, match="NaN"),
    ):
        client.infer("digits_cascade", rows)


def test_a_plain_member_is_answered_from_its_logits(kind: str) -> None:
    fake = FakeKServe([member()])
    with served(kind, fake) as address, client_of(kind, address) as client:
        answers = client.infer("digits_small", images([3, 24]))
    assert answers.label.tolist() == [3, 4]
    assert answers.confidence == pytest.approx(np.exp(4) / (np.exp(4) + 9))
    assert answers.probabilities.sum(axis=1) == pytest.approx(1)
    for column in (answers.exit_stage, answers.cost, answers.status):
        assert column.tolist() == [0, 0]


def test_ask_gives_a_members_scores_untouched_across_parts(kind: str) -> None:
    fake = FakeKServe([member(max_batch_size=2)])
    rows = images(range(7))
    with served(kind, fake) as address, client_of(kind, address) as client:
        scores = client.ask("digits_small", rows)
    assert scores.dtype == np.float32
    assert np.array_equal(scores, logits_of(rows))


def test_outputs_nobody_needs_are_not_asked_for(kind: str) -> None:
    extra = Slot("features", "FP32", (4, 4))
    wide = member(
        "wide",
        outputs=(Slot("logits", "FP32", (10,)), extra),
        answer=lambda rows, p: {"logits": logits_of(rows), "features": np.zeros((len(rows), 4, 4), np.float32)},
    )
    fake = FakeKServe([wide, cascade()])
    with served(kind, fake) as address, client_of(kind, address) as client:
        client.infer("wide", images([1]))
        client.infer("digits_cascade", images([1]))
        client.ask("digits_cascade", images([1]))
    assert [call.outputs for call in fake.calls] == [("logits",), (), ("probabilities",)]


def test_metadata_is_asked_once_and_again_after_a_refusal(kind: str) -> None:
    fake = FakeKServe([cascade()])
    with served(kind, fake) as address, client_of(kind, address) as client:
        for _ in range(3):
            client.infer("digits_cascade", images([1]))
        assert fake.described == 1
        with pytest.raises(RefusedError):
            client.infer("digits_cascade", images([1]) * np.nan)
        client.infer("digits_cascade", images([1]))
        assert fake.described == 2
        info = client.metadata("digits_cascade")
    assert (info.max_batch_size, info.dims, info.inputs[0].name) == (8, IMAGE.dims, "image")


def test_config_is_the_servers_own(kind: str) -> None:
    fake = FakeKServe([cascade(max_batch_size=16)])
    with served(kind, fake) as address, client_of(kind, address) as client:
        config = client.config("digits_cascade")
    assert (config["name"], int(config["max_batch_size"])) == ("digits_cascade", 16)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (images([1]).astype(np.float64), "got dtype float64, expected float32"),
        (images([1])[0], r"add the batch axis"),
        (images([1])[:, :, :4], r"got shape \[1, 1, 4, 8\], expected \[n, 1, 8, 8\]"),
        (np.zeros((1, 3, 8, 8), np.float32), r"got shape \[1, 3, 8, 8\]"),
        (images([]), "empty batch"),
    ],
)
def test_rows_that_do_not_fit_are_never_sent(kind: str, rows: np.ndarray, text: str) -> None:
    fake = FakeKServe([cascade()])
    with (
        served(kind, fake) as address,
        client_of(kind, address) as client,
        pytest.raises(InputError, match=text) as caught,
    ):
        client.infer("digits_cascade", rows)
    assert "\n" not in str(caught.value)
    assert fake.calls == []


def test_unavailable_is_tried_again_and_nothing_else_is(kind: str) -> None:
    fake = FakeKServe([member()])
    with served(kind, fake) as address, client_of(kind, address, retries=3) as client:
        fake.fail_next(3, "UNAVAILABLE")
        assert client.infer("digits_small", images([4])).label.tolist() == [4]
        assert len(fake.calls) == 4
        for code, leaf in (("INTERNAL", ServerFaultError), ("INVALID_ARGUMENT", RefusedError)):
            fake.fail_next(1, code)
            with pytest.raises(leaf, match="asked to fail"):
                client.infer("digits_small", images([4]))
    assert len(fake.calls) == 6


def test_retries_end_after_the_last_one_with_the_servers_words(kind: str) -> None:
    fake = FakeKServe([member()])
    with served(kind, fake) as address, client_of(kind, address, retries=2) as client:
        fake.fail_next(9, message="member resting")
        with pytest.raises(UnavailableError, match=r"digits_small at .* got member resting"):
            client.infer("digits_small", images([4]))
    assert len(fake.calls) == 3


def test_retries_stay_within_the_time_limit(kind: str) -> None:
    fake = FakeKServe([member()])
    with served(kind, fake) as address, client_of(kind, address, retries=1000, timeout_s=0.5) as client:
        client.metadata("digits_small")
        fake.fail_next(1000)
        start = time.monotonic()
        with pytest.raises((UnavailableError, TimeLimitError)):
            client.infer("digits_small", images([4]))
    assert time.monotonic() - start < 1.5


def test_a_slow_answer_passes_the_time_limit(kind: str) -> None:
    fake = FakeKServe([member()])
    with served(kind, fake) as address, client_of(kind, address, timeout_s=0.3) as client:
        client.metadata("digits_small")
        fake.delay_s = 1.5
        start = time.monotonic()
        with pytest.raises(TimeLimitError, match="digits_small"):
            client.infer("digits_small", images([4]))
        assert time.monotonic() - start < 1.2
        # The connection given up must not cost the next request its answer.
        fake.delay_s = 0
        assert client.infer("digits_small", images([5])).label.tolist() == [5]


def test_an_unknown_model_is_named(kind: str) -> None:
    with (
        served(kind, FakeKServe([member()])) as address,
        client_of(kind, address) as client,
        pytest.raises(UnknownModelError, match="nobody"),
    ):
        client.infer("nobody", images([1]))


def test_nobody_listening_is_unavailable_and_not_ready(kind: str) -> None:
    with client_of(kind, "127.0.0.1:9", retries=0, timeout_s=5) as client:
        assert not client.ready()
        with pytest.raises(UnavailableError, match="check that the server runs") as caught:
            client.infer("digits_small", images([1]))
    assert caught.value.__cause__ is not None


def test_readiness_is_the_servers_and_the_models(kind: str) -> None:
    fake = FakeKServe([member()])
    with served(kind, fake) as address, client_of(kind, address) as client:
        assert client.ready()
        assert client.ready("digits_small")
        assert not client.ready("nobody")
        fake.ready = False
        assert not client.ready()


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":8001", "localhost:port", "localhost:99999", ""])
def test_an_address_without_a_port_is_refused(kind: str, address: str) -> None:
    with pytest.raises(InputError, match="server address"):
        client_of(kind, address)
