"""The clients against servers that speak TLS: what gets through, and what is said of what does not."""

from typing import Any

import pytest

from orchestrator.client.endpoint import Endpoint, endpoint_from_address
from orchestrator.errors import ClientError, RefusedError, TlsError, UnavailableError
from tests.client.asking import KINDS, client_of, secured, served
from tests.fakes.kserve import FakeKServe, cascade, images
from tests.tls import Certificates, made_certificates, tls_proxy

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return made_certificates(tmp_path_factory.mktemp("certificates"))


def endpoint(kind: str, address: str, *, clear: bool = False, **options: Any) -> Endpoint:
    scheme = ("http" if kind == "http" else "grpc") + ("" if clear else "s")
    return endpoint_from_address(f"{scheme}://{address}", environment={}, **options)


def refused(kind: str, to: Endpoint) -> ClientError:
    with client_of(kind, to, timeout_s=10, retries=1) as client, pytest.raises(ClientError) as caught:
        client.infer("digits_cascade", images([7]))
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


def test_a_server_whose_authority_is_named_is_asked(kind: str, made: Certificates) -> None:
    fake = FakeKServe([cascade()])
    with (
        secured(kind, fake, made.server) as address,
        client_of(kind, endpoint(kind, address, ca=made.ca)) as client,
    ):
        assert client.infer("digits_cascade", images([7])).label.tolist() == [7]
        assert client.ready("digits_cascade")


def test_the_systems_authorities_are_trusted_where_none_is_named(
    kind: str, made: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with secured(kind, FakeKServe([cascade()]), made.server) as address:
        assert "not trusted" in str(refused(kind, endpoint(kind, address)))
        # Where OpenSSL looks for the system's.
        monkeypatch.setenv("SSL_CERT_FILE", str(made.ca))
        with client_of(kind, endpoint(kind, address)) as client:
            assert client.infer("digits_cascade", images([7])).label.tolist() == [7]


def test_a_named_authority_is_trusted_instead_of_the_systems(
    kind: str, made: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(made.ca))
    with secured(kind, FakeKServe([cascade()]), made.server) as address:
        error = refused(kind, endpoint(kind, address, ca=made.other_ca))
    assert isinstance(error, TlsError)
    assert "an authority that is not trusted" in str(error)
    assert error.fix == "name that authority's certificate as ca"


@pytest.mark.parametrize(
    ("which", "said"),
    [("expired", "out of its dates (certificate has expired)"), ("elsewhere", "that is not for 127.0.0.1")],
)
def test_a_certificate_that_does_not_hold_is_named_with_the_reason(
    kind: str, made: Certificates, which: str, said: str
) -> None:
    fake = FakeKServe([cascade()])
    with secured(kind, fake, getattr(made, which)) as address:
        error = refused(kind, endpoint(kind, address, ca=made.ca))
    assert isinstance(error, TlsError)
    assert said in str(error)
    assert not fake.headers


def test_a_client_certificate_is_shown_to_a_server_that_asks(kind: str, made: Certificates) -> None:
    pair = {"cert": made.client.cert, "key": made.client.key}
    with secured(kind, FakeKServe([cascade()]), made.server, client_ca=made.ca) as address:
        with client_of(kind, endpoint(kind, address, ca=made.ca, **pair)) as client:
            assert client.infer("digits_cascade", images([7])).label.tolist() == [7]
        without = refused(kind, endpoint(kind, address, ca=made.ca))
    assert "refuses a client without certificate" in str(without)
    assert "give a client certificate" in str(without)


def test_a_client_certificate_of_a_stranger_is_refused_with_what_to_give(kind: str, made: Certificates) -> None:
    pair = {"cert": made.client.cert, "key": made.client.key}
    with secured(kind, FakeKServe([cascade()]), made.server, client_ca=made.other_ca) as address:
        error = refused(kind, endpoint(kind, address, ca=made.ca, **pair))
    assert "refuses the client certificate" in str(error)
    assert "an authority it trusts" in str(error)


def test_a_server_in_clear_behind_an_address_with_tls_is_told_from_others(kind: str, made: Certificates) -> None:
    fake = FakeKServe([cascade()])
    with served(kind, fake) as address:
        error = refused(kind, endpoint(kind, address, ca=made.ca, headers={"Authorization": "Bearer abc"}))
    assert "does not speak TLS" in str(error)
    assert "grpc:// (http:// for HTTP)" in str(error)
    assert not fake.headers


@pytest.mark.parametrize("asks_for_certificates", [False, True])
def test_a_server_with_tls_behind_an_address_in_clear_is_told_from_others(
    kind: str, made: Certificates, asks_for_certificates: bool
) -> None:
    client_ca = made.ca if asks_for_certificates else None
    with secured(kind, FakeKServe([cascade()]), made.server, client_ca=client_ca) as address:
        error = refused(kind, endpoint(kind, address, clear=True))
    assert isinstance(error, TlsError)
    assert "speaks TLS, behind an address without it; write grpcs:// (https:// for HTTP)" in str(error)


def test_the_port_of_the_other_protocol_is_told_from_others(kind: str, made: Certificates) -> None:
    other = "grpc" if kind == "http" else "http"
    with secured(other, FakeKServe([cascade()]), made.server) as address:
        error = refused(kind, endpoint(kind, address, ca=made.ca))
    assert isinstance(error, TlsError)
    assert ("a TLS server of gRPC" if kind == "http" else "a TLS server without HTTP/2") in str(error)


def test_nobody_at_an_address_with_tls_is_nobody(kind: str, made: Certificates) -> None:
    error = refused(kind, endpoint(kind, "127.0.0.1:9", ca=made.ca))
    assert type(error) is UnavailableError
    assert "check that the server runs" in str(error)


def test_a_port_that_breaks_connections_off_while_its_server_starts_is_asked_again(
    kind: str, made: Certificates
) -> None:
    fake, context = FakeKServe([cascade()]), made.server.context()
    context.set_alpn_protocols(["http/1.1"] if kind == "http" else ["h2"])
    with (
        served(kind, fake) as clear,
        tls_proxy(clear, context, breaks_off=4) as address,
        client_of(kind, endpoint(kind, address, ca=made.ca), timeout_s=20, retries=20) as client,
    ):
        assert client.infer("digits_cascade", images([7])).label.tolist() == [7]


def test_headers_come_with_every_request(kind: str, made: Certificates) -> None:
    fake = FakeKServe([cascade(max_batch_size=2)])
    headers = {"Authorization": "Bearer abc", "X-Tenant": "blue"}
    with secured(kind, fake, made.server) as address:
        to = endpoint(kind, address, ca=made.ca, headers=headers)
        with client_of(kind, to) as client:
            client.infer("digits_cascade", images([1, 2, 3]))
    assert len(fake.headers) == 2
    for came in fake.headers:
        lower = {name.lower(): value for name, value in came.items()}
        assert (lower["authorization"], lower["x-tenant"]) == ("Bearer abc", "blue")


def test_a_server_that_repeats_a_token_does_not_bring_it_into_the_error(kind: str) -> None:
    fake = FakeKServe([cascade()])
    fake.fail_next(1, "INVALID_ARGUMENT", "the token 'Bearer s3cr3t-token' is not s3cr3t-token")
    with served(kind, fake) as address:
        to = endpoint(kind, address, clear=True, headers={"Authorization": "Bearer s3cr3t-token"})
        with client_of(kind, to) as client, pytest.raises(RefusedError) as caught:
            client.infer("digits_cascade", images([1]))
    assert "the token '[hidden]' is not [hidden]" in str(caught.value)
