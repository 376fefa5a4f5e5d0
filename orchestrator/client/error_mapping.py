"""The one place where foreign exceptions become ours, and whether a request that failed is sent again.

Callers write `raise error_from(error, what=...) from error`, which keeps the cause.
"""

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

# Exceptions that come out of tritonclient: its own for whatever a server or gRPC answered, OSError from HTTP's
# sockets, ValueError for a body that breaks the protocol.
FOREIGN: tuple[type[Exception], ...] = (InferenceServerException, OSError, ValueError)

# Every gRPC code but OK. Only UNAVAILABLE is retried; ABORTED and CANCELLED, which a proxy may send, are not.
OF_GRPC: dict[str, Leaf] = {
    "CANCELLED": ServerFaultError,
    "UNKNOWN": ServerFaultError,
    "INVALID_ARGUMENT": RefusedError,
    "DEADLINE_EXCEEDED": TimeLimitError,
    "NOT_FOUND": UnknownModelError,
    "ALREADY_EXISTS": RefusedError,
    "PERMISSION_DENIED": RefusedError,
    # A message above the size limit; for a full queue Triton sends UNAVAILABLE.
    "RESOURCE_EXHAUSTED": RefusedError,
    "FAILED_PRECONDITION": RefusedError,
    "ABORTED": ServerFaultError,
    "OUT_OF_RANGE": RefusedError,
    # A method, or a kind of model such as a decoupled one, that cannot be asked this way.
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
    # Triton's "unsupported", which is UNIMPLEMENTED over gRPC.
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
# Messages about a model that is being unloaded or is not ready, which Triton sends with codes of final failures.
STOPPING = ("has no available versions", "Server not ready", "Server is stopping")
# Messages about the request's own deadline, which a retry under the same load would miss again.
LATE = ("deadline passed", "deadline too near")
# Beginnings of tritonclient's texts for an HTTP answer that is not Triton's: an empty one, or a web page.
NOT_OF_TRITON = (
    "client received an empty response",
    "an exception occurred in the client while decoding the response",
)
# Longer texts are no messages but dumps.
MAX_TEXT = 400


def error_from(error: BaseException, *, what: str, endpoint: Endpoint | None = None) -> ClientError:
    """The ClientError for an exception that came out of a request.

    Args:
        error: the exception.
        what: subject of the message: which model at which address.
        endpoint: its secret headers are removed from the text.
    """
    leaf, text = _leaf_and_text(error)
    if endpoint is not None:
        text = endpoint.without_secrets(text)
    return leaf(what, got=text, fix=FIXES.get(leaf))


def with_tls_reason(error: ClientError, endpoint: Endpoint, *, over_grpc: bool, timeout_s: float) -> ClientError:
    """The error of a client that never had an answer, replaced by a clearer one if TLS is the reason.

    One more connection may be made to find out, which takes no longer than `timeout_s`.
    """
    # To plain HTTP on a TLS port, proxies answer 400 with a sentence about HTTPS.
    may_be = isinstance(error, UnavailableError | TimeLimitError | ServerFaultError) or "HTTPS" in str(error.got)
    if not may_be or not endpoint.port:
        return error
    fault = tls_fault(endpoint.host, endpoint.port, files=endpoint.tls, over_grpc=over_grpc, timeout_s=timeout_s)
    if fault is None:
        return error
    # An uncertain reason keeps the type of the original error, and with it whether it is retried.
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
    """The meaning of an HTTP status that came without an answer of Triton's."""
    phrase = next((one.phrase for one in HTTPStatus if one == status), "")
    text = " ".join(f"HTTP {status} {phrase}".split()) + " and no answer of Triton's, as a gateway gives it"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{text}: it wants a header, such as Authorization"
    return f"{text}: the address has moved" if 300 <= status < 400 else text


def leaf_from_status(status: str | None) -> Leaf:
    """The error type for tritonclient's status: "StatusCode.NOT_FOUND" for gRPC, "404" for HTTP, else None."""
    if status is None:
        # tritonclient refused the request before sending it.
        return RefusedError
    if status.isdigit():
        code = int(status)
        return OF_HTTP.get(code, ServerFaultError if code >= 500 else RefusedError)
    return OF_GRPC.get(status.removeprefix("StatusCode."), ServerFaultError)


def _plain(text: str) -> str:
    """The server's message as one line, without its traceback and the request id, which is never set."""
    text = text.split("\nAt:\n", 1)[0]
    text = re.sub(r"^\[request id: [^\]]*\]\s*", "", text)
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}..."


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long one request may take, and when it is sent again: if the server was unavailable, ever more slowly.

    Args:
        timeout_s: from the first attempt to the last answer.
        retries: further attempts after the first.
        first_delay_s: pause before the first retry; it doubles each time.
        max_delay_s: longest pause, before jitter.
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
            jitter: uniform in [0, 1). It makes the pause 0.5 to 1.5 times as long, so that clients which failed
                together do not retry together.
        """
        if attempt >= self.retries:
            return None
        pause = min(self.max_delay_s, self.first_delay_s * 2.0**attempt) * (0.5 + jitter)
        return None if elapsed_s + pause >= self.timeout_s else pause
