import json
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.cli.batch import REFUSED
from tests.batch.fixtures import KEYS, Batching, encoded
from tests.fakes.kserve import CodedError, cascade_answer, images, member

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
    assert not (job.folder / "out.npz.refused.jsonl").exists()


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


@pytest.mark.parametrize("guilty", [[0], [99], [40, 41, 42], [3, 17, 64, 65, 99], list(range(32, 64))])
def test_refused_rows_are_found_and_all_others_answered(job: Batching, guilty: list[int]) -> None:
    rows = images(KEYS)
    rows[guilty] = np.nan
    job.save(images=rows, ids=np.arange(100) + 500)
    said = job.batch("in.npz", code=REFUSED)
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
    job.batch("in.npz", "out.npz", "--request-rows", 32, code=REFUSED)
    assert len(job.fake.calls) == 11


def test_rows_that_cannot_be_read_are_refused_before_they_are_sent(job: Batching) -> None:
    good = images([4]).tobytes()
    values = [good, b"short", None, encoded(6), encoded(6)[:40], good]
    job.parquet(id=pa.array([10, 11, 12, 13, 14, 15]), image=pa.array(values))
    job.batch("in.parquet", code=REFUSED)
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
    job.batch("in.parquet", code=REFUSED)
    assert job.answers()["label"] == [0, 3, 5]
    assert list(job.refused()) == [1, 2, 4]
    assert job.refused()[1].endswith("in.parquet row 1: got 63 values, expected 64")


def test_a_row_without_a_finite_output_is_refused_not_answered(job: Batching) -> None:
    def odd(rows: np.ndarray, parameters: Any) -> dict[str, np.ndarray]:
        logits = np.eye(10, dtype=np.float32)[rows[:, 0, 0, 0].astype(int)]
        logits[rows[:, 0, 0, 0] == 7] = np.nan
        return {"logits": logits}

    job.fake.models = [member("odd", answer=odd)]
    job.save(images=images([6, 7, 8]))
    job.batch("in.npz", model="odd", code=REFUSED)
    assert job.answers()["label"] == [6, 8]
    assert list(job.refused()) == [1]


def test_a_member_that_fails_on_one_row_does_not_stop_the_job(job: Batching) -> None:
    def touchy(rows: np.ndarray, parameters: Any) -> Any:
        if (rows[:, 0, 0, 0] == 13).any():
            raise CodedError("INTERNAL", "stage 1: member digits_medium: out of paper")
        return cascade_answer(rows, parameters)

    job.fake.models[0].__dict__["answer"] = touchy
    job.save(images=images(range(30)))
    job.batch("in.npz", code=REFUSED)
    assert job.answers()["id"] == [key for key in range(30) if key != 13]
    assert job.refused() == {13: "stage 1: member digits_medium: out of paper"}


def test_an_older_list_of_refused_rows_does_not_outlive_a_clean_job(job: Batching) -> None:
    job.save("bad.npz", images=images([1, 2]) * np.array([1, np.nan], np.float32)[:, None, None, None])
    job.save("good.npz", images=images([1, 2]))
    job.batch("bad.npz", code=REFUSED)
    assert "out.npz.refused.jsonl" in job.files()
    job.batch("good.npz", "out.parquet")
    assert "out.npz.refused.jsonl" in job.files()
    job.batch("good.npz")
    assert "out.npz.refused.jsonl" not in job.files()


def test_a_job_without_any_answer_fails_and_says_why(job: Batching) -> None:
    job.save(images=images([1, 2]) * np.float32(np.nan))
    before = job.files()
    line = job.batch("in.npz", code=2)
    assert "no row answered" in line
    assert "NaN" in line
    assert job.files() - before == {"out.npz.refused.jsonl"}
    assert list(job.refused()) == [0, 1]
