"""Raw requests that were kept, on the real server: each is answered or refused, and a good row is answered."""

import pytest

from orchestrator.errors import InputError
from tests.fuzz.served import served_reader

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]


@pytest.mark.parametrize("name", ["http", "grpc"])
def test_what_was_kept_is_answered_or_refused_and_the_server_lives_on(name: str) -> None:
    with served_reader(name) as reader:
        said = [reader.look(data) for data in [*reader.corpus, *reader.corpus]]
        assert any(said)
        assert not all(said)
        assert "endings" not in reader.notes()


def test_parameters_of_odd_numbers_and_kinds_are_refused_as_the_clients_fault() -> None:
    with served_reader("http") as reader:
        for data in reader.corpus:
            if b'"parameters"' in data and b'"deadline_us"' in data and b"100000" not in data:
                with pytest.raises(InputError, match="HTTP"):
                    reader.read(data)
