from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.fixtures import KEYS, Batching, batching_in, encoded
from tests.fakes.kserve import cascade_answer, images


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Batching]:
    with batching_in(tmp_path, capsys) as batching:
        yield batching


# -- what comes out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out.npz", "out.parquet"])
def test_every_row_is_answered_in_order_with_all_columns(job: Batching, output: str) -> None:
    job.save(images=images(KEYS), ids=np.arange(1000, 1100))
    said = job.batch("in.npz", output)
    assert "100 of 100 rows answered," in said
    answers = job.answers(output)
    assert list(answers) == ["id", "label", "confidence", "exit_stage", "cost", "status"]
    assert answers["id"] == list(range(1000, 1100))
    assert answers["label"] == (KEYS % 10).tolist()
    assert answers["exit_stage"] == (KEYS // 10).tolist()
    assert answers["cost"] == (1000.0 * (KEYS // 10 + 1)).tolist()
    assert not (job.folder / "out.refused.jsonl").exists()


def test_order_is_kept_when_later_requests_finish_first(job: Batching) -> None:
    finished: list[int] = []
    overtaken = threading.Event()

    def uneven(rows: np.ndarray, parameters: Any) -> Any:
        key = int(rows[0, 0, 0, 0])
        if key == 0:
            assert overtaken.wait(20)
        finished.append(key)
        if len(finished) > 5:
            overtaken.set()
        return cascade_answer(rows, parameters)

    job.fake.models[0].__dict__["answer"] = uneven
    np.save(job.folder / "in.npy", images(range(40)))
    job.batch("in.npy", "out.npz", "--request-rows", 1, "--in-flight", 4)
    assert job.answers()["label"] == [key % 10 for key in range(40)]
    assert finished.index(0) > 5


def test_requests_have_the_size_and_number_asked_for(job: Batching) -> None:
    job.fake.delay_s = 0.03
    job.save(images=images(KEYS))
    job.batch("in.npz", "out.npz", "--request-rows", 7, "--in-flight", 3)
    sizes = [len(call.rows) for call in job.fake.calls]
    assert sorted(sizes) == [2, *[7] * 14]
    assert job.fake.most_at_once == 3


def test_types_in_parquet_are_those_of_the_interface(job: Batching) -> None:
    job.save(images=images([1]), ids=np.array(["a"]))
    job.batch("in.npz", "out.parquet")
    schema = pq.read_schema(job.folder / "out.parquet")
    assert [str(field.type) for field in schema] == ["string", "int64", "float", "int32", "float", "int32"]


@pytest.mark.parametrize(("model", "parameters"), [("digits_cascade", {"gear": 0}), ("digits_large", {})])
def test_a_cascade_is_asked_for_its_own_thresholds_and_a_member_for_nothing(
    job: Batching, model: str, parameters: dict[str, int]
) -> None:
    job.save(images=images(KEYS))
    job.batch("in.npz", model=model)
    assert len(job.fake.calls) > 1
    assert all(call.parameters == parameters for call in job.fake.calls)


def test_the_summary_can_be_json(job: Batching) -> None:
    job.save(images=images([1, 2]))
    document = json.loads(job.batch("in.npz", "out.npz", "--json"))
    assert (document["rows"], document["answered"], document["refused"]) == (2, 2, 0)
    assert document["rows_per_s"] > 0


# -- what goes in -----------------------------------------------------------------------------------


def test_arrays_come_from_npy_and_from_the_obvious_or_named_array_of_npz(job: Batching) -> None:
    np.save(job.folder / "in.npy", images([5]))
    job.save("usual.npz", labels=np.array([0]), other=np.zeros(3), images=images([6]))
    job.save("first.npz", ids=np.array([4]), pictures=images([7]))
    job.save("named.npz", images=np.zeros(3), mine=images([8]))
    for source, more, label in (
        ("in.npy", [], 5),
        ("usual.npz", [], 6),
        ("first.npz", [], 7),
        ("named.npz", ["--column", "mine"], 8),
    ):
        job.batch(source, "out.npz", *more)
        assert job.answers()["label"] == [label]


def test_fortran_order_and_compression_change_nothing(job: Batching) -> None:
    rows = images(KEYS)
    np.savez_compressed(job.folder / "packed.npz", images=rows)
    job.save("fortran.npz", images=np.asfortranarray(rows))
    np.save(job.folder / "fortran.npy", np.asfortranarray(rows))
    for source in ("packed.npz", "fortran.npz", "fortran.npy"):
        job.batch(source)
        assert job.answers()["label"] == (KEYS % 10).tolist()


@pytest.mark.parametrize("form", ["flat", "nested", "fixed", "double", "bytes", "struct"])
def test_parquet_rows_may_be_lists_or_bytes(job: Batching, form: str) -> None:
    rows = images(KEYS)
    flat = rows.reshape(100, -1)
    column = {
        "flat": lambda: pa.array(flat.tolist(), pa.list_(pa.float32())),
        "nested": lambda: pa.array(rows.tolist(), pa.list_(pa.list_(pa.list_(pa.float32())))),
        "fixed": lambda: pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), 64),
        "double": lambda: pa.array(flat.tolist()),
        "bytes": lambda: pa.array([row.tobytes() for row in rows]),
        "struct": lambda: pa.array([{"bytes": row.tobytes(), "path": "x"} for row in rows]),
    }[form]()
    job.parquet(id=pa.array([f"row {k}" for k in range(100)]), image=column, extra=pa.array(range(100)))
    job.batch("in.parquet", "out.parquet", "--request-rows", 13)
    answers = job.answers("out.parquet")
    assert answers["id"] == [f"row {k}" for k in range(100)]
    assert answers["label"] == (KEYS % 10).tolist()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_parquet_pictures_go_through_the_plans_preprocessing(job: Batching, kind: str) -> None:
    job.parquet(image=pa.array([encoded(key, kind) for key in range(10)]))
    job.batch("in.parquet")
    assert job.answers() | {"confidence": []} == {
        "id": list(range(10)),
        "label": list(range(10)),
        "confidence": [],
        "exit_stage": [0] * 10,
        "cost": [1000.0] * 10,
        "status": [0] * 10,
    }


def test_a_member_and_its_shape_are_enough(job: Batching) -> None:
    job.save(images=images([3, 4]))
    job.batch("in.npz", model="digits_large")
    assert job.answers()["label"] == [3, 4]
    assert job.answers()["cost"] == [0, 0]
