import asyncio
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from orchestrator.errors import DataError, ServerFaultError
from perf.load.poisson import (
    TURNED_AWAY,
    WARM_S,
    FailedRequest,
    OpenLoop,
    PoissonLoad,
    message_from_rows,
    open_loop,
    outputs_from_bytes,
    poisson_arrivals,
    request_bytes,
    send_poisson,
    window_from_open_loop,
    with_parameter,
)


@given(st.floats(0.5, 300), st.floats(0.1, 20), st.integers(0, 1000))
def test_arrivals_ascend_within_the_window_and_follow_from_the_seed(
    rate: float, seconds: float, seed: int
) -> None:
    found = poisson_arrivals(rate, seconds=seconds, seed=seed)
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found < seconds)).all()
    np.testing.assert_array_equal(found, poisson_arrivals(rate, seconds=seconds, seed=seed))


def test_arrivals_are_poisson() -> None:
    gaps = np.diff(poisson_arrivals(100, seconds=200, seed=3))
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    # Exponential gaps have a standard deviation equal to their mean.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (-1.0, 1.0)])
def test_a_rate_or_time_of_nothing_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(DataError, match="above 0"):
        poisson_arrivals(rate, seconds=seconds, seed=0)


def test_a_slow_server_does_not_thin_out_the_load() -> None:
    """Each answer takes longer than the gap between requests; in a closed loop the last would leave late."""

    async def send(index: int) -> int:
        await asyncio.sleep(0.15)
        return index

    due_s = np.arange(30) * 0.01
    done = asyncio.run(open_loop(send, due_s))
    assert done.answers == list(range(30))
    assert np.median(done.lag_ms) < 20
    assert (done.lag_ms >= 0).all()
    assert (done.latency_ms >= 150).all()


def test_latency_counts_from_the_moment_a_request_was_due() -> None:
    """The loop is held up for 100 ms: nothing of that may disappear from the latencies."""

    async def send(index: int) -> None:
        if index == 0:
            time.sleep(0.1)

    done = asyncio.run(open_loop(send, np.array([0.0, 0.01])))
    assert done.latency_ms[1] >= 85
    assert done.lag_ms[1] >= 85


def test_what_is_not_answered_in_time_counts_as_unanswered() -> None:
    async def send(index: int) -> int:
        await asyncio.sleep(60 if index == 1 else 0)
        return index

    done = asyncio.run(open_loop(send, np.array([0.0, 0.001, 0.002]), drain_s=0.2))
    assert done.answers == [0, None, 2]
    assert np.isnan(done.done_s).tolist() == [False, True, False]


def test_a_fault_of_the_client_is_not_taken_for_a_slow_server() -> None:
    async def send(index: int) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(open_loop(send, np.array([0.0])))


def test_no_arrivals_are_no_load() -> None:
    assert asyncio.run(open_loop(lambda index: asyncio.sleep(0), np.zeros(0))).answers == []


def loop_of(due_s: list[float], latency_s: list[float], answers: list[object]) -> OpenLoop:
    due = np.array(due_s)
    return OpenLoop(due_s=due, sent_s=due + 0.001, done_s=due + np.array(latency_s), answers=answers)


def test_a_window_leaves_out_the_warm_up_and_counts_refusals_as_failed() -> None:
    refusal = FailedRequest(code="UNAVAILABLE", text="full")
    stages = [np.array([0]), np.array([1]), refusal, None, np.array([0])]
    done = loop_of(
        [0.1, WARM_S, WARM_S + 1, WARM_S + 2, WARM_S + 3], [9.0, 0.5, 0.1, float("nan"), 1.0], list(stages)
    )
    window = window_from_open_loop(done, batch=1, stages=stages)
    assert window.latency_ms == pytest.approx([500, 1000])
    assert window.failed == 2
    assert window.deferred is not None
    assert window.deferred.tolist() == [True, False]
    assert window.seconds == pytest.approx(4.0)
    assert window.lag_ms is not None
    assert len(window.lag_ms) == 4


def test_a_window_of_refusals_says_what_the_server_says() -> None:
    refusal = FailedRequest(code="NOT_FOUND", text="unknown model")
    done = loop_of([WARM_S], [0.1], [refusal])
    with pytest.raises(ServerFaultError, match="unknown model"):
        window_from_open_loop(done, batch=1, stages=[refusal])


class _SlowServer:
    """Takes a tenth of a second for each message and remembers how many it held at once."""

    def __init__(self, _: str) -> None:
        self.held = 0
        _SlowServer.most = 0

    async def __aenter__(self) -> "_SlowServer":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def send(self, _: bytes) -> bytes:
        self.held += 1
        _SlowServer.most = max(_SlowServer.most, self.held)
        await asyncio.sleep(0.1)
        self.held -= 1
        return b""


@pytest.mark.parametrize("bound", [1, 3, None])
def test_what_is_due_beyond_the_bound_is_turned_away_and_the_rest_is_sent(
    bound: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perf.load.poisson.RawClient", _SlowServer)
    load = PoissonLoad(model="m", address="a", rate=100, seconds=0.3 - WARM_S, seed=0, most_in_flight=bound)
    rows = np.zeros((3, 2), np.float32)
    done = asyncio.run(send_poisson(load, rows, input_name="x"))
    refused = sum(answer is TURNED_AWAY for answer in done.answers)
    assert refused + done.answers.count(b"") == len(done.answers)
    assert (refused > 0) == (bound is not None)
    assert bound is None or _SlowServer.most == bound


def test_messages_hold_their_row_and_the_next_ones_round_and_round() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    messages = request_bytes("m", rows, input_name="image", batch=2)
    assert len(messages) == 3
    last = service_pb2.ModelInferRequest.FromString(messages[2])
    assert (last.model_name, list(last.inputs[0].shape), last.inputs[0].datatype) == ("m", [2, 2], "FP32")
    np.testing.assert_array_equal(np.frombuffer(last.raw_input_contents[0], np.float32), [4, 5, 0, 1])


def test_a_parameter_is_added_to_a_ready_message_and_nothing_else_changes() -> None:
    plain = message_from_rows("m", np.ones((1, 2), np.float32), input_name="image", parameters={"gear": 1})
    message = service_pb2.ModelInferRequest.FromString(with_parameter(plain, "deadline_at_us", 1 << 50))
    assert message.parameters.pop("deadline_at_us").int64_param == 1 << 50
    assert message == service_pb2.ModelInferRequest.FromString(plain)


def test_answers_are_read_by_name() -> None:
    response = service_pb2.ModelInferResponse()
    for name, values in (("exit_stage", np.array([[1], [0]], np.int32)), ("cost", np.ones((2, 1), np.float32))):
        response.outputs.add(
            name=name, datatype="INT32" if values.dtype == np.int32 else "FP32", shape=values.shape
        )
        response.raw_output_contents.append(values.tobytes())
    found = outputs_from_bytes(response.SerializeToString(), ("exit_stage",))
    assert list(found) == ["exit_stage"]
    np.testing.assert_array_equal(found["exit_stage"], [[1], [0]])
    assert sorted(outputs_from_bytes(response.SerializeToString())) == ["cost", "exit_stage"]
