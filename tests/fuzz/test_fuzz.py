"""Documents that were kept are read again, and each reader is fuzzed for a moment."""

import pytest

from tests.fuzz.documents import changed_bytes
from tests.fuzz.readers import READERS, Reader, records_with_meta
from tests.fuzz.run import Tally, fuzz

DOCUMENTS = [(name, at) for name, reader in READERS.items() for at in range(len(reader.corpus))]


@pytest.mark.parametrize(("name", "at"), DOCUMENTS)
def test_what_was_kept_is_taken_or_refused_in_a_line(name: str, at: int) -> None:
    READERS[name].look(READERS[name].corpus[at])


@pytest.mark.parametrize("name", READERS)
def test_every_reader_takes_some_of_its_corpus(name: str) -> None:
    assert any(READERS[name].look(data) for data in READERS[name].corpus)


def test_a_reader_that_breaks_is_a_finding_and_the_shortest_document_is_kept() -> None:
    def breaking(data: bytes) -> None:
        raise ZeroDivisionError("in here")

    tally = Tally(Reader(name="plan", read=breaking, documents=changed_bytes))
    for data in (b"long", b"b", b"longer"):
        tally.look(data)
    assert [(kind.split()[0], data) for kind, (data, _) in tally.found.items()] == [("ZeroDivisionError", b"b")]


def test_the_command_ends_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz("parameters", seconds=0.1) == 0
    assert "0 findings" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("meta", ['{"members": {"a": null}}', '{"skipped_rows": "1"}', '{"labels_by": {}}'])
def test_meta_of_other_kinds_is_refused_where_records_are_read(meta: str) -> None:
    assert not READERS["records"].look(records_with_meta(meta.encode()))
