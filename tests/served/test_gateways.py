"""A real Triton as gateways have it: TLS with certificates on both sides, and every header forwarded."""

import contextlib
import dataclasses
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from orchestrator.__main__ import run
from orchestrator.client.endpoint import Endpoint, endpoint_from_address
from orchestrator.client.over_http import HttpClient
from orchestrator.errors import ClientError
from orchestrator.repository.index import plan_of
from orchestrator.repository.render import render
from orchestrator.rows.digits import digits_split
from orchestrator.serving.machine import machine_here
from perf.load.analyzer import server_program
from tests.client.asking import KINDS, client_of
from tests.served.fixtures import COMMITTED
from tests.test_load_testing_docs import find_port
from tests.tls import Certificates, made_certificates, tls_proxy

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]
MODEL, NARROW = "digits_cascade", "narrow_cascade"
# What a mesh, a browser and an API gateway put in front of a request.
HEADERS = {
    "X-Request-Id": "7f3a",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=1",
    "b3": "0",
    "baggage": "user=7",
    "X-Forwarded-For": "10.0.0.1, 10.0.0.2",
    "Forwarded": 'for=10.0.0.1;by="_x"',
    "Via": "1.1 gateway",
    "Authorization": "Bearer s3cr3t-token",
    "Cookie": "a=b; c=d",
    "Priority": "u=1",
}


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The server and the ways to it.

    Args:
        grpc: host:port with TLS, which asks for a client certificate.
        http: host:port in clear.
        https: host:port of a proxy in front of that, which asks for a client certificate.
        made: the certificates.
    """

    grpc: str
    http: str
    https: str
    made: Certificates

    def endpoint(self, kind: str, **options: Any) -> Endpoint:
        """Where a kind of client asks, with TLS on both sides."""
        address = f"https://{self.https}" if kind == "http" else f"grpcs://{self.grpc}"
        pair = {"cert": self.made.client.cert, "key": self.made.client.key}
        return endpoint_from_address(address, **{"ca": self.made.ca, **pair, "environment": {}, **options})

    def stock_grpc(self) -> grpcclient.InferenceServerClient:
        """Triton's own client."""
        files = {"root_certificates": self.made.ca, "certificate_chain": self.made.client.cert}
        return grpcclient.InferenceServerClient(self.grpc, ssl=True, private_key=self.made.client.key, **files)

    def post(
        self, parameters: dict[str, object], headers: Mapping[str, str | bytes], model: str = MODEL
    ) -> tuple[int, str]:
        """Status and body of a request over HTTP as it stands."""
        tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64}
        connection = http.client.HTTPConnection(self.http, timeout=30)
        body = json.dumps({"inputs": [tensor], "parameters": parameters})
        with contextlib.closing(connection):
            connection.request("POST", f"/v2/models/{model}/infer", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    made, repository, ports = made_certificates(folder), folder / "repository", [find_port(), find_port()]
    shutil.copytree(COMMITTED, repository, symlinks=True)
    pattern = "^(x-request-id|host|accept-encoding)$|content-"
    narrow = dataclasses.replace(plan_of(COMMITTED, MODEL), name=NARROW, header_pattern=pattern)
    render(narrow, repository, standalone=True)
    words = [
        server_program(machine_here()),
        f"--model-repository={repository}",
        f"--grpc-port={ports[0]}",
        f"--http-port={ports[1]}",
        "--allow-metrics=false",
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={made.server.cert}",
        f"--grpc-server-key={made.server.key}",
        f"--grpc-root-cert={made.ca}",
        "--http-header-forward-pattern=.*",
        "--grpc-header-forward-pattern=.*",
    ]
    grpc, clear = (f"127.0.0.1:{port}" for port in ports)
    with (folder / "log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as server:
        try:
            wait_until_ready(clear, folder / "log")
            with tls_proxy(clear, made.server.context(made.ca)) as https:
                yield Gateway(grpc=grpc, http=clear, https=https, made=made)
        finally:
            # Killed, it would leave the processes of its Python models behind.
            server.terminate()
            server.wait(timeout=60)


def wait_until_ready(address: str, log: Path) -> None:
    until_s = time.monotonic() + 60
    with HttpClient(address, retries=0) as client:
        while not (client.ready(MODEL) and client.ready(NARROW)):
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.float32]:
    return digits_split("test").images[:40]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_same_with_every_header_forwarded(
    gateway: Gateway, kind: str, images: npt.NDArray[np.float32]
) -> None:
    with client_of(kind, gateway.endpoint(kind)) as plain:
        expected = plain.infer(MODEL, images)
    with client_of(kind, gateway.endpoint(kind, headers=HEADERS)) as client:
        answers = client.infer(MODEL, images)
    for name in ("label", "exit_stage", "status", "cost"):
        assert np.array_equal(getattr(answers, name), getattr(expected, name))
    assert len(set(answers.exit_stage)) > 1


def test_a_misspelt_parameter_is_refused_among_headers_and_named(gateway: Gateway) -> None:
    tensor = grpcclient.InferInput("image", [1, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
    lower = {name.lower(): value for name, value in HEADERS.items()}
    with gateway.stock_grpc() as client, pytest.raises(InferenceServerException) as caught:
        client.infer(MODEL, [tensor], headers=lower, parameters={"max_stages": 1})
    assert "did you mean max_stage?" in str(caught.value.message())
    status, said = gateway.post({"max_stages": 1}, HEADERS)
    assert (status, "did you mean max_stage?" in said) == (400, True)
    for told in (str(caught.value.message()), said):
        assert "s3cr3t" not in told
        assert "x-request-id" not in told.lower()
    assert gateway.post({"max_stage": 0}, HEADERS)[0] == 200


@pytest.mark.parametrize("value", [b"J\xfcrgen", b"\xff\xfe", "Jürgen".encode(), b'"quoted" \\ and, more', b""])
def test_a_header_may_hold_any_bytes(gateway: Gateway, value: bytes) -> None:
    status, said = gateway.post({"max_stage": 0}, {"X-Name": value})
    assert status == 200, said


def test_binary_metadata_of_grpc_changes_nothing(gateway: Gateway) -> None:
    tensor = grpcclient.InferInput("image", [1, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
    with gateway.stock_grpc() as client:
        result = client.infer(
            MODEL, [tensor], headers={"grpc-trace-bin": b"\x00\x81\xff", "trace-bin": b"\xfe\x81"}
        )
    assert result.as_numpy("label").shape == (1, 1)


def test_the_plans_pattern_narrows_what_is_passed_over(gateway: Gateway) -> None:
    assert gateway.post({}, {"X-Request-Id": "7"}, NARROW)[0] == 200
    status, said = gateway.post({}, {"X-Request-Id": "7", "X-Other": "7"}, NARROW)
    assert (status, "got 'X-Other'" in said, "header_pattern" in said) == (400, True, True), said
    assert gateway.post({}, {"X-Other": "7"})[0] == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_without_certificate_is_told_what_to_give(gateway: Gateway, kind: str) -> None:
    endpoint = gateway.endpoint(kind, cert=None, key=None)
    with client_of(kind, endpoint, retries=1) as client, pytest.raises(ClientError) as caught:
        client.metadata(MODEL)
    assert "refuses a client without certificate" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_authority_that_is_not_the_servers_is_told(gateway: Gateway, kind: str) -> None:
    endpoint = gateway.endpoint(kind, ca=gateway.made.other_ca)
    with client_of(kind, endpoint, retries=1) as client, pytest.raises(ClientError, match="is not trusted"):
        client.metadata(MODEL)


@pytest.mark.parametrize("way", ["tls_at_the_clear_port", "clear_at_the_tls_port"])
def test_the_wrong_of_both_ports_is_told(gateway: Gateway, way: str) -> None:
    if way == "clear_at_the_tls_port":
        endpoint, said = endpoint_from_address(gateway.grpc), "speaks TLS, behind an address without it"
    else:
        address = f"grpcs://{gateway.http}"
        endpoint, said = endpoint_from_address(address, ca=gateway.made.ca, environment={}), "does not speak TLS"
    with client_of("grpc", endpoint, retries=1) as client, pytest.raises(ClientError, match=said):
        client.metadata(MODEL)


def test_the_demo_measures_a_server_behind_tls(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, output = gateway.made, tmp_path / "demo"
    words = ["demo", "--url", f"grpcs://{gateway.grpc}", "--ca", made.ca, "--cert", made.client.cert]
    words += ["--key", made.client.key, "--header", "Authorization: Bearer s3cr3t-token", "--rounds", 1]
    code = run([str(word) for word in [*words, "--repository", COMMITTED, "--output", output, "--json"]])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    report = json.loads(captured.out)
    assert report["replay_mismatches"] == 0
    assert "s3cr3t" not in captured.out + captured.err + (output / "report.json").read_text()
