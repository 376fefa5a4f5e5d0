"""The only reader of server addresses, with the certificates and headers that belong to them."""

import contextlib
import importlib
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError, repeated

# Scheme -> whether it means TLS. gRPC is HTTP/2, so people write http:// for gRPC endpoints as well.
SCHEMES = {"grpc": False, "grpcs": True, "http": False, "https": True}
TLS_PORT = 443
EXPECTED = "host:port, or that behind grpc://, grpcs://, http:// or https://, as 127.0.0.1:8001"
# Environment variables for servers with TLS. The headers are one "Name: value" per line.
CA, CERT, KEY, HEADERS = (f"COMMITTEE_{name}" for name in ("CA", "CERT", "KEY", "HEADERS"))

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PLACE = re.compile(r"(?P<host>[^\s:/?#@\[\]]+|\[[0-9A-Fa-f:.%]+\])(?::(?P<port>\d{1,5}))?(?P<path>/[^\s?#]*)?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
# Headers that the protocols write themselves.
_RESERVED = re.compile(
    "connection|content-(encoding|length|type)|host|inference-header-content-length|te|transfer-encoding", re.I
)
# Shorter words of a header are no secrets, and hiding them would make messages unreadable.
_SECRET_LENGTH = 6
# Names that OpenSSL gives authorities' certificates in a folder.
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files: authorities to trust (None for the system's), the client's certificate and its key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def or_else(self, others: "TlsFiles") -> "TlsFiles":
        """These files, completed from others; a certificate and its key come from the same place."""
        pair = others if self.cert is None and self.key is None else self
        return TlsFiles(ca=self.ca or others.ca, cert=pair.cert, key=pair.key)

    def check(self) -> None:
        """Raises InputError for a certificate without key, or a file that is missing, broken or of another key."""
        if (self.cert is None) != (self.key is None):
            got = "cert without key" if self.key is None else "key without cert"
            raise InputError("client certificate", got=got, expected="both (one file may hold both)")
        for name in ("ca", "cert", "key"):
            if getattr(self, name) is not None:
                self._bytes(name)
        self.context()

    def context(self, make: Callable[..., Any] = ssl.create_default_context) -> Any:
        """A context that verifies the server, from a function such as gevent's own; raises as `check` does."""
        try:
            # Given an empty text, `make` would trust the system's authorities instead.
            context = make(cadata=self.authorities().decode("ascii", "ignore") or "none")
        except (ssl.SSLError, ValueError) as error:
            what = "the system's certificates" if self.ca is None else f"ca {self.ca}"
            raise InputError(what, got="no certificate that can be read", expected="PEM certificates") from error
        if self.cert is None or self.key is None:
            return context

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
        return context

    def authorities(self) -> bytes:
        """The certificates to trust, PEM: the given ones, else the system's, else certifi's."""
        if self.ca is not None:
            return self._bytes("ca")
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
        return self._bytes("cert"), self._bytes("key")

    def _bytes(self, name: str) -> bytes:
        path: Path = getattr(self, name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{name} {path}", got=error.strerror, expected="a PEM file") from error


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server's address in its parts; `str` gives it as it was written."""

    address: str  # as it was written
    scheme: str  # one of `SCHEMES`, "unix", or empty where none was written
    host: str  # name or IP address, without brackets; empty for a socket file
    target: str  # "host:port" or "unix:PATH", which gRPC and HTTP libraries connect to
    port: int  # 0 for a socket file
    path: str = ""  # prefix of an HTTP server's paths, without the last slash
    tls: TlsFiles | None = None  # None for a connection without TLS
    # Sent with every request. They may be secret, so `str` and `repr` leave them out.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.address

    @property
    def is_http(self) -> bool:
        """Whether the scheme is one of HTTP's."""
        return self.scheme.startswith("http")

    def without_secrets(self, text: str) -> str:
        """A text from the server without the values of our headers, which it may repeat."""
        words = {word for value in self.headers.values() for word in (value, *value.split())}
        for word in sorted(words, key=len, reverse=True):
            if len(word) >= _SECRET_LENGTH:
                text = text.replace(word, "[hidden]")
        return text

    def for_grpc(self) -> "Endpoint":
        """With header names in lower case; InputError for a scheme, a path or a header that gRPC does not take."""
        if self.path:
            raise InputError("server address", got=repr(self.address), expected="no path: gRPC has none")
        if self.is_http:
            expected = "host:port, grpc:// or grpcs:// over gRPC"
            raise InputError("server address", got=repr(self.address), expected=expected)
        lower = {name.lower(): value for name, value in self.headers.items()}
        odd = [name for name in lower if name.startswith("grpc-") or name.endswith("-bin")]
        if odd:
            raise InputError("headers", got=", ".join(odd), expected="none that gRPC keeps for itself")
        return replace(self, headers=lower)

    def for_http(self) -> "Endpoint":
        """This endpoint; InputError where its scheme is one of gRPC's."""
        if self.scheme and not self.is_http:
            expected = "host:port, http:// or https:// over HTTP"
            raise InputError("server address", got=repr(self.address), expected=expected)
        return self


# One server or several; a text may hold several with commas between them.
Addresses = str | Endpoint | Sequence[str | Endpoint]


def endpoint_from_address(
    address: str | Endpoint,
    *,
    ca: str | Path | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    headers: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Endpoint:
    """Reads an address and checks its certificates and headers, without connecting.

    For addresses with TLS, the environment fills in what is not given: COMMITTEE_CA, COMMITTEE_CERT and
    COMMITTEE_KEY name files, COMMITTEE_HEADERS holds a "Name: value" per line. For other addresses the environment
    is ignored, so that a token in it is never sent unencrypted.

    Args:
        address: host:port, unix:PATH, grpc:// or http:// without TLS; grpcs:// or https:// with TLS, on port 443
            where none is written. An `Endpoint` is returned as it is.
        ca: PEM file with the authorities to trust instead of the system's.
        cert: PEM file of the client's certificate, for servers that ask for one.
        key: PEM file of its private key, without a pass phrase.
        headers: sent with every request, such as `Authorization`.
        environment: variables to read; None for this process's.

    Raises:
        InputError: an address that cannot be read, or certificates or headers that cannot be used.
    """
    if isinstance(address, Endpoint):
        return address
    endpoint = _read(address)
    files = _files(ca, cert, key)
    named = dict(headers or {})
    if endpoint.tls is None:
        if files != TlsFiles():
            given = ", ".join(name for name in ("ca", "cert", "key") if getattr(files, name) is not None)
            got = f"{address!r}, which means no TLS, and {given}"
            raise InputError("server address", got=got, expected="grpcs:// or https:// with them")
    else:
        known = os.environ if environment is None else environment
        files = files.or_else(_files(*(known.get(name) for name in (CA, CERT, KEY))))
        files.check()
        taken = {name.lower() for name in named}
        more = headers_from_lines(known.get(HEADERS, "").splitlines(), what=HEADERS)
        named |= {name: value for name, value in more.items() if name.lower() not in taken}
        endpoint = replace(endpoint, tls=files)
    _check_headers(named)
    return replace(endpoint, headers=named)


def endpoints_from_addresses(addresses: Addresses, **options: Any) -> tuple[Endpoint, ...]:
    """Reads the addresses of one server or several, each as `endpoint_from_address` does, with its options.

    Args:
        addresses: an address, several with commas between them, or a sequence of such.
        options: certificates and headers, the same for all of them.

    Raises:
        InputError: as there; also no address, or one that is there twice.
    """
    listed = [addresses] if isinstance(addresses, str | Endpoint) else addresses
    words = [
        word for one in listed for word in ([one] if isinstance(one, Endpoint) else map(str.strip, one.split(",")))
    ]
    endpoints = tuple(endpoint_from_address(word, **options) for word in words)
    twice = repeated(one.target for one in endpoints)
    if twice or not endpoints:
        got = f"{', '.join(twice)} more than once" if twice else "none"
        raise InputError("server addresses", got=got, expected="one of each server")
    return endpoints


def headers_from_lines(lines: list[str], *, what: str = "headers") -> dict[str, str]:
    """Reads headers, one "Name: value" per line, skipping empty lines; errors name `what`.

    Errors never repeat a header, which may be secret.

    Raises:
        InputError: a line without a colon, or a header that cannot be sent.
    """
    named: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if colon:
            named[name.strip()] = value.strip()
        elif name.strip():
            raise InputError(what, got=f"no colon in number {number}", expected='"Name: value"')
    _check_headers(named)
    return named


def _check_headers(headers: Mapping[str, str]) -> None:
    # A malformed name is not repeated: somebody who forgot the name has written the secret value in its place.
    if not all(_HEADER_NAME.fullmatch(name) for name in headers):
        raise InputError("headers", got="a name that is none", expected='"Name: value"')
    bad = [name for name, value in headers.items() if not _HEADER_VALUE.fullmatch(value)]
    if bad:
        raise InputError(f"header {bad[0]}", got="a value with other characters", expected="printable ASCII")
    taken = [name for name in headers if _RESERVED.fullmatch(name)]
    if taken:
        raise InputError("headers", got=", ".join(taken), expected="none that the protocol writes itself")


def _read(address: str) -> Endpoint:
    if address.startswith("unix:"):
        return Endpoint(address=address, scheme="unix", host="", target=address, port=0)
    match = _SCHEME.match(address)
    scheme = match.group(1).lower() if match else ""
    if scheme and scheme not in SCHEMES:
        raise InputError("server address", got=f"scheme {scheme}://", expected=EXPECTED)
    rest = address[match.end() :] if match else address
    if "@" in rest:
        # The text before the @ may be a password.
        raise InputError("server address", got="a user name in it", expected="an Authorization header instead")
    is_tls = SCHEMES.get(scheme, False)
    place = _PLACE.fullmatch(rest)
    port = int(place["port"] or is_tls * TLS_PORT) if place else 0
    if place is None or not 0 < port < 65536:
        raise InputError("server address", got=repr(address.partition("?")[0]), expected=EXPECTED)
    path = (place["path"] or "").rstrip("/")
    if path and not scheme.startswith("http"):
        raise InputError("server address", got=repr(address), expected=f"no path, {EXPECTED}")
    host = place["host"]
    return Endpoint(
        address=address.rstrip("/"),
        scheme=scheme,
        host=host.strip("[]"),
        target=f"{host}:{port}",
        port=port,
        path=path,
        tls=TlsFiles() if is_tls else None,
    )


def _files(*paths: str | Path | None) -> TlsFiles:
    ca, cert, key = (Path(path).expanduser() if path else None for path in paths)
    return TlsFiles(ca=ca, cert=cert, key=key)
