"""The one place where foreign exceptions become ours, and whether a request that failed is sent again.

Callers write `raise error_from(error, what=...) from error`, so the cause stays attached.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

from tritonclient.utils import InferenceServerException

from orchestrator.client.endpoint import Endpoint
from orchestrator.client.tls import tls_fault
from orchestrator.errors import (
    ClientError,
    RefusedError,
    ServerFaultError,
    TimeLimitError,
    TlsError,
    UnavailableError,
    UnknownModelError,
)

Leaf = type[ClientError]

# What tritonclient lets through: its own exception for anything a server or gRPC answered, OSError for HTTP's
# sockets, ValueError for a body that is not what the protocol promises.
FOREIGN: tuple[type[Exception], ...] = (InferenceServerException, OSError, ValueError)

# Every code but OK. Only UNAVAILABLE is retried, so ABORTED and CANCELLED, which a proxy may send, are not in it.
OF_GRPC: dict[str, Leaf] = {
    "CANCELLED": ServerFaultError,
    "UNKNOWN": ServerFaultError,
    "INVALID_ARGUMENT": RefusedError,
    "DEADLINE_EXCEEDED": TimeLimitError,
    "NOT_FOUND": UnknownModelError,
    "ALREADY_EXISTS": RefusedError,
    "PERMISSION_DENIED": RefusedError,
    # A message over the size limit; a full queue of Triton's is UNAVAILABLE.
    "RESOURCE_EXHAUSTED": RefusedError,
    "FAILED_PRECONDITION": RefusedError,
    "ABORTED": ServerFaultError,
    "OUT_OF_RANGE": RefusedError,
    # A method or a kind of model (decoupled, say) that cannot be asked this way.
    "UNIMPLEMENTED": RefusedError,
    "INTERNAL": ServerFaultError,
    "UNAVAILABLE": UnavailableError,
    "DATA_LOSS": ServerFaultError,
    "UNAUTHENTICATED": RefusedError,
}

OF_HTTP: dict[int, Leaf] = {
    HTTPStatus.NOT_FOUND: UnknownModelError,
    HTTPStatus.REQUEST_TIMEOUT: TimeLimitError,
    HTTPStatus.TOO_MANY_REQUESTS: UnavailableError,
    # Triton's "unsupported", the twin of gRPC's UNIMPLEMENTED.
    HTTPStatus.NOT_IMPLEMENTED: RefusedError,
    HTTPStatus.BAD_GATEWAY: UnavailableError,
    HTTPStatus.SERVICE_UNAVAILABLE: UnavailableError,
    HTTPStatus.GATEWAY_TIMEOUT: TimeLimitError,
}

FIXES: dict[Leaf, str] = {
    UnavailableError: "check that the server runs and listens at that address, or try again later",
    TimeLimitError: "allow more time (timeout, deadline_us), or send fewer rows at once",
    UnknownModelError: "check the name; a model that failed to load is named in the server's log",
}
# What a server says of a model it is just unloading or not ready to run, under codes that sound final.
STOPPING = ("has no available versions", "Server not ready", "Server is stopping")
# The request's own deadline, which asking again would only miss again under the same load.
LATE = ("deadline passed", "deadline too near")
# How tritonclient's texts begin where an HTTP answer is none of Triton's: it is empty, or it is a page.
NOT_OF_TRITON = (
    "client received an empty response",
    "an exception occurred in the client while decoding the response",
)
# Longer texts are dumps, not messages.
MAX_TEXT = 400


def error_from(error: BaseException, *, what: str, endpoint: Endpoint | None = None) -> ClientError:
    """The leaf of our tree for an exception that came out of a request.

    Args:
        error: what was caught.
        what: subject of the message: which model at which address.
        endpoint: what was asked, so that nothing secret of it is repeated.
    """
    leaf, text = _leaf_and_text(error)
    if endpoint is not None:
        text = endpoint.without_secrets(text)
    return leaf(what, got=text, fix=FIXES.get(leaf))


def with_tls_reason(error: ClientError, endpoint: Endpoint, *, over_grpc: bool, timeout_s: float) -> ClientError:
    """The error of a client that had no answer yet, or a better one where TLS is the reason.

    Args:
        error: of the request.
        endpoint: what was asked; one more connection may be made to it.
        over_grpc: whether the request was gRPC.
        timeout_s: longest wait for that connection.
    """
    # Proxies answer HTTP in clear on a TLS port with 400 and such a sentence.
    may_be = isinstance(error, UnavailableError | TimeLimitError | ServerFaultError) or "HTTPS" in str(error.got)
    if not may_be or not endpoint.port:
        return error
    fault = tls_fault(endpoint.host, endpoint.port, endpoint.tls, over_grpc=over_grpc, timeout_s=timeout_s)
    if fault is None:
        return error
    # What is not certain is asked again like the error that it explains.
    leaf = TlsError if fault.is_certain else type(error)
    return leaf(error.what, got=fault.got, fix=fault.fix)


def _leaf_and_text(error: BaseException) -> tuple[Leaf, str]:
    if isinstance(error, InferenceServerException):
        text = _plain(error.message() or "an error without a message").removesuffix(".")
        if text.startswith(NOT_OF_TRITON) and str(error.status()).isdigit():
            return leaf_from_status(error.status()), _gateway_text(int(error.status()))
        if any(words in text for words in STOPPING):
            return UnavailableError, text
        if any(words in text for words in LATE):
            return TimeLimitError, text
        return leaf_from_status(error.status()), text
    if isinstance(error, TimeoutError):
        return TimeLimitError, "no answer within the time limit"
    if isinstance(error, OSError):
        return UnavailableError, _plain(error.strerror or str(error) or type(error).__name__)
    return ServerFaultError, _plain(f"an answer that cannot be read ({type(error).__name__}: {error})")


def _gateway_text(status: int) -> str:
    """What an HTTP status means that comes without an answer of Triton's."""
    phrase = next((one.phrase for one in HTTPStatus if one == status), "")
    text = " ".join(f"HTTP {status} {phrase}".split()) + " and no answer of Triton's, as a gateway gives it"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{text}: it wants a header, such as Authorization"
    return f"{text}: the address has moved" if 300 <= status < 400 else text


