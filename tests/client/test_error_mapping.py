import inspect
from http import HTTPStatus

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from orchestrator import errors
from orchestrator.client.error_mapping import OF_GRPC, error_from, leaf_from_status
from orchestrator.client.sync import RetryPolicy
from orchestrator.errors import (
    ChangedModelError,
    ClientError,
    RefusedError,
    ServerFaultError,
    TimeLimitError,
    TlsError,
    UnavailableError,
    UnknownModelError,
)


def from_triton(status: str | None, message: str = "no") -> ClientError:
    return error_from(InferenceServerException(message, status), what="model m at h:1")


def test_every_grpc_code_but_ok_has_its_own_entry() -> None:
    assert set(OF_GRPC) == {code.name for code in grpc.StatusCode} - {"OK"}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_grpc_code_becomes_a_leaf_with_the_servers_words(code: grpc.StatusCode) -> None:
    error = from_triton(str(code), "out of paper")
    assert type(error) is OF_GRPC[code.name]
    assert "model m at h:1" in str(error)
    assert "out of paper" in str(error)


def test_only_unavailable_and_what_a_dying_server_sends_become_what_is_retried() -> None:
    retried = {name for name, leaf in OF_GRPC.items() if issubclass(leaf, UnavailableError)}
    assert retried == {"UNAVAILABLE", "CANCELLED"}
    assert type(from_triton("499")) is UnavailableError


@pytest.mark.parametrize("status", [status for status in HTTPStatus if status >= 400])
def test_every_http_status_becomes_a_leaf(status: HTTPStatus) -> None:
    error = from_triton(str(status.value))
    assert type(error) is not ClientError
    known = (UnavailableError, TimeLimitError)
    fault = ServerFaultError if status >= 500 and status != 501 else RefusedError
    assert isinstance(error, (fault, *known))


@pytest.mark.parametrize(
    ("grpc_code", "http_status"),
    [
        ("INVALID_ARGUMENT", 400),
        ("NOT_FOUND", 404),
        ("UNAVAILABLE", 503),
        ("INTERNAL", 500),
        ("UNIMPLEMENTED", 501),
    ],
)
def test_a_mistake_is_the_same_leaf_over_either_protocol(grpc_code: str, http_status: int) -> None:
    assert leaf_from_status(f"StatusCode.{grpc_code}") is leaf_from_status(str(http_status))


@pytest.mark.parametrize(
    ("error", "leaf"),
    [
        (ConnectionRefusedError(111, "Connection refused"), UnavailableError),
        (ConnectionResetError("the server closed the connection"), UnavailableError),
        (TimeoutError("timed out"), TimeLimitError),
        (OSError(-2, "Name or service not known"), UnavailableError),
        (ValueError("Expected HTTP/"), ServerFaultError),
        (InferenceServerException("made up"), RefusedError),
        (InferenceServerException("made up", "StatusCode.FROM_THE_FUTURE"), ServerFaultError),
    ],
)
def test_failures_without_a_status_have_leaves_too(error: Exception, leaf: type[ClientError]) -> None:
    assert type(error_from(error, what="m")) is leaf


def test_no_leaf_of_the_client_is_unreachable() -> None:
    leaves = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, ClientError)} - {
        ClientError
    }
    # What is wrong with TLS is found by a connection of its own, see test_tls.py; a change of plan by comparison.
    assert leaves == {*OF_GRPC.values(), TlsError, ChangedModelError}
    assert UnknownModelError in leaves


def test_a_traceback_from_the_server_is_cut_off_and_the_rest_is_one_line() -> None:
    place = "\n\nAt:\n  /models/m/1/model.py(13): execute\n"
    text = "[request id: <id_unknown>] Failed, message: ValueError: boom" + place
    error = from_triton("StatusCode.INTERNAL", text)
    assert str(error) == "model m at h:1: got Failed, message: ValueError: boom"
    assert len(str(from_triton("500", "x" * 5000))) < 500


@pytest.mark.parametrize(
    "text",
    [
        "Request for unknown model: 'digits_cascade' has no available versions",
        "Server not ready",
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
        "Internal error from Core",
    ],
)
def test_a_server_that_is_stopping_is_worth_asking_again_under_whatever_code(text: str) -> None:
    error = InferenceServerException(text, status="StatusCode.NOT_FOUND")
    assert isinstance(error_from(error, what="model m"), UnavailableError)


def test_a_missed_deadline_is_not_worth_asking_again() -> None:
    text = "deadline passed before any stage had answered"
    error = InferenceServerException(text, status="StatusCode.UNAVAILABLE")
    assert isinstance(error_from(error, what="model m"), TimeLimitError)


FRACTION = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 50), FRACTION, st.floats(0, 10))
def test_a_pause_is_within_its_bounds_and_before_the_time_limit(
    attempt: int, jitter: float, elapsed: float
) -> None:
    policy = RetryPolicy(timeout_s=5, retries=8, first_delay_s=0.1, max_delay_s=1)
    pause = policy.delay_s(attempt, elapsed_s=elapsed, jitter=jitter)
    if attempt >= 8:
        assert pause is None
    if pause is not None:
        base = min(1, 0.1 * 2**attempt)
        # The largest jitter below 1 rounds to the bound itself.
        assert base * 0.5 <= pause <= base * 1.5
        assert elapsed + pause < 5


@given(st.integers(0, 6), FRACTION)
def test_pauses_double_until_the_longest(attempt: int, jitter: float) -> None:
    policy = RetryPolicy(timeout_s=1000, retries=100, first_delay_s=0.1, max_delay_s=1000)
    now = policy.delay_s(attempt, elapsed_s=0, jitter=jitter)
    later = policy.delay_s(attempt + 1, elapsed_s=0, jitter=jitter)
    assert now is not None
    assert later is not None
    assert abs(later / now - 2) < 1e-9


def test_no_retries_means_no_second_attempt() -> None:
    assert RetryPolicy(retries=0).delay_s(0, elapsed_s=0, jitter=0) is None
