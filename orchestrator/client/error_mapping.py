"""The one place where foreign exceptions become ours, and whether a request that failed is sent again.

Callers write `raise error_from(error, what=...) from error`, which keeps the cause.
"""

import contextlib
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from tritonclient.utils import InferenceServerException

from orchestrator.client.endpoint import Endpoint, TlsFiles
from orchestrator.errors import (
    ClientError,
    RefusedError,
    ServerFaultError,
    TimeLimitError,
    TlsError,
    UnavailableError,
    UnknownModelError,
)
from orchestrator.probe import LATE_WORDS

Leaf = type[ClientError]

# Exceptions that come out of tritonclient: its own for whatever a server or gRPC answered, OSError from HTTP's
# sockets, ValueError for a body that breaks the protocol.
FOREIGN: tuple[type[Exception], ...] = (InferenceServerException, OSError, ValueError)

# Every gRPC code but OK. What becomes UnavailableError is retried. CANCELLED is sent by a server that ends with
# the request in hand: calls that the caller itself cancels raise no error of gRPC's. To ask again is safe, as an
# answer changes nothing on the server. ABORTED, which a proxy may send, is not retried.
# RESOURCE_EXHAUSTED is a message above the size limit (for a full queue Triton sends UNAVAILABLE), UNIMPLEMENTED a
# method, or a kind of model such as a decoupled one, that cannot be asked this way.
_GRPC_CODES: dict[Leaf, str] = {
    ServerFaultError: "UNKNOWN ABORTED INTERNAL DATA_LOSS",
    RefusedError: "INVALID_ARGUMENT ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION "
    "OUT_OF_RANGE UNIMPLEMENTED UNAUTHENTICATED",
    TimeLimitError: "DEADLINE_EXCEEDED",
    UnknownModelError: "NOT_FOUND",
    UnavailableError: "UNAVAILABLE CANCELLED",
}
OF_GRPC = {code: leaf for leaf, codes in _GRPC_CODES.items() for code in codes.split()}

OF_HTTP: dict[int, Leaf] = {
    # CANCELLED over HTTP, which has no name in the standard.
    499: UnavailableError,
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
# What gRPC's asyncio client itself says, as INTERNAL, of a call that it begins while the connection closes.
NOT_BEGUN = "Internal error from Core"
# Messages about a model that is being unloaded or is not ready, which Triton sends with codes of final failures.
STOPPING = ("has no available versions", "Server not ready", "Server is stopping", NOT_BEGUN)
# Messages about the request's own deadline, which a retry under the same load would miss again.
# Beginnings of tritonclient's texts for an HTTP answer that is not Triton's: an empty one, or a web page.
NOT_OF_TRITON = (
    "client received an empty response",
    "an exception occurred in the client while decoding the response",
)
# Longer texts are no messages but dumps.
MAX_TEXT = 400
# Time limit of a connection that only finds out why another one failed.
_PROBE_S = 2.0
# TLS 1.3 servers refuse a client's certificate after the handshake; a refusal is awaited for this long.
_REFUSAL_S = 0.3
# X509_V_ERR_* code -> what is wrong with a server's certificate, and what to do.
_BAD_CERTIFICATES = {
    # Not valid yet, expired.
    **dict.fromkeys((9, 10), ("out of its dates", "have it renewed, or mend this clock")),
    # Hostname mismatch, IP address mismatch.
    **dict.fromkeys((62, 64), ("that is not for {host}", "use a name that it is made out to")),
    # No issuer, self-signed, self-signed in the chain, no local issuer, no signature to check.
    **dict.fromkeys(
        (2, 18, 19, 20, 21), ("of an authority that is not trusted", "name that authority's certificate as ca")
    ),
}


def error_from(error: BaseException, *, what: str, endpoints: Sequence[Endpoint] = ()) -> ClientError:
    """The ClientError for an exception that came out of a request; `what` names the model and the address.

    Secret headers of the endpoints are removed from the text.
    """
    leaf, text = _leaf_and_text(error)
    for endpoint in endpoints:
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
    fault = _tls_fault(endpoint, over_grpc=over_grpc, timeout_s=timeout_s)
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
        if any(words in text for words in LATE_WORDS):
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
        return OF_HTTP.get(int(status), ServerFaultError if int(status) >= 500 else RefusedError)
    return OF_GRPC.get(status.removeprefix("StatusCode."), ServerFaultError)


def _plain(text: str) -> str:
    """The server's message as one line, without its traceback and the request id, which is never set."""
    text = text.split("\nAt:\n", 1)[0]
    text = re.sub(r"^\[request id: [^\]]*\]\s*", "", text)
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}..."


