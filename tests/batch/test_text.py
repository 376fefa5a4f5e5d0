"""`committee batch` over texts and columns of numbers, against a fake server."""

from pathlib import Path

import numpy as np
import pytest

from tests.batch.fixtures import Batching, batching_in
from tests.fakes.kserve import FakeModel, Slot, cascade_answer, images, text_cascade

TEXTS = ["", "a", 'with "quotes", and\nlines', "\N{GRINNING FACE}", "z" * 25]


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with batching_in(tmp_path, capsys) as job:
        job.fake.models = [*job.fake.models, text_cascade(max_batch_size=2), features()]
        yield job


def features() -> FakeModel:
    """Answers by the sum of the numbers of a row."""
    return text_cascade(
        "table",
        inputs=(Slot("features", "FP32", (3,)),),
        answer=lambda rows, parameters: cascade_answer(images(rows.sum(axis=1).astype(int)), parameters),
    )


def test_texts_of_a_parquet_column_are_answered_in_order_and_the_text_may_be_kept(job: Batching) -> None:
    job.parquet(id=[f"r{n}" for n in range(5)], review=TEXTS)
    job.batch("in.parquet", "out.parquet", "--text", "review", "--keep-columns", "review", model="reviews")
    answers = job.answers("out.parquet")
    assert answers["review"] == TEXTS
    assert answers["label"] == [len(text.encode()) % 10 for text in TEXTS]
    assert [call.rows.shape for call in job.fake.calls] == [(1, 1), (2, 1), (2, 1)] or len(job.fake.calls) == 3


def test_a_row_that_is_no_text_is_refused_beside_its_neighbours(job: Batching) -> None:
    (job.folder / "in.csv").write_bytes(b"id,text,more\na,yes,1\nb,\xff,2\nc,,3\n")
    said = job.batch("in.csv", "out.npz", "--keep-columns", "more", model="reviews")
    assert "2 of 3 rows answered, 1 refused" in said
    answers = job.answers()
    assert answers["id"] == ["a", "c"]
    assert answers["label"] == [3, 0]
    assert answers["more"] == ["1", "3"]
    assert "in.csv row 1 (line 3) text: got byte 0xff" in job.refused()["b"]


def test_columns_of_numbers_are_the_rows(job: Batching) -> None:
    (job.folder / "in.jsonl").write_text('{"a": 1, "b": 2, "c": 4}\n{"a": "1", "b": 2, "c": 4}\n')
    job.batch("in.jsonl", "out.npz", "--columns", "a,b", "--columns", "c", model="table")
    assert job.answers()["label"] == [7]
    assert "row 1 (line 2) a: got '1', expected a number" in job.refused()[1]
    assert "expected d; see --columns" in job.batch("in.jsonl", "out.npz", "--columns", "a,b,d", code=2)


def test_texts_of_an_archive_are_rows(job: Batching) -> None:
    job.save("in.npz", text=np.array(TEXTS))
    job.batch("in.npz", "out.npz", model="reviews")
    assert job.answers()["label"] == [len(text.encode()) % 10 for text in TEXTS]
