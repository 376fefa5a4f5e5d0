"""Addresses, and what belongs to them: read once, refused before anything is sent, never repeated where secret."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.client.endpoint import Endpoint, endpoint_from_address, headers_from_lines
from orchestrator.client.over_grpc import AsyncGrpcClient, GrpcClient
from orchestrator.client.over_http import HttpClient
from orchestrator.errors import InputError
from tests.tls import Certificates, made_certificates

SECRET = "Bearer s3cr3t-token"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return made_certificates(tmp_path_factory.mktemp("certificates"))


def read(address: str, **options: Any) -> Endpoint:
    return endpoint_from_address(address, environment=options.pop("environment", {}), **options)


@pytest.mark.parametrize(
    ("address", "target", "is_tls"),
    [
        ("h:1", "h:1", False),
        ("grpc://h:1", "h:1", False),
        ("http://h:1/", "h:1", False),
        ("grpcs://h:1", "h:1", True),
        ("https://h:1/", "h:1", True),
        ("GRPCS://h:1", "h:1", True),
        ("https://h", "h:443", True),
        ("grpcs://gate.example.org", "gate.example.org:443", True),
        ("[::1]:8001", "[::1]:8001", False),
        ("grpcs://[::1]:8001", "[::1]:8001", True),
        ("unix:/tmp/socket", "unix:/tmp/socket", False),
    ],
)
def test_an_address_says_where_and_whether_with_tls(address: str, target: str, is_tls: bool) -> None:
    endpoint = read(address)
    assert (endpoint.target, endpoint.tls is not None) == (target, is_tls)
    assert str(endpoint) == address.rstrip("/")
    assert endpoint.host == ("" if address.startswith("unix") else target.rpartition(":")[0].strip("[]"))


@pytest.mark.parametrize(
    "address",
    [
        "",
        "h",
        "h:0",
        "h:65536",
        ":1",
        "h:x",
        "::1:8001",
        "h:1/v2",
        "http:/h:1",
        "http://h",
        "grpc://h",
        "h 1:1",
        "h:1?a=b",
    ],
)
def test_what_is_no_address_is_refused_with_what_one_looks_like(address: str) -> None:
    with pytest.raises(InputError, match=r"server address: got .*host:port.*grpcs://"):
        read(address)


@pytest.mark.parametrize("scheme", ["ftp", "grpcss", "tcp", "s3", "htps", "dns"])
def test_an_unknown_scheme_is_an_error_that_names_the_known_ones(scheme: str) -> None:
    with pytest.raises(InputError, match=rf"{scheme}://, expected .*grpc://, grpcs://, http:// or https://"):
        read(f"{scheme}://h:1")


@given(st.from_regex(r"[a-z]{0,6}(://)?[^\x00-\x1f]{0,20}", fullmatch=True))
def test_any_text_is_an_address_or_refused_and_nothing_with_tls_in_its_scheme_is_read_as_clear(text: str) -> None:
    try:
        endpoint = read(text)
    except InputError:
        return
    assert (endpoint.tls is not None) == text.lower().startswith(("grpcs://", "https://"))
    assert endpoint.scheme == "unix" or 0 < endpoint.port < 65536


@pytest.mark.parametrize(
    "address", ["https://me:hunter22@h:1", "grpcs://hunter22@h", "me:hunter22@h:1", "h:1?key=hunter22"]
)
def test_a_password_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(InputError) as caught:
        read(address)
    assert "hunter22" not in str(caught.value)


def test_a_path_is_for_http_alone() -> None:
    endpoint = read("https://h:1/triton/")
    assert (endpoint.path, endpoint.for_http().target) == ("/triton", "h:1")
    with pytest.raises(InputError, match="no path"):
        endpoint.for_grpc()


@pytest.mark.parametrize("address", ["grpc://h:1", "grpcs://h:1", "unix:/x"])
def test_an_http_client_does_not_take_an_address_of_grpc(address: str) -> None:
    with pytest.raises(InputError, match="http:// or https://"):
        HttpClient(address)


def test_each_option_of_tls_is_refused_where_the_address_means_none(made: Certificates) -> None:
    for options in ({"ca": made.ca}, {"cert": made.client.cert, "key": made.client.key}):
        with pytest.raises(InputError, match=f"means no TLS, and {', '.join(options)}, expected grpcs://"):
            read("h:1", **options)


Wrong = Callable[[Certificates, Path], dict[str, Any]]


def with_text(name: str, text: bytes) -> Wrong:
    def make(made: Certificates, folder: Path) -> dict[str, Any]:
        (folder / "text").write_bytes(text)
        return {"cert": made.client.cert, "key": made.client.key} | {name: folder / "text"}

    return make


def with_pass_phrase(made: Certificates, folder: Path) -> dict[str, Any]:
    key = serialization.load_pem_private_key(made.client.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hunter22"),
    )
    (folder / "locked").write_bytes(locked)
    return {"cert": made.client.cert, "key": folder / "locked"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda made, folder: {"cert": made.client.cert}, "cert without key"),
        (lambda made, folder: {"key": made.client.key}, "key without cert"),
        (lambda made, folder: {"ca": folder / "none"}, "No such file"),
        (lambda made, folder: {"ca": folder}, "Is a directory"),
        (lambda made, folder: {"cert": folder / "none", "key": made.client.key}, "No such file"),
        (lambda made, folder: {"cert": made.client.cert, "key": made.server.key}, "a key of another certificate"),
        (with_text("ca", b""), "no certificate that can be read"),
        (with_text("ca", b"\x30\x82\x01\x0a"), "no certificate that can be read"),
        (with_text("cert", b"-----BEGIN CERTIFICATE-----\n"), "no PEM certificate and key"),
        (with_text("key", b""), "no PEM certificate and key"),
        (with_pass_phrase, "an encrypted key"),
    ],
)
@pytest.mark.parametrize("make", [GrpcClient, AsyncGrpcClient, HttpClient])
def test_certificates_that_cannot_be_used_are_refused_before_anything_connects(
    made: Certificates, tmp_path: Path, wrong: Wrong, said: str, make: Any
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make(read("https://127.0.0.1:9", **wrong(made, tmp_path)))
    assert "\n" not in str(caught.value)


def test_the_environment_counts_for_tls_alone_and_less_than_what_is_given(made: Certificates) -> None:
    environment = {
        "COMMITTEE_CA": str(made.ca),
        "COMMITTEE_CERT": str(made.client.cert),
        "COMMITTEE_KEY": str(made.client.key),
        "COMMITTEE_HEADERS": f"Authorization: {SECRET}\n\nX-Tenant: blue\n",
    }
    clear = read("h:1", environment=environment, headers={"X-Tenant": "red"})
    assert (clear.tls, clear.headers) == (None, {"X-Tenant": "red"})
    endpoint = read("grpcs://h:1", environment=environment)
    assert endpoint.tls is not None
    assert (endpoint.tls.ca, endpoint.tls.cert, endpoint.tls.key) == (made.ca, made.client.cert, made.client.key)
    assert endpoint.headers == {"Authorization": SECRET, "X-Tenant": "blue"}
    given = read("grpcs://h:1", environment=environment, ca=made.other_ca, headers={"x-tenant": "red"})
    assert given.tls is not None
    assert (given.tls.ca, given.tls.cert) == (made.other_ca, made.client.cert)
    assert given.headers == {"Authorization": SECRET, "x-tenant": "red"}
    # A pair is taken whole: a certificate from here would not fit a key from there.
    with pytest.raises(InputError, match="cert without key"):
        read("grpcs://h:1", environment=environment, cert=made.client.cert)


@pytest.mark.parametrize(
    "lines",
    [
        [SECRET],
        [f"Authorization {SECRET}"],
        [f"{SECRET}: x"],
        [f": {SECRET}"],
        [f"X-A: {SECRET}\x07"],
        [f"X-Ä: {SECRET}"],
    ],
)
def test_a_header_that_cannot_be_read_is_refused_and_not_repeated(lines: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        headers_from_lines(lines)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "ü"])
def test_a_value_cannot_smuggle_another_header(value: str) -> None:
    with pytest.raises(InputError, match="printable ASCII"):
        read("h:1", headers={"X-A": value})


@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "Host", "Inference-Header-Content-Length"]
)
def test_headers_that_the_protocol_writes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        read("h:1", headers={name: "1"})


@pytest.mark.parametrize("name", ["grpc-timeout", "trace-bin"])
def test_headers_that_grpc_keeps_for_itself_are_refused_there(name: str) -> None:
    read("h:1", headers={name: "1"}).for_http()
    with pytest.raises(InputError, match=name):
        read("h:1", headers={name: "1"}).for_grpc()


def test_no_text_of_an_endpoint_has_its_headers() -> None:
    endpoint = read("grpcs://h:1", headers={"Authorization": SECRET})
    for one in (endpoint, endpoint.for_grpc()):
        assert "s3cr3t" not in f"{one} {one!r}"
    said = f"401: {SECRET} or s3cr3t-token is no token of mine"
    assert endpoint.without_secrets(said) == "401: [hidden] or [hidden] is no token of mine"


def test_an_endpoint_is_what_a_client_takes_in_place_of_an_address() -> None:
    endpoint = read("h:1")
    assert endpoint_from_address(endpoint) is endpoint


def test_a_file_may_hold_certificate_and_key(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("client@example.org")
    both = tmp_path / "both.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(both))
    assert read("grpcs://h:1", cert=both, key=both).tls is not None
