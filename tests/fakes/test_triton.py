import numpy as np
import pytest

from tests.fakes.triton import FakeTriton, InferenceResponse, Sender


def ask(fake: FakeTriton, model: str, rows: np.ndarray) -> InferenceResponse:
    tensor = fake.Tensor("x", rows)
    return fake.InferenceRequest(
        model_name=model, requested_output_names=["logits"], inputs=[tensor], preferred_memory=None
    ).exec()


def test_a_member_is_asked_and_the_call_is_remembered() -> None:
    fake = FakeTriton({"twice": lambda rows: rows * 2})
    answer = ask(fake, "twice", np.ones((3, 2), np.float32))
    assert np.array_equal(answer.column("logits"), np.full((3, 2), 2, np.float32))
    assert fake.asked == [("twice", 3)]


def test_what_a_member_said_is_gone_with_its_response() -> None:
    fake = FakeTriton({"same": lambda rows: rows})
    answer = ask(fake, "same", np.ones((1, 2), np.float32))
    view = answer.column("logits")
    del answer
    assert np.isnan(view).all()


def test_an_exception_in_a_member_and_an_unknown_member_become_errors() -> None:
    def broken(rows: np.ndarray) -> np.ndarray:
        raise ValueError("out of paper")

    fake = FakeTriton({"broken": broken})
    assert ask(fake, "broken", np.ones((1, 1))).error().message() == "out of paper"
    assert "not ready" in ask(fake, "nobody", np.ones((1, 1))).error().message()


def test_a_sender_takes_one_final_response_and_no_second() -> None:
    sender = Sender()
    with pytest.raises(RuntimeError, match="final"):
        sender.send(InferenceResponse())
    sender.send(InferenceResponse(), flags=1)
    with pytest.raises(RuntimeError, match="closed"):
        sender.send(InferenceResponse(), flags=1)


def test_counters_only_grow_and_total_sums_over_labels() -> None:
    fake = FakeTriton({})
    family = fake.MetricFamily(name="n", description="d", kind=fake.MetricFamily.COUNTER)
    family.Metric({"a": "1"}).increment(2)
    family.Metric({"a": "2"}).increment(3)
    assert (fake.total("n"), fake.total("n", a="2")) == (5, 3)
    with pytest.raises(ValueError, match="decrease"):
        family.Metric({"a": "1"}).increment(-1)
