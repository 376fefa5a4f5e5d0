from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.cli.app import run
from tests.cli.digits import fake_server, write_plan
from tests.fakes.kserve import CodedError, FakeKServe, cascade_answer, images, member
from tests.fakes.kserve_fronts import GrpcFront

ROOT = Path(__file__).parents[2]
KEYS = np.arange(100) % 30


@dataclass
class Batching:
    """The command against a fake server, in a folder of its own."""

    fake: FakeKServe
    front: GrpcFront
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def batch(
        self,
        source: str,
        output: str = "out.npz",
        *arguments: object,
        code: int = 0,
        model: str = "digits_cascade",
    ) -> str:
        """Runs the command; gives what it printed, to stderr where it failed."""
        words = ["batch", str(self.folder / source), str(self.folder / output), "--model", model]
        words += ["--url", self.front.address, "--repository", str(self.folder / "repository")]
        assert run([*words, *map(str, arguments)]) == code, self.capsys.readouterr()
        captured = self.capsys.readouterr()
        if code:
            assert captured.err.count("\n") == 1, captured.err
        return captured.err if code else captured.out

    def save(self, name: str = "in.npz", **arrays: Any) -> None:
        np.savez(self.folder / name, **arrays)

    def parquet(self, name: str = "in.parquet", **columns: Any) -> None:
        pq.write_table(pa.table(columns), self.folder / name, row_group_size=17)

    def answers(self, name: str = "out.npz") -> dict[str, list]:
        path = self.folder / name
        if path.suffix == ".parquet":
            return pq.read_table(path).to_pydict()
        with np.load(path) as stored:
            return {key: stored[key].tolist() for key in stored.files}

    def refused(self, name: str = "out.refused.jsonl") -> dict[object, str]:
        lines = (self.folder / name).read_text().splitlines()
        return {one["id"]: one["reason"] for one in map(json.loads, lines)}

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Batching]:
    fake = fake_server(max_batch_size=64)
    write_plan(tmp_path / "repository")
    with GrpcFront(fake) as front:
        yield Batching(fake, front, tmp_path, capsys)


def encoded(key: int, kind: str = "PNG") -> bytes:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 0] = int(np.ceil(key / 16 * 255))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


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

    def uneven(rows: np.ndarray, parameters: Any) -> Any:
        key = int(rows[0, 0, 0, 0])
        time.sleep(0.2 if key == 0 else 0)
        finished.append(key)
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


# -- rows that are refused --------------------------------------------------------------------------


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


# -- jobs that cannot be done -----------------------------------------------------------------------


def test_a_server_that_goes_away_is_one_line_and_leaves_nothing(job: Batching) -> None:
    def leaving(rows: np.ndarray, parameters: Any) -> Any:
        if (rows[:, 0, 0, 0] == 25).any():
            job.front.stop(wait=False)
        return cascade_answer(rows, parameters)

    job.fake.models[0].__dict__["answer"] = leaving
    job.save(images=images(np.arange(400) % 400))
    (job.folder / "out.parquet").write_bytes(b"an older result")
    before = job.files()
    line = job.batch("in.npz", "out.parquet", "--request-rows", 4, "--in-flight", 2, code=5)
    done = int(line.split("stopped after ")[1].split(" ")[0])
    assert 0 <= done < 28
    assert done % 4 == 0
    assert "of 400 rows, nothing written" in line
    assert job.files() == before
    assert (job.folder / "out.parquet").read_bytes() == b"an older result"


def test_a_member_that_is_down_stops_the_job_instead_of_refusing_every_row(job: Batching) -> None:
    job.fake.fail_next(10_000, "INTERNAL", "stage 0: member digits_small: not loaded")
    job.save(images=images(range(100)))
    line = job.batch("in.npz", code=5)
    assert "stopped after 0 of 100 rows" in line
    assert "not loaded" in line
    # Eight requests of 32 rows are under way at most, each halved down to one row and a little beside.
    assert len(job.fake.calls) <= 4 * 10


def test_a_failure_that_passes_is_retried(job: Batching) -> None:
    job.fake.fail_next(3, "UNAVAILABLE")
    job.save(images=images([1, 2, 3]))
    job.batch("in.npz")
    assert job.answers()["label"] == [1, 2, 3]


def test_ctrl_c_leaves_nothing_half_written(job: Batching) -> None:
    reached = threading.Event()

    def counted(rows: np.ndarray, parameters: Any) -> Any:
        if len(job.fake.calls) > 5:
            reached.set()
        return cascade_answer(rows, parameters)

    job.fake.models[0].__dict__["answer"] = counted
    job.fake.delay_s = 0.05
    job.save(images=images(range(200)))
    before = job.files()
    words = ["batch", str(job.folder / "in.npz"), str(job.folder / "out.npz"), "--model", "digits_cascade"]
    words += ["--url", job.front.address, "--request-rows", "1", "--in-flight", "2"]
    # In a process of its own: the signal must not meet the test's threads.
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert reached.wait(30)
        assert len(job.files() - before) == 2
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert job.files() == before


