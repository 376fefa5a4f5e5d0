"""TLS of the clients: which certificates are used, and why a connection failed."""

import contextlib
import importlib
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError

# Time limit of a connection that only finds out why another one failed.
_PROBE_S = 2.0
# TLS 1.3 servers refuse a client's certificate after the handshake; a refusal is awaited for this long.
_REFUSAL_S = 0.3
# Names that OpenSSL gives authorities' certificates in a folder.
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
# X509_V_ERR_*: not valid yet, expired.
_DATES = (9, 10)
# Hostname mismatch, IP address mismatch.
_NAMES = (62, 64)
# No issuer, self-signed, self-signed in the chain, no local issuer, no signature to check.
_AUTHORITIES = (2, 18, 19, 20, 21)


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files of a TLS connection.

    Args:
        ca: certificates of the authorities to trust; None for the system's.
        cert, key: the client's certificate and its private key.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def named(self) -> str:
        """Names of the files that are given, joined by commas."""
        return ", ".join(name for name in ("ca", "cert", "key") if getattr(self, name) is not None)

    def or_else(self, others: "TlsFiles") -> "TlsFiles":
        """These files, completed from others; a certificate and its key come from the same place."""
        pair = others if self.cert is None and self.key is None else self
        return TlsFiles(ca=self.ca or others.ca, cert=pair.cert, key=pair.key)

    def check(self) -> None:
        """Refuses files with which no connection could be made.

        Raises:
            InputError: a certificate without its key, or a file that is missing, broken or of another key.
        """
        if (self.cert is None) != (self.key is None):
            got, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise InputError(
                "client certificate", got=f"{got} without {missing}", expected="both (one file may hold both)"
            )
        for name, path in (("ca", self.ca), ("cert", self.cert), ("key", self.key)):
            if path is not None:
                _bytes_of(path, name)
        self.context()

    def context(self, make: Callable[..., Any] = ssl.create_default_context) -> Any:
        """A context that verifies the server.

        Args:
            make: returns a verifying context; gevent has a function of its own.

        Raises:
            InputError: as `check`.
        """
        try:
            # Given an empty text, `make` would trust the system's authorities instead.
            context = make(cadata=self.authorities().decode("ascii", "ignore") or "none")
        except (ssl.SSLError, ValueError) as error:
            what = "the system's certificates" if self.ca is None else f"ca {self.ca}"
            raise InputError(what, got="no certificate that can be read", expected="PEM certificates") from error
        if self.cert is not None and self.key is not None:
            self._load_pair(context)
        return context

    def _load_pair(self, context: Any) -> None:
        def no_password() -> str:
            # Without this function OpenSSL would ask at the terminal.
            raise InputError(f"key {self.key}", got="an encrypted key", expected="one without a pass phrase")

        try:
            context.load_cert_chain(self.cert, self.key, password=no_password)
        except ssl.SSLError as error:
            unlike = error.reason == "KEY_VALUES_MISMATCH"
            got = "a key of another certificate" if unlike else "no PEM certificate and key"
            what = f"client certificate {self.cert} with key {self.key}"
            raise InputError(what, got=got, expected="a PEM certificate and its private key") from error

    def authorities(self) -> bytes:
        """The certificates to trust, PEM: the given ones, else the system's, else certifi's."""
        if self.ca is not None:
            return _bytes_of(self.ca, "ca")
        paths = ssl.get_default_verify_paths()
        files = [] if paths.cafile is None else [Path(paths.cafile)]
        if paths.capath is not None:
            files += sorted(path for path in Path(paths.capath).iterdir() if _HASHED.fullmatch(path.name))
        parts = []
        for path in files:
            # A file that cannot be read is skipped.
            with contextlib.suppress(OSError):
                parts.append(path.read_bytes())
        if not any(b"BEGIN" in part for part in parts):
            parts = [Path(importlib.import_module("certifi").where()).read_bytes()]
        return b"\n".join(parts)

    def client_pair(self) -> tuple[bytes, bytes] | None:
        """The client's certificate and key, PEM; None where none is given."""
        if self.cert is None or self.key is None:
            return None
        return _bytes_of(self.cert, "cert"), _bytes_of(self.key, "key")