@dataclass(frozen=True, kw_only=True)
class TlsFault:
    """Why a connection cannot be made: what was found, and what to do.

    A fault is uncertain where a server that is still starting, behind a proxy that listens already, looks alike.
    """

    got: str
    fix: str
    is_certain: bool = True


def _tls_fault(endpoint: Endpoint, *, over_grpc: bool, timeout_s: float) -> TlsFault | None:
    """Finds out by a connection of its own why one failed; None where TLS is not the reason.

    The libraries' own errors differ with every version, or do not name the reason.
    """
    place, host, files = (endpoint.host, endpoint.port), endpoint.host, endpoint.tls
    limit_s = min(_PROBE_S, timeout_s)
    try:
        with socket.create_connection(place, timeout=limit_s) as connection:
            if files is None:
                return _fault_in_clear(connection)
            fault = _fault_of_tls(connection, host, files, over_grpc=over_grpc)
        if fault is not None and not fault.is_certain and not over_grpc:
            with socket.create_connection(place, timeout=limit_s) as connection:
                return _fault_of_http(connection, host, files) or fault
        return fault
    except OSError:
        # Nobody listens there, which the client's own error says.
        return None


def _fault_in_clear(connection: socket.socket) -> TlsFault | None:
    context = ssl.create_default_context()
    # The server need not be verified: only its handshake matters, and nothing is sent.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(connection):
            pass
    except OSError as error:
        # An alert proves TLS, too: a server that wants a client certificate ends the handshake with one.
        if "ALERT" not in str(getattr(error, "reason", "")):
            return None
    got = "a server that speaks TLS, behind an address without it"
    return TlsFault(got=got, fix="write grpcs:// (https:// for HTTP)")


def _fault_of_tls(connection: socket.socket, host: str, files: TlsFiles, *, over_grpc: bool) -> TlsFault | None:
    context: ssl.SSLContext = files.context()
    if over_grpc:
        context.set_alpn_protocols(["h2"])
    try:
        wrapped = context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        return _fault_of_certificate(error, host)
    except (ssl.SSLError, TimeoutError, ConnectionError) as error:
        reason = _reason(error)
        if "ALERT" in reason:
            return _refused(reason, files)
        got = f"a server that does not speak TLS ({reason})"
        fix = "write grpc:// (http:// for HTTP), or name the port that does"
        # Bytes that are no TLS prove it; a connection that merely ends does not.
        return TlsFault(got=got, fix=fix, is_certain=type(error) is ssl.SSLError)
    with wrapped:
        if over_grpc and wrapped.selected_alpn_protocol() != "h2":
            got = "a TLS server without HTTP/2, so without gRPC"
            return TlsFault(got=got, fix="name its gRPC port, or ask over HTTP")
        wrapped.settimeout(_REFUSAL_S)
        try:
            closed = not wrapped.recv(1)
        except TimeoutError:
            return None
        except OSError as error:
            return _refused(_reason(error), files)
        return _refused("it closes the connection", files, is_certain=False) if closed else None


def _fault_of_http(connection: socket.socket, host: str, files: TlsFiles) -> TlsFault | None:
    """The fault of a server that speaks HTTP/2 but not HTTP/1.1, as gRPC servers do; None for others."""
    context: ssl.SSLContext = files.context()
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(OSError), context.wrap_socket(connection, server_hostname=host) as wrapped:
        if wrapped.selected_alpn_protocol() == "h2":
            got = "a TLS server of gRPC, which speaks no HTTP/1.1"
            return TlsFault(got=got, fix="write grpcs://, without http")
    return None


def _fault_of_certificate(error: ssl.SSLCertVerificationError, host: str) -> TlsFault:
    got, fix = _BAD_CERTIFICATES.get(error.verify_code, ("that is not valid", "have it replaced"))
    said = str(error.verify_message).rstrip(".")
    return TlsFault(got=f"a server certificate {got.format(host=host)} ({said})", fix=fix)


def _refused(reason: str, files: TlsFiles, *, is_certain: bool = True) -> TlsFault:
    shown, fix = "the client certificate", "give cert and key that an authority it trusts has issued"
    if files.cert is None:
        shown = "a client without certificate"
        fix = "give a client certificate with cert and key, which it seems to ask for"
    return TlsFault(got=f"a server that refuses {shown} ({reason})", fix=fix, is_certain=is_certain)


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error)