@pytest.mark.parametrize(
    ("name", "arrays", "text"),
    [
        ("in.npz", {"images": np.zeros((0, 1, 8, 8), np.float32)}, "at least one row"),
        ("in.npz", {"images": np.zeros((3, 3, 8, 8), np.float32)}, "got shape [1, 3, 8, 8]"),
        ("in.npz", {"images": np.zeros((3, 1, 8, 8))}, "got dtype float64, expected float32"),
        ("in.npz", {"images": np.zeros((3, 8, 8), np.float32)}, "rank 3"),
        ("in.npz", {"images": np.float32(1)}, "at least one row"),
        ("in.npz", {"labels": np.zeros(3)}, "got arrays labels, expected an array images"),
        ("in.npz", {"images": images([1, 2]), "ids": np.arange(3)}, "one per row"),
        ("in.npz", {"images": images([1, 2]), "ids": np.array([0.5, 1])}, "whole numbers or text"),
        ("in.npz", {}, "got arrays none"),
    ],
)
def test_archives_that_do_not_fit_are_one_line(job: Batching, name: str, arrays: dict, text: str) -> None:
    job.save(name, **arrays)
    before = job.files()
    assert text in job.batch(name, code=2)
    assert job.files() == before
    assert job.fake.calls == []


@pytest.mark.parametrize(
    ("columns", "more", "text"),
    [
        ({"image": pa.array([], pa.list_(pa.float32()))}, [], "no rows"),
        ({"a": pa.array([1]), "b": pa.array([2])}, [], "got columns a, b, expected a column image"),
        ({"image": pa.array([[1.0]])}, ["--column", "photo"], "got columns image, expected photo"),
        ({"image": pa.array(["text"])}, [], "lists of numbers"),
        ({"image": pa.array([1.0])}, [], "lists of numbers"),
        ({"image": pa.array([["a"]])}, [], "lists of numbers"),
        ({"id": pa.array([None, 1]), "image": pa.array([b"", b""])}, [], "an id in every row"),
        ({"id": pa.array([0.5]), "image": pa.array([b""])}, [], "whole numbers or text"),
    ],
)
def test_parquet_files_that_do_not_fit_are_one_line(job: Batching, columns: dict, more: list, text: str) -> None:
    job.parquet(**columns)
    before = job.files()
    assert text in job.batch("in.parquet", "out.parquet", *more, code=2)
    assert job.files() == before


def test_pictures_without_a_plan_that_says_how_are_one_line(job: Batching) -> None:
    job.parquet(image=pa.array([encoded(1)]))
    assert "--repository" in job.batch("in.parquet", "out.npz", code=2, model="digits_small")


@pytest.mark.parametrize(
    ("source", "output", "text"),
    [
        ("missing.npy", "out.npz", "no such file"),
        ("in.csv", "out.npz", "expected .npy, .npz or .parquet"),
        ("broken.npy", "out.npz", "cannot read"),
        ("broken.npz", "out.npz", "cannot read"),
        ("cut.npz", "out.npz", "cannot read"),
        ("broken.parquet", "out.npz", "cannot read"),
        ("in.npz", "out.csv", "ending in .parquet or .npz"),
        ("in.npz", "no/out.npz", "no such folder"),
        ("in.npz", "in.npz", "the input itself"),
        ("pickled.npz", "out.npz", "cannot read"),
    ],
)
def test_files_that_are_missing_or_broken_are_one_line(job: Batching, source: str, output: str, text: str) -> None:
    job.save(images=images([1]))
    for name in ("in.csv", "broken.npy", "broken.npz", "broken.parquet"):
        (job.folder / name).write_bytes(b"nothing of the kind")
    (job.folder / "cut.npz").write_bytes((job.folder / "in.npz").read_bytes()[:-40])
    job.save("pickled.npz", images=np.array([{}], object))
    before = job.files()
    assert text in job.batch(source, output, code=2)
    assert job.files() == before


def test_data_that_breaks_off_in_the_middle_is_one_line_and_leaves_nothing(job: Batching) -> None:
    job.save(images=images(np.arange(300)))
    raw = bytearray((job.folder / "in.npz").read_bytes())
    raw[len(raw) // 2] ^= 255
    (job.folder / "in.npz").write_bytes(raw)
    before = job.files()
    assert "broken data" in job.batch("in.npz", code=2)
    assert job.files() == before


def test_an_unknown_model_and_nobody_listening_are_one_line_and_5(job: Batching) -> None:
    job.save(images=images([1]))
    assert "nobody" in job.batch("in.npz", code=5, model="nobody")
    assert "check that the server runs" in job.batch("in.npz", "out.npz", "--url", "127.0.0.1:9", code=5)
