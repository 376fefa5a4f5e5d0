"""Certificates made for a test, and a proxy that takes TLS off, as gateways do."""

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

YESTERDAY = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """PEM files of one certificate and its key."""

    cert: Path
    key: Path

    def context(self, client_ca: Path | None = None) -> ssl.SSLContext:
        """What a server with this certificate uses; with `client_ca` it asks clients for one of theirs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """One authority with certificates of 127.0.0.1, and an authority that nobody trusts.

    Args:
        ca: the authority's certificate.
        other_ca: another authority's.
        server: of 127.0.0.1.
        client: of a client.
        expired: of 127.0.0.1, until yesterday.
        elsewhere: of another name.
    """

    ca: Path
    other_ca: Path
    server: Pair
    client: Pair
    expired: Pair
    elsewhere: Pair


def made_certificates(folder: Path) -> Certificates:
    """Certificates in a folder."""
    authority, other = trustme.CA(), trustme.CA()
    for name, one in (("ca", authority), ("other_ca", other)):
        one.cert_pem.write_to_path(str(folder / f"{name}.pem"))

    def pair(name: str, issued: trustme.LeafCert) -> Pair:
        made = Pair(cert=folder / f"{name}.crt", key=folder / f"{name}.key")
        made.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(made.key))
        return made

    return Certificates(
        ca=folder / "ca.pem",
        other_ca=folder / "other_ca.pem",
        server=pair("server", authority.issue_cert("127.0.0.1", "localhost")),
        client=pair("client", authority.issue_cert("client@example.org")),
        expired=pair("expired", authority.issue_cert("127.0.0.1", not_after=YESTERDAY)),
        elsewhere=pair("elsewhere", authority.issue_cert("triton.example.org")),
    )


@contextmanager
def tls_proxy(target: str, context: ssl.SSLContext, *, breaks_off: int = 0) -> Iterator[str]:
    """The address of a proxy that speaks TLS and hands on what it is sent.

    Connections whose handshake fails are closed, as servers do.

    Args:
        target: host:port of what is behind.
        context: the proxy's certificate.
        breaks_off: so many connections are closed at once, as a port does whose server is still starting.
    """
    left = breaks_off
    host, _, port = target.rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        nonlocal left
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if left:
                left -= 1
                connection.close()
                continue
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            connection,
            context.wrap_socket(connection, server_side=True) as inner,
            socket.create_connection((host, int(port))) as outer,
        ):
            back = threading.Thread(target=pump, args=(outer, inner), daemon=True)
            back.start()
            pump(inner, outer)
            back.join(5)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
