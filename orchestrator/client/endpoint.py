"""Where a server listens and how to reach it: the only reader of addresses, with TLS and extra headers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.client.tls import TlsFiles
from orchestrator.errors import InputError

# scheme -> whether it means TLS. gRPC is HTTP/2, so people write http:// for its endpoints as well.
SCHEMES = {"grpc": False, "grpcs": True, "http": False, "https": True}
TLS_PORT = 443
EXPECTED = "host:port, or that behind grpc://, grpcs://, http:// or https://, as 127.0.0.1:8001"
# What the environment says of servers behind TLS. The headers are one "Name: value" per line.
CA, CERT, KEY, HEADERS = (f"COMMITTEE_{name}" for name in ("CA", "CERT", "KEY", "HEADERS"))

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PLACE = re.compile(r"(?P<host>[^\s:/?#@\[\]]+|\[[0-9A-Fa-f:.%]+\])(?::(?P<port>\d{1,5}))?(?P<path>/[^\s?#]*)?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
# What the protocols write themselves.
_RESERVED = (
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "inference-header-content-length",
    "te",
    "transfer-encoding",
)
# Shorter words of a header are no secrets, and hiding them would garble messages.
_SECRET_LENGTH = 6


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One server's address, read; as text it is what was written.

    Args:
        address: as it was written.
        scheme: of `SCHEMES`, "unix", or empty where none was written.
        host: name or IP address, without brackets; empty for a socket file.
        target: what gRPC and HTTP libraries connect to, "host:port" or "unix:PATH".
        port: TCP port, 0 for a socket file.
        path: under which an HTTP server answers, without the last slash.
        tls: with which certificates; None for a connection in clear.
        headers: sent with every request. They may be secret, so no text of this object has them.
    """

    address: str
    scheme: str
    host: str
    target: str
    port: int
    path: str = ""
    tls: TlsFiles | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.address

    @property
    def is_http(self) -> bool:
        """Whether the scheme is one of HTTP's."""
        return self.scheme.startswith("http")

    def without_secrets(self, text: str) -> str:
        """A text of the server's with the values of our headers taken out, should it repeat them."""
        words = {word for value in self.headers.values() for word in (value, *value.split())}
        for word in sorted(words, key=len, reverse=True):
            if len(word) >= _SECRET_LENGTH:
                text = text.replace(word, "[hidden]")
        return text

    def for_grpc(self) -> Endpoint:
        """Itself as gRPC takes it: header names in lower case.

        Raises:
            InputError: it has a path, or a header that gRPC keeps for itself.
        """
        if self.path:
            raise InputError("server address", got=repr(self.address), expected="no path: gRPC has none")
        lower = {name.lower(): value for name, value in self.headers.items()}
        odd = [name for name in lower if name.startswith("grpc-") or name.endswith("-bin")]
        if odd:
            raise InputError("headers", got=", ".join(odd), expected="none that gRPC keeps for itself")
        return replace(self, headers=lower)

    def for_http(self) -> Endpoint:
        """Itself as HTTP takes it.

        Raises:
            InputError: it is one of gRPC's.
        """
        if self.scheme and not self.is_http:
            raise InputError(
                "server address", got=repr(self.address), expected="host:port, http:// or https:// over HTTP"
            )
        return self


def endpoint_from_address(
    address: str | Endpoint,
    *,
    ca: str | Path | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    headers: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Endpoint:
    """Reads an address, checks what belongs to it, and connects to nothing.

    Where TLS is meant, what is not given comes from the environment: COMMITTEE_CA, COMMITTEE_CERT and
    COMMITTEE_KEY name files, COMMITTEE_HEADERS holds a "Name: value" per line. For other addresses the environment
    does not count, so that no token leaves in clear because it lies there.

    Args:
        address: host:port or unix:PATH in clear; grpc:// and http:// the same; grpcs:// and https:// with TLS, on
            port 443 where none is written. What has been read already is given back.
        ca: PEM file with the authorities to trust instead of the system's.
        cert: PEM file of the client's certificate, for servers that ask for one.
        key: PEM file of its private key, without a pass phrase.
        headers: sent with every request, such as `Authorization`.
        environment: to look in; None for this process's.

    Raises:
        InputError: an address that cannot be read, or certificates or headers that cannot be used.
    """
    if isinstance(address, Endpoint):
        return address
    endpoint = _read(address)
    files = TlsFiles(ca=_path(ca), cert=_path(cert), key=_path(key))
    named = dict(headers or {})
    if endpoint.tls is None:
        if files != TlsFiles():
            raise InputError(
                "server address",
                got=f"{address!r}, which means no TLS, and {files.named}",
                expected="grpcs:// or https:// with them",
            )
    else:
        known = os.environ if environment is None else environment
        files = files.or_else(
            TlsFiles(ca=_path(known.get(CA)), cert=_path(known.get(CERT)), key=_path(known.get(KEY)))
        )
        files.check()
        given = {name.lower() for name in named}
        more = headers_from_lines(known.get(HEADERS, "").splitlines(), what=HEADERS)
        named |= {name: value for name, value in more.items() if name.lower() not in given}
        endpoint = replace(endpoint, tls=files)
    _check_headers(named)
    return replace(endpoint, headers=named)


def headers_from_lines(lines: list[str], *, what: str = "headers") -> dict[str, str]:
    """Headers written as "Name: value", empty lines left out; errors do not repeat them, for they may be secret.

    Args:
        lines: one header each.
        what: names them in errors.

    Raises:
        InputError: a line without a colon.
    """
    named: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon:
            raise InputError(what, got=f"no colon in number {number}", expected='"Name: value"')
        named[name.strip()] = value.strip()
    _check_headers(named)
    return named


def _check_headers(headers: Mapping[str, str]) -> None:
    # Neither name nor value is repeated where the name is none: who forgets the name has a secret in its place.
    if not all(_HEADER_NAME.fullmatch(name) for name in headers):
        raise InputError("headers", got="a name that is none", expected='"Name: value"')
    bad = [name for name, value in headers.items() if not _HEADER_VALUE.fullmatch(value)]
    if bad:
        raise InputError(f"header {bad[0]}", got="a value with other characters", expected="printable ASCII")
    taken = [name for name in headers if name.lower() in _RESERVED]
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
        # What stands before it may be a password.
        raise InputError("server address", got="a user name in it", expected="an Authorization header instead")
    is_tls = SCHEMES.get(scheme, False)
    place = _PLACE.fullmatch(rest)
    port = int(place.group("port") or is_tls * TLS_PORT) if place else 0
    if place is None or not 0 < port < 65536:
        shown = repr(address.partition("?")[0])
        raise InputError("server address", got=shown, expected=EXPECTED)
    path = (place.group("path") or "").rstrip("/")
    if path and not scheme.startswith("http"):
        raise InputError("server address", got=repr(address), expected=f"no path, {EXPECTED}")
    host = place.group("host")
    return Endpoint(
        address=address.rstrip("/"),
        scheme=scheme,
        host=host.strip("[]"),
        target=f"{host}:{port}",
        port=port,
        path=path,
        tls=TlsFiles() if is_tls else None,
    )


def _path(value: str | Path | None) -> Path | None:
    return Path(value).expanduser() if value else None
