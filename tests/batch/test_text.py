"""`committee batch` over texts and columns of numbers, against a fake server."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.cli.batch import REFUSED
from tests.batch.fixtures import Batching, batching_in
from tests.fakes.kserve import FakeModel, Slot, cascade_answer, images, text_cascade, texts_of

TEXTS = ["", "a", 'with "quotes", and\nlines', "\N{GRINNING FACE}", "z" * 25]


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with batching_in(tmp_path, capsys) as job:
        job.fake.models = [*job.fake.models, text_cascade(max_batch_size=2), features(), several(), plain()]
        yield job


def plain() -> FakeModel:
    """The cascade of texts as if ONNX Runtime ran it."""
    return text_cascade("plain", platform="onnxruntime_onnx")


def features() -> FakeModel:
    """Answers by the sum of the numbers of a row."""
    return text_cascade(
        "table",
        inputs=(Slot("features", "FP32", (3,)),),
        answer=lambda rows, parameters: cascade_answer(images(np.nansum(rows, axis=1).astype(int)), parameters),
    )


def several() -> FakeModel:
    """Answers by the length of the text and the sum of the numbers; counts of both must agree."""

    def answer(rows: dict[str, np.ndarray], parameters: dict) -> dict[str, np.ndarray]:
        sums = rows["input_ids"].sum(axis=1)
        keys = [len(text) + total for text, total in zip(texts_of(rows["text"]), sums, strict=True)]
        return cascade_answer(images(keys), parameters)

    return text_cascade(
        "both", inputs=(Slot("text", "BYTES", (1,)), Slot("input_ids", "INT64", (-1,))), answer=answer
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
    said = job.batch("in.csv", "out.npz", "--keep-columns", "more", model="reviews", code=REFUSED)
    assert "2 of 3 rows answered, 1 refused" in said
    answers = job.answers()
    assert answers["id"] == ["a", "c"]
    assert answers["label"] == [3, 0]
    assert answers["more"] == ["1", "3"]
    assert "in.csv row 1 (line 3) text: got byte 0xff" in job.refused()["b"]


@pytest.mark.parametrize("output", ["out.parquet", "out.npz"])
def test_one_long_cell_does_not_make_every_row_as_wide(job: Batching, output: str) -> None:
    long, rows = "z" * 100_000, 200
    cells = [f"r{row},{'t' if row else long},1,2,3" for row in range(rows)]
    cells[7] = f"{long},t,1,2,3"
    (job.folder / "in.csv").write_text("\n".join(["id,note,a,b,c", *cells, "torn", ""]))
    tracemalloc.start()
    words = ["--columns", "a,b,c", "--keep-columns", "note"]
    job.batch("in.csv", output, *words, model="table", code=REFUSED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # An archive is written as one array of text; a column that is one has 4 bytes for each character.
    assert peak < (3 if output == "out.parquet" else 8) * 4 * len(long) * rows / 4
    answers = job.answers(output)
    assert answers["note"] == [long, *["t"] * (rows - 1)]
    assert answers["id"] == [f"r{row}" if row != 7 else long for row in range(rows)]
    # The place of a row that is no row is named once.
    reason = job.refused()[f"row {rows}"]
    assert (
        reason == f"{job.folder}/in.csv row {rows} (line {rows + 2}): got 1 cells, expected 5, one for each column"
    )


def test_columns_of_numbers_are_the_rows(job: Batching) -> None:
    (job.folder / "in.jsonl").write_text('{"a": 1, "b": 2, "c": 4}\n{"a": "1", "b": 2, "c": 4}\n')
    job.batch("in.jsonl", "out.npz", "--columns", "a,b", "--columns", "c", model="table", code=REFUSED)
    assert job.answers()["label"] == [7]
    assert "row 1 (line 2) a: got '1', expected a number" in job.refused()[1]
    assert "expected d; see --columns" in job.batch("in.jsonl", "out.npz", "--columns", "a,b,d", code=2)


def test_the_order_of_columns_that_nobody_named_is_said_and_missing_ones_may_be_nan(job: Batching) -> None:
    (job.folder / "in.csv").write_text("c,a,b\n1,2,4\n,2,4\n")
    repository = job.folder / "repository"
    options = ["--model", "table", "--url", job.front.address, "--repository", f"{repository}"]
    said = "note: input features is c, a, b, in this order; --columns names another"
    job.capsys.readouterr()
    assert run(["batch", f"{job.folder / 'in.csv'}", f"{job.folder / 'out.npz'}", *options]) == REFUSED
    assert job.capsys.readouterr().err.count(said) == 1
    assert "c: got '', expected a number" in job.refused()[1]
    assert (
        run(["infer", f"{job.folder / 'in.csv'}", '{"c": 1, "a": 2, "b": 4}', *options, "--missing-as-nan"]) == 0
    )
    assert job.capsys.readouterr().err.count(said) == 1
    assert [np.isnan(call.rows).sum() for call in job.fake.calls] == [0, 0, 1, 0]


def test_texts_of_an_archive_are_rows(job: Batching) -> None:
    job.save("in.npz", text=np.array(TEXTS))
    job.batch("in.npz", "out.npz", model="reviews")
    assert job.answers()["label"] == [len(text.encode()) % 10 for text in TEXTS]


@pytest.mark.parametrize("name", ["in.npz", "in.parquet"])
def test_a_text_that_onnx_runtime_would_cut_is_refused_beside_its_neighbours(job: Batching, name: str) -> None:
    texts = ["one", "tw\0o", "three"]
    job.save("in.npz", text=np.array(texts))
    job.parquet(text=texts)
    assert "2 of 3 rows answered, 1 refused" in job.batch(name, "out.npz", model="plain", code=REFUSED)
    assert job.answers()["id"] == [0, 2]
    assert "text: got a zero byte (NUL) at 2" in job.refused()[1]
    # Other models get it.
    job.batch(name, "all.npz", model="reviews")
    assert job.answers("all.npz")["id"] == [0, 1, 2]


def test_rows_of_several_tensors_and_of_any_length_are_answered_in_order(job: Batching) -> None:
    ids = [[1], [2, 3], [], [4], [1, 1, 1]]
    job.parquet(text=TEXTS, input_ids=ids)
    values, offsets = np.array([one for row in ids for one in row]), np.cumsum([0, *map(len, ids)])
    job.save("in.npz", text=np.array(TEXTS), **{"input_ids.values": values, "input_ids.offsets": offsets})
    expected = [(len(text.encode()) + sum(row)) % 10 for text, row in zip(TEXTS, ids, strict=True)]
    for source in ("in.parquet", "in.npz"):
        job.batch(source, "out.npz", model="both")
        assert job.answers()["label"] == expected
    # Rows of one length go together, and none is padded.
    assert sorted(call.rows["input_ids"].shape for call in job.fake.calls) == sorted(
        [(2, 1), (1, 2), (1, 0), (1, 3)] * 2
    )
