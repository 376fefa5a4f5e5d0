"""One server for the tests about digits and one for those about text."""

from collections.abc import Iterator

import pytest

from orchestrator.recording.job import records_of
from orchestrator.rows.digits import digits_split
from tests.served import texts as texts_fixture
from tests.served.fixtures import COMMITTED, ONNX_MEMBERS, ServedRepository, build
from tests.served.texts import ServedTexts
from tests.servers import running_server


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRepository]:
    repository = tmp_path_factory.mktemp("testbed") / "repository"
    repository.mkdir()
    records = records_of(COMMITTED, list(ONNX_MEMBERS), "digits:test")
    specs = build(repository, records)
    images = digits_split("test").images
    with running_server(repository) as server:
        yield ServedRepository(server=server, repository=repository, specs=specs, images=images, records=records)


@pytest.fixture(scope="session")
def served_texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedTexts]:
    repository, table, texts, records = texts_fixture.build(tmp_path_factory.mktemp("texts"))
    with running_server(repository) as server:
        yield ServedTexts(server=server, repository=repository, table=table, texts=texts, records=records)
