"""The options of every command that asks a server: where it is, and what TLS and gateways want."""

import ipaddress
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.client.endpoint import (
    CA,
    CERT,
    HEADERS,
    KEY,
    Endpoint,
    endpoint_from_address,
    headers_from_lines,
)

ADDRESS = "host:port in clear, or grpcs://host:port with TLS."
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca", help=f"PEM file of authorities to trust instead of the system's, or {CA}.", show_default=False
    ),
]
Cert = Annotated[
    Path | None,
    typer.Option("--cert", help=f"PEM file of a client certificate, or {CERT}.", show_default=False),
]
Key = Annotated[
    Path | None,
    typer.Option("--key", help=f"PEM file of its private key, or {KEY}.", show_default=False),
]
Headers = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        metavar='"NAME: VALUE"',
        help=f"Sent with every request, such as Authorization; secret ones are better in {HEADERS}, a line each.",
        show_default=False,
    ),
]


def endpoint_from_options(
    url: str, *, ca: Path | None, cert: Path | None, key: Path | None, header: list[str] | None
) -> Endpoint:
    """The server that the options mean; says on stderr where headers would go in clear.

    Raises:
        InputError: the address, a file or a header cannot be used.
    """
    headers = headers_from_lines(header or [], what="--header")
    endpoint = endpoint_from_address(url, ca=ca, cert=cert, key=key, headers=headers)
    if headers and endpoint.tls is None and endpoint.port and not _is_loopback(endpoint.host):
        typer.echo(f"note: {endpoint} has no TLS, anybody on the way can read the headers", err=True)
    return endpoint


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