def leaf_from_status(status: str | None) -> Leaf:
    """The leaf for tritonclient's status: "StatusCode.NOT_FOUND" over gRPC, "404" over HTTP, None from itself."""
    if status is None:
        # tritonclient refused the request before sending it.
        return RefusedError
    if status.isdigit():
        code = int(status)
        return OF_HTTP.get(code, ServerFaultError if code >= 500 else RefusedError)
    return OF_GRPC.get(status.removeprefix("StatusCode."), ServerFaultError)


def _plain(text: str) -> str:
    """The server's message as one line, without its traceback and the id we never set."""
    text = text.split("\nAt:\n", 1)[0]
    text = re.sub(r"^\[request id: [^\]]*\]\s*", "", text)
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}..."


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long one request may take and how often it may be repeated.

    Args:
        timeout_s: from the first attempt to the last answer.
        retries: further attempts after the first, on UNAVAILABLE only.
        first_delay_s: pause before the first repetition; it doubles each time.
        max_delay_s: no pause is longer (before jitter).
    """

    timeout_s: float = 30.0
    retries: int = 3
    first_delay_s: float = 0.05
    max_delay_s: float = 2.0

    def delay_s(self, attempt: int, *, elapsed_s: float, jitter: float) -> float | None:
        """The pause after a failed attempt, or None to give up.

        Args:
            attempt: 0 for the first.
            elapsed_s: since the first attempt began.
            jitter: uniform in [0, 1). It spreads the pause over half to one and a half of its length, so
                that clients which failed together do not come back together.
        """
        if attempt >= self.retries:
            return None
        pause = min(self.max_delay_s, self.first_delay_s * 2.0**attempt) * (0.5 + jitter)
        return None if elapsed_s + pause >= self.timeout_s else pause
