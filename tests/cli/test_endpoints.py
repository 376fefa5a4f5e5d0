"""The commands that ask a server: the same addresses, certificates and headers in all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.commandline import guarded
from perf.__main__ import app
from tests.cli.digits import fake_server, images, write_plan
from tests.client.asking import secured
from tests.fakes.kserve import FakeKServe
from tests.tls import Certificates, made_certificates

TOKEN = "Bearer s3cr3t-token"
HEADER = f"Authorization: {TOKEN}"


@dataclass
class Asked:
    """A fake behind TLS, over gRPC and over HTTP."""

    fake: FakeKServe
    grpc: str
    http: str
    made: Certificates
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def said(self, *words: object, code: int = 0) -> str:
        """What a command line prints, with any exit code but the one expected being a failure."""
        assert run([str(word) for word in words]) == code, self.capsys.readouterr()
        captured = self.capsys.readouterr()
        assert "s3cr3t" not in captured.out + captured.err
        if code:
            assert captured.err.count("\n") == 1, captured.err
        return captured.err if code else captured.out

    def words(self, command: str) -> list[object]:
        """A command line but for the address and what belongs to it."""
        data, out = self.folder / "rows.npz", self.folder / "out.npz"
        if command == "infer":
            return ["infer", "digit:3", "--model", "digits_cascade", "--repository", self.folder / "repository"]
        if command == "batch":
            return ["batch", data, out, "--model", "digits_cascade", "--repository", self.folder / "repository"]
        return ["record", "digits_small", "--cost", "digits_small=1", "--data", data, "-o", out, "--restart"]

    def came_with(self, header: str) -> set[str | None]:
        """The values of a header in all requests so far."""
        return {{k.lower(): v for k, v in came.items()}.get(header) for came in self.fake.headers}


@pytest.fixture
def asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Asked]:
    fake, made = fake_server(), made_certificates(tmp_path)
    np.savez(tmp_path / "rows.npz", images=images(range(20)), labels=np.arange(20) % 10)
    write_plan(tmp_path / "repository")
    with secured("grpc", fake, made.server) as grpc, secured("http", fake, made.server) as http:
        yield Asked(fake, grpc, http, made, tmp_path, capsys)


COMMANDS = pytest.mark.parametrize("command", ["infer", "batch", "record"])


@COMMANDS
def test_tls_and_headers_come_from_options(asked: Asked, command: str) -> None:
    where = [
        "--url",
        f"grpcs://{asked.grpc}",
        "--ca",
        asked.made.ca,
        "--header",
        HEADER,
        "--header",
        "X-Tenant: a",
    ]
    asked.said(*asked.words(command), *where)
    assert asked.came_with("authorization") == {TOKEN}
    assert asked.came_with("x-tenant") == {"a"}


@COMMANDS
def test_tls_and_headers_come_from_the_environment(
    asked: Asked, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMITTEE_CA", str(asked.made.ca))
    monkeypatch.setenv("COMMITTEE_HEADERS", HEADER)
    asked.said(*asked.words(command), "--url", f"grpcs://{asked.grpc}")
    assert asked.came_with("authorization") == {TOKEN}


@COMMANDS
@pytest.mark.parametrize(
    ("address", "options", "code", "said"),
    [
        ("grpcs://{grpc}", ["--ca", "{other_ca}"], 5, "an authority that is not trusted"),
        ("{grpc}", ["--header", HEADER], 5, "speaks TLS, behind an address without it; write grpcs://"),
        ("grpcs://{grpc}", ["--cert", "{ca}"], 2, "cert without key"),
        ("{grpc}", ["--ca", "{ca}"], 2, "means no TLS"),
        ("ftp://{grpc}", [], 2, "scheme ftp://, expected"),
        ("grpcs://me:s3cr3t@{grpc}", [], 2, "a user name in it"),
        ("grpcs://{grpc}", ["--header", TOKEN], 2, "no colon in number 1"),
    ],
)
def test_what_cannot_be_is_one_line_that_says_what_to_do_and_writes_nothing(
    asked: Asked, command: str, address: str, options: list[str], code: int, said: str
) -> None:
    def filled(text: str) -> str:
        return text.format(grpc=asked.grpc, ca=asked.made.ca, other_ca=asked.made.other_ca)

    words = [*asked.words(command), "--url", filled(address), *map(filled, options)]
    assert said in asked.said(*words, code=code)
    assert not asked.fake.headers
    assert not list(asked.folder.glob("out*"))


def test_infer_asks_over_http_where_the_address_says_so(asked: Asked) -> None:
    trusted = ["--ca", asked.made.ca]
    over_grpc = asked.said(*asked.words("infer"), "--url", f"grpcs://{asked.grpc}", *trusted, "--json")
    for more in ([], ["--http"]):
        told = asked.said(*asked.words("infer"), "--url", f"https://{asked.http}", *trusted, "--json", *more)
        assert [line for line in told.splitlines() if "latency" not in line] == [
            line for line in over_grpc.splitlines() if "latency" not in line
        ]
    said = asked.said(*asked.words("infer"), "--url", f"grpcs://{asked.grpc}", *trusted, "--http", code=2)
    assert "http:// or https:// over HTTP" in said


def test_headers_that_leave_this_machine_in_clear_are_noted(asked: Asked) -> None:
    words = [*asked.words("infer"), "--timeout-s", "0.3", "--header", HEADER]
    # An address of documentation, which nobody has.
    assert run([str(word) for word in [*words, "--url", "192.0.2.1:8001"]]) == 5
    said = asked.capsys.readouterr().err
    assert "note: 192.0.2.1:8001 has no TLS" in said
    assert "s3cr3t" not in said


@pytest.mark.parametrize("command", ["infer", "batch", "record", "demo"])
def test_help_names_the_variables_and_never_their_values(
    asked: Asked, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMITTEE_HEADERS", HEADER)
    monkeypatch.setenv("COMMITTEE_KEY", "/s3cr3t")
    monkeypatch.setenv("COLUMNS", "200")
    said = asked.said(command, "--help")
    for name in ("--ca", "--cert", "--key", "--header", "COMMITTEE_CA", "COMMITTEE_HEADERS", "grpcs://"):
        assert name in said


@pytest.mark.parametrize("words", ["live --rounds 1 --requests 10 --output", "inputs --rows 10 --output"])
def test_the_measuring_commands_take_the_same(asked: Asked, words: str) -> None:
    where = ["--url", f"grpcs://{asked.grpc}", "--ca", asked.made.ca, "--header", HEADER]
    model = ["--model", "digits_cascade", "--repository", asked.folder / "repository"]
    line = [str(word) for word in [*words.split(), asked.folder / words.split()[0], *model, *where]]
    assert guarded(lambda: app(args=line, standalone_mode=False)) == 0, asked.capsys.readouterr()
    assert "s3cr3t" not in "".join(asked.capsys.readouterr())
    assert asked.came_with("authorization") == {TOKEN}
