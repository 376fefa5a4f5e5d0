"""Raw requests that were kept, on the real server: each is answered or refused, and a good row is answered."""

from collections.abc import Iterator

import pytest

from orchestrator.errors import InputError
from tests.fuzz.readers import CORPUS
from tests.fuzz.served import Target

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()


@pytest.mark.parametrize("name", ["http", "grpc"])
def test_what_was_kept_is_answered_or_refused_and_the_server_lives_on(target: Target, name: str) -> None:
    read = {"http": target.over_http, "grpc": target.over_grpc}[name]
    refused = []
    for path in sorted((CORPUS / name).iterdir()):
        try:
            read(path.read_bytes())
        except InputError:
            refused.append(path.name)
    assert "good" not in refused
    assert refused
    target.require_good()
    assert "endings" not in target.notes()


@pytest.mark.parametrize("kind", ["nan", "huge", "text", "list", "null", "object"])
def test_parameters_of_odd_numbers_and_kinds_are_the_clients_fault(target: Target, kind: str) -> None:
    with pytest.raises(InputError, match="HTTP 400"):
        target.over_http((CORPUS / "http" / f"parameter_{kind}").read_bytes())
