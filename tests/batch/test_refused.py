"""Rows that are refused go to a file of their own and stop nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.batch.fixtures import KEYS, Batching, batching_in, encoded
from tests.fakes.kserve import CodedError, cascade_answer, images, member


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Batching]:
    with batching_in(tmp_path, capsys) as batching:
        yield batching


@pytest.mark.parametrize("guilty", [[0], [99], [40, 41, 42], [3, 17, 64, 65, 99], list(range(32, 64))])
def test_refused_rows_are_found_and_all_others_answered(job: Batching, guilty: list[int]) -> None:
    rows = images(KEYS)
    rows[guilty] = np.nan
    job.save(images=rows, ids=np.arange(100) + 500)
    said = job.batch("in.npz")
    assert f"{100 - len(guilty)} of 100 rows answered, {len(guilty)} refused" in said
    kept = [index for index in range(100) if index not in guilty]
    assert job.answers()["id"] == [500 + index for index in kept]
    assert job.answers()["label"] == (KEYS[kept] % 10).tolist()
    assert list(job.refused()) == [500 + index for index in guilty]
    assert all("NaN" in reason and "\n" not in reason for reason in job.refused().values())


def test_finding_one_guilty_row_takes_few_requests(job: Batching) -> None:
    rows = images(range(32))
    rows[9] = np.nan
    job.save(images=rows)
    job.batch("in.npz", "out.npz", "--request-rows", 32)
    assert len(job.fake.calls) == 11


def test_rows_that_cannot_be_read_are_refused_before_they_are_sent(job: Batching) -> None:
    good = images([4]).tobytes()
    values = [good, b"short", None, encoded(6), encoded(6)[:40], good]
    job.parquet(id=pa.array([10, 11, 12, 13, 14, 15]), image=pa.array(values))
    job.batch("in.parquet")
    assert job.answers()["id"] == [10, 13, 15]
    assert job.answers()["label"] == [4, 6, 4]
    reasons = job.refused()
    assert list(reasons) == [11, 12, 14]
    assert "got 5 bytes" in reasons[11]
    assert "null" in reasons[12]
    assert "picture" in reasons[14]


def test_lists_of_another_length_or_with_nulls_are_refused_alone(job: Batching) -> None:
    flat = [images([k]).ravel().tolist() for k in range(6)]
    flat[1] = flat[1][:-1]
    flat[2] = None
    flat[4] = [None, *flat[4][1:]]
    job.parquet(image=pa.array(flat, pa.list_(pa.float32())))
    job.batch("in.parquet")
    assert job.answers()["label"] == [0, 3, 5]
    assert list(job.refused()) == [1, 2, 4]
    assert job.refused()[1] == "row: got 63 values, expected 64"


def test_a_row_without_a_finite_output_is_refused_not_answered(job: Batching) -> None:
    def odd(rows: np.ndarray, parameters: Any) -> dict[str, np.ndarray]:
        logits = np.eye(10, dtype=np.float32)[rows[:, 0, 0, 0].astype(int)]
        logits[rows[:, 0, 0, 0] == 7] = np.nan
        return {"logits": logits}

    job.fake.models = [member("odd", answer=odd)]
    job.save(images=images([6, 7, 8]))
    job.batch("in.npz", model="odd")
    assert job.answers()["label"] == [6, 8]
    assert list(job.refused()) == [1]


def test_a_member_that_fails_on_one_row_does_not_stop_the_job(job: Batching) -> None:
    def touchy(rows: np.ndarray, parameters: Any) -> Any:
        if (rows[:, 0, 0, 0] == 13).any():
            raise CodedError("INTERNAL", "stage 1: member digits_medium: out of paper")
        return cascade_answer(rows, parameters)

    job.fake.models[0].__dict__["answer"] = touchy
    job.save(images=images(range(30)))
    job.batch("in.npz")
    assert job.answers()["id"] == [key for key in range(30) if key != 13]
    assert job.refused() == {13: "stage 1: member digits_medium: out of paper"}


def test_an_older_list_of_refused_rows_does_not_outlive_a_clean_job(job: Batching) -> None:
    job.save("bad.npz", images=images([1, 2]) * np.array([1, np.nan], np.float32)[:, None, None, None])
    job.save("good.npz", images=images([1, 2]))
    job.batch("bad.npz")
    assert "out.refused.jsonl" in job.files()
    job.batch("good.npz")
    assert "out.refused.jsonl" not in job.files()


def test_a_job_without_any_answer_fails_and_says_why(job: Batching) -> None:
    job.save(images=images([1, 2]) * np.float32(np.nan))
    before = job.files()
    line = job.batch("in.npz", code=2)
    assert "no row answered" in line
    assert "NaN" in line
    assert job.files() - before == {"out.refused.jsonl"}
    assert list(job.refused()) == [0, 1]