def _bytes_of(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} {path}", got=error.strerror, expected="a PEM file") from error


@dataclass(frozen=True, kw_only=True)
class TlsFault:
    """Why a connection cannot be made.

    Args:
        got: what was found.
        fix: what to do.
        is_certain: False where a server that is still starting, behind a proxy that listens already, looks alike.
    """

    got: str
    fix: str
    is_certain: bool = True


def tls_fault(
    host: str, port: int, *, files: TlsFiles | None, over_grpc: bool, timeout_s: float
) -> TlsFault | None:
    """Finds out by a connection of its own why one failed; None where TLS is not the reason.

    The libraries' own errors differ with every version, or do not name the reason.

    Args:
        host: name or IP address of the server.
        port: its TCP port.
        files: certificates of the failed connection; None if it was made without TLS.
        over_grpc: whether the server should speak gRPC.
        timeout_s: the client's time limit; this function takes at most that, and two seconds.
    """
    limit_s = min(_PROBE_S, timeout_s)
    try:
        with socket.create_connection((host, port), timeout=limit_s) as connection:
            if files is None:
                return _fault_in_clear(connection)
            fault = _fault_of_tls(connection, host, files, over_grpc=over_grpc)
        if fault is not None and not fault.is_certain and not over_grpc:
            with socket.create_connection((host, port), timeout=limit_s) as connection:
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
    return TlsFault(
        got="a server that speaks TLS, behind an address without it", fix="write grpcs:// (https:// for HTTP)"
    )


def _fault_of_tls(connection: socket.socket, host: str, files: TlsFiles, *, over_grpc: bool) -> TlsFault | None:
    context: ssl.SSLContext = files.context()
    if over_grpc:
        context.set_alpn_protocols(["h2"])
    try:
        wrapped = context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        return _fault_of_certificate(error, host)
    except (ssl.SSLError, TimeoutError, ConnectionError) as error:
        return _fault_of_handshake(error, files)
    with wrapped:
        if over_grpc and wrapped.selected_alpn_protocol() != "h2":
            return TlsFault(
                got="a TLS server without HTTP/2, so without gRPC", fix="name its gRPC port, or ask over HTTP"
            )
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
            return TlsFault(
                got="a TLS server of gRPC, which speaks no HTTP/1.1", fix="write grpcs://, without http"
            )
    return None


def _fault_of_certificate(error: ssl.SSLCertVerificationError, host: str) -> TlsFault:
    said = str(error.verify_message).rstrip(".")
    if error.verify_code in _DATES:
        return TlsFault(
            got=f"a server certificate out of its dates ({said})", fix="have it renewed, or mend this clock"
        )
    if error.verify_code in _NAMES:
        return TlsFault(
            got=f"a server certificate that is not for {host} ({said})", fix="use a name that it is made out to"
        )
    if error.verify_code in _AUTHORITIES:
        return TlsFault(
            got=f"a server certificate of an authority that is not trusted ({said})",
            fix="name that authority's certificate as ca",
        )
    return TlsFault(got=f"a server certificate that is not valid ({said})", fix="have it replaced")


def _fault_of_handshake(error: OSError, files: TlsFiles) -> TlsFault:
    reason = _reason(error)
    if "ALERT" in reason:
        return _refused(reason, files)
    return TlsFault(
        got=f"a server that does not speak TLS ({reason})",
        fix="write grpc:// (http:// for HTTP), or name the port that does",
        # Bytes that are no TLS prove it; a connection that merely ends does not.
        is_certain=type(error) is ssl.SSLError,
    )


def _refused(reason: str, files: TlsFiles, *, is_certain: bool = True) -> TlsFault:
    got = f"a server that refuses the client certificate ({reason})"
    fix = "give cert and key that an authority it trusts has issued"
    if files.cert is None:
        got = f"a server that refuses a client without certificate ({reason})"
        fix = "give a client certificate with cert and key, which it seems to ask for"
    return TlsFault(got=got, fix=fix, is_certain=is_certain)


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error)
