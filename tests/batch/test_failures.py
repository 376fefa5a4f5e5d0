"""Jobs that cannot be done say so in one line and leave nothing half-written."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.batch.fixtures import KEYS, Batching, encoded
from tests.fakes.kserve import cascade_answer, images
from tests.full_disk import assert_told_of_full_disk

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("output", ["out.npz", "out.parquet"])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(job: Batching, output: str) -> None:
    job.save(images=images(np.arange(400) % 400), day=np.arange("2020-01-01", 400, dtype="M8[D]"))
    (job.folder / output).write_bytes(b"an older result")
    before = job.files()
    words = ["batch", job.folder / "in.npz", job.folder / output, "--model", "digits_cascade"]
    words += ["--url", job.front.address, "--keep-columns", "day"]
    assert_told_of_full_disk(words, most_bytes=1000, written=job.folder / output)
    assert job.files() == before
    assert (job.folder / output).read_bytes() == b"an older result"


def test_a_folder_that_vanishes_meanwhile_is_one_line(job: Batching) -> None:
    place = job.folder / "answers"
    place.mkdir()

    def removing(rows: np.ndarray, parameters: Any) -> Any:
        shutil.rmtree(place, ignore_errors=True)
        return cascade_answer(rows, parameters)

    job.fake.models[0].__dict__["answer"] = removing
    job.save(images=images(range(4)))
    line = job.batch("in.npz", "answers/out.parquet", code=1)
    assert f"{place} removed while it was written" in line
    assert not place.exists()


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
        ("in.csv", "out.npz", "no rows"),
        ("broken.npy", "out.npz", "cannot read"),
        ("broken.npz", "out.npz", "cannot read"),
        ("cut.npz", "out.npz", "cannot read"),
        ("broken.parquet", "out.npz", "cannot read"),
        ("in.npz", "out.csv", "ending in .parquet or .npz"),
        ("in.npz", "no/out.npz", "no such folder"),
        ("in.npz", "in.npz", "the input itself"),
        ("pickled.npz", "out.npz", "cannot read"),
        ("bare.npz", "out.npz", "cannot read"),
        ("endless.npz", "out.npz", "broken data"),
        ("negative.npz", "out.npz", "got shape [-1, 1, 8, 8]"),
        ("ids.npz", "out.npz", "bytes that are not ASCII"),
        ("array.npz", "out.npz", "got a single array, expected an archive; name it .npy"),
        ("archive.npy", "out.npz", "got an archive, expected one array; name it .npz"),
    ],
)
def test_files_that_are_missing_or_broken_are_one_line(job: Batching, source: str, output: str, text: str) -> None:
    job.save(images=images([1]))
    for name in ("in.csv", "broken.npy", "broken.npz", "broken.parquet"):
        (job.folder / name).write_bytes(b"nothing of the kind")
    (job.folder / "cut.npz").write_bytes((job.folder / "in.npz").read_bytes()[:-40])
    job.save("pickled.npz", images=np.array([{}], object))
    job.save("ids.npz", images=images([1]), ids=np.array([b"\xff"]))
    # Headers that say more than there is.
    for name, rows in (("endless.npz", 10**12), ("negative.npz", -1)):
        header = BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (rows, 1, 8, 8)}
        )
        with zipfile.ZipFile(job.folder / name, "w") as archive:
            archive.writestr("images.npy", header.getvalue() + bytes(256))
    with zipfile.ZipFile(job.folder / "bare.npz", "w") as archive:
        archive.writestr("images", b"no array")
    with (job.folder / "array.npz").open("wb") as file:
        np.save(file, images([1]))
    (job.folder / "archive.npy").write_bytes((job.folder / "in.npz").read_bytes())
    before = job.files()
    assert text in job.batch(source, output, code=2)
    assert job.files() == before


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_data_broken_in_the_middle_are_one_line_and_leave_nothing(job: Batching, save: Any) -> None:
    noise = np.random.default_rng(5).normal(size=(300, 1, 8, 8)).astype(np.float32)
    save(job.folder / "in.npz", images=noise)
    raw = bytearray((job.folder / "in.npz").read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 64] = b"\xff" * 64
    (job.folder / "in.npz").write_bytes(raw)
    before = job.files()
    assert "broken data" in job.batch("in.npz", code=2)
    assert job.files() == before


def test_an_unknown_model_and_nobody_listening_are_one_line_and_5(job: Batching) -> None:
    job.save(images=images([1]))
    assert "nobody" in job.batch("in.npz", code=5, model="nobody")
    assert "check that the server runs" in job.batch("in.npz", "out.npz", "--url", "127.0.0.1:9", code=5)


def test_what_a_killed_job_left_beside_its_file_is_removed_by_the_next(job: Batching) -> None:
    job.save(images=images(KEYS))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left = [f".{name}.{ended.pid}-0123abcd.part" for name in ("out.npz", "out.npz.refused.jsonl", "other.npz")]
    # A job that still runs keeps its own.
    left.append(f".out.npz.{os.getppid()}-0123abcd.part")
    for name in left:
        (job.folder / name).touch()
    job.batch("in.npz")
    assert job.files() == {"in.npz", "out.npz", "repository", *left[2:]}


def test_servers_beside_in_process_and_http_are_refused(job: Batching) -> None:
    job.save(images=images(KEYS))
    assert "--url: got --in-process beside it" in job.batch("in.npz", "out.npz", "--in-process", code=2)
    places = f"{job.front.address},http://127.0.0.1:8000"
    line = job.batch("in.npz", "out.npz", "--url", places, code=2)
    assert "got 'http://127.0.0.1:8000', expected host:port, grpc:// or grpcs:// over gRPC" in line


def test_the_file_whose_rows_lack_ids_is_named(job: Batching) -> None:
    (job.folder / "in").mkdir()
    pixels = pa.array(images(np.arange(20)).reshape(20, -1).tolist(), pa.list_(pa.float32()))
    job.parquet("in/a.parquet", id=[f"r{row}" for row in range(20)], image=pixels)
    job.parquet("in/b.parquet", image=pixels)
    line = job.batch("in", "answers", "--part-rows", 10, code=2)
    assert f"{job.folder}/in/b.parquet id: got 10 nulls, expected an id in every row" in line
    assert "20 of 40 rows are kept" in line
