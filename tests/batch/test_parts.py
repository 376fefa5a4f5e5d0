"""Jobs into a folder of parts: killed at any moment and started again, no row is lost and none is there twice."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from orchestrator.batch.parts import opened_parts
from orchestrator.batch.writers import ParquetAnswers
from orchestrator.cli.batch import REFUSED
from orchestrator.errors import DataError
from orchestrator.spec.cascade import PLAN_SHA256
from tests.batch.fixtures import Batching
from tests.fakes.kserve import cascade_answer, images
from tests.fakes.kserve_fronts import GrpcFront
from tests.full_disk import assert_told_of_full_disk

ROOT = Path(__file__).parents[2]
ROWS = 900


def write_days(folder: Path, rows: int = ROWS) -> None:
    """A folder of Parquet files in folders of days, the last one without rows; some rows are refused."""
    keys = np.arange(rows) % 30
    pixels = images(keys)
    pixels[:, 0, 0, 1] = np.arange(rows)
    pixels[::97, 0, 0, 0] = np.nan
    for day, index in enumerate(np.array_split(np.arange(rows), 3)):
        place = folder / f"day=2024-01-0{day + 1}"
        place.mkdir(parents=True)
        table = pa.table(
            {
                "id": [f"r{one}" for one in index],
                "image": pa.array(pixels[index].reshape(len(index), -1).tolist(), pa.list_(pa.float32())),
            }
        )
        pq.write_table(table, place / "rows.parquet", row_group_size=50)
        pq.write_table(table.slice(0, 0), place / "rows_without.parquet")


def words_of(job: Batching, output: str, *more: object) -> list[str]:
    words = ["batch", job.folder / "in", job.folder / output, "--model", "digits_cascade", "--url"]
    words += [job.front.address, "--repository", job.folder / "repository", *more]
    return list(map(str, words))


def result(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All answers in the order of the parts, and the refused ids."""
    rows = ds.dataset(folder, format="parquet").to_table().to_pylist()
    lines = [line for side in sorted(folder.glob("_refused-*")) for line in side.read_bytes().splitlines()]
    return rows, [json.loads(line)["id"] for line in lines]


def assert_whole(job: Batching, output: str, rows: int = ROWS) -> None:
    answers, refused = result(job.folder / output)
    refused_rows = set(range(0, rows, 97))
    assert refused == [f"r{row}" for row in sorted(refused_rows)]
    good = [row for row in range(rows) if row not in refused_rows]
    assert [one["id"] for one in answers] == [f"r{row}" for row in good]
    assert [one["label"] for one in answers] == [row % 30 % 10 for row in good]
    assert [str(one["day"]) for one in answers] == [f"2024-01-0{row * 3 // rows + 1}" for row in good]


def test_parts_have_every_row_once_and_in_order_with_the_columns_of_folders(job: Batching) -> None:
    write_days(job.folder / "in")
    said = job.batch("in", "answers", "--part-rows", 200, code=REFUSED)
    assert f"{ROWS - 10} of {ROWS} rows answered, 10 refused" in said
    assert_whole(job, "answers")
    assert len(list((job.folder / "answers").glob("part-*.parquet"))) > 2
    # Again: nothing is asked, and the same is said of it.
    asked = len(job.fake.calls)
    assert f"{ROWS - 10} of {ROWS} rows answered, 10 refused" in job.batch("in", "answers", code=REFUSED)
    assert len(job.fake.calls) == asked


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_a_job_killed_at_any_moment_goes_on_where_it_was(job: Batching, seed: int) -> None:
    write_days(job.folder / "in")
    drawn = random.Random(seed)
    job.fake.delay_s = 0.01
    words = words_of(job, "answers", "--part-rows", 40, "--request-rows", 8, "--in-flight", 2)
    asked_before = 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-m", "orchestrator", *words], cwd=ROOT) as process:
            enough = asked_before + drawn.randrange(5, 40)
            while len(job.fake.calls) < enough or not list((job.folder / "answers").glob("part-*")):
                assert process.poll() is None, "it ended before it was killed"
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        asked_before = len(job.fake.calls)
    asked = len(job.fake.calls)
    job.batch("in", "answers", "--part-rows", 40, "--request-rows", 8, code=REFUSED)
    assert_whole(job, "answers")
    # Halves of requests with refused rows are asked again: four times at most.
    assert len({key for call in job.fake.calls[asked:] for key in call.rows[:, 0, 0, 1]}) < ROWS
    assert not [path.name for path in (job.folder / "answers").iterdir() if path.name.startswith(".")]


def test_ids_with_ends_of_lines_do_not_make_one_refused_row_two(job: Batching) -> None:
    pixels = images(np.arange(60) % 30)
    pixels[[0, 30], 0, 0, 0] = np.nan
    ids = [f"r{row}\u2028\u2029\x85\r\n\x0b\x0c\x1c" for row in range(60)]
    job.parquet(id=ids, image=pa.array(pixels.reshape(60, -1).tolist(), pa.list_(pa.float32())))
    for _ in range(2):
        said = job.batch("in.parquet", "answers", "--part-rows", 10, code=REFUSED)
        assert "58 of 60 rows answered, 2 refused" in said
    answers, refused = result(job.folder / "answers")
    assert sorted(refused + [one["id"] for one in answers]) == sorted(ids)


def test_a_part_without_answers_has_the_columns_of_the_others(job: Batching) -> None:
    pixels = images(np.arange(60) % 30)
    pixels[:30, 0, 0, 0] = np.nan
    np.save(job.folder / "in.npy", pixels)
    job.batch("in.npy", "run.2026-01-01", "--probabilities", "--part-rows", 10, "--request-rows", 10, code=REFUSED)
    schemas = [pq.read_schema(path) for path in sorted((job.folder / "run.2026-01-01").glob("part-*"))]
    assert len(schemas) > 2
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert "probabilities" in schemas[0].names


# -- what ends a job early --------------------------------------------------------------------------


def test_a_server_that_goes_away_leaves_what_was_answered_and_the_same_command_goes_on(job: Batching) -> None:
    write_days(job.folder / "in")

    def leaving(rows: np.ndarray, parameters: Any) -> Any:
        if len(job.fake.calls) > 60:
            job.front.stop(wait=False)
        return cascade_answer(rows, parameters)

    job.fake.models[0].__dict__["answer"] = leaving
    line = job.batch("in", "answers", "--request-rows", 5, "--in-flight", 2, code=5)
    kept = int(line.split(" rows are kept")[0].split()[-3])
    assert 0 < kept < ROWS
    assert f"of {ROWS} rows are kept in {job.folder / 'answers'}, the same command goes on from there" in line
    job.fake.models[0].__dict__["answer"] = cascade_answer
    with GrpcFront(job.fake) as front:
        said = job.batch("in", "answers", "--url", front.address, code=REFUSED)
    assert f", {kept} of them before" in said
    assert_whole(job, "answers")


def test_a_server_that_restarts_in_the_middle_is_waited_for(job: Batching) -> None:
    write_days(job.folder / "in")
    back = threading.Event()

    def restart() -> None:
        job.front.stop()
        time.sleep(0.5)
        job.fake.models[0].__dict__["answer"] = cascade_answer
        with GrpcFront(job.fake, job.front.port):
            back.wait(60)

    thread = threading.Thread(target=restart)

    def leaving(rows: np.ndarray, parameters: Any) -> Any:
        if len(job.fake.calls) == 60:
            thread.start()
        return cascade_answer(rows, parameters)

    job.fake.models[0].__dict__["answer"] = leaving
    job.batch("in", "answers", "--request-rows", 5, "--in-flight", 2, "--patience-s", "inf", code=REFUSED)
    back.set()
    thread.join()
    assert_whole(job, "answers")


def test_an_answer_that_takes_too_long_and_a_full_disk_leave_whole_parts(job: Batching) -> None:
    write_days(job.folder / "in")

    def slow(rows: np.ndarray, parameters: Any) -> Any:
        if (rows[:, 0, 0, 1] == 500).any():
            time.sleep(1)
        return cascade_answer(rows, parameters)

    job.fake.models[0].__dict__["answer"] = slow
    line = job.batch("in", "answers", "--timeout-s", 0.5, "--part-rows", 100, code=5)
    assert "rows are kept" in line
    job.fake.models[0].__dict__["answer"] = cascade_answer
    kept = {path.name for path in (job.folder / "answers").glob("part-*")}
    assert_told_of_full_disk(words_of(job, "answers"), most_bytes=2600, written=job.folder / "answers")
    assert {path.name for path in (job.folder / "answers").glob("part-*")} == kept
    job.batch("in", "answers", code=REFUSED)
    assert_whole(job, "answers")


def test_ctrl_c_keeps_what_was_answered(job: Batching) -> None:
    write_days(job.folder / "in")
    job.fake.delay_s = 0.02
    words = words_of(job, "answers", "--request-rows", 5, "--in-flight", 2)
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        while len(job.fake.calls) < 80:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"of {ROWS} rows are kept" in err
    assert "Traceback" not in err
    job.fake.delay_s = 0
    assert "of them before" in job.batch("in", "answers", code=REFUSED)
    assert_whole(job, "answers")


@pytest.mark.parametrize("added", [1, 12])
def test_an_interrupt_between_rows_and_their_count_loses_and_doubles_none(
    job: Batching, monkeypatch: pytest.MonkeyPatch, added: int
) -> None:
    write_days(job.folder / "in")
    add_batch, calls = ParquetAnswers.add_batch, itertools.count(1)

    def interrupted(self: ParquetAnswers, batch: Any) -> None:
        add_batch(self, batch)
        if next(calls) == added:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    monkeypatch.setattr(ParquetAnswers, "add_batch", interrupted)
    # Processes that share the tests of a run ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        said = job.batch("in", "answers", "--request-rows", 20, code=130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert f"of {ROWS} rows are kept" in said
    kept = int(said.split(f" of {ROWS} rows are kept")[0].split()[-1])
    # Blocks are of one group of rows at most, and end where a file does.
    assert kept >= 20 * added // 2
    assert f", {kept} of them before" in job.batch("in", "answers", code=REFUSED)
    assert_whole(job, "answers")


def test_a_column_that_cannot_be_written_is_told_of_as_what_it_is(
    job: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.save(images=images(np.arange(60)))

    def refuse(*_: object) -> Any:
        raise DataError("column", got="nothing that Parquet has")

    monkeypatch.setattr(ParquetAnswers, "batch_of", refuse)
    assert "column: got nothing that Parquet has; 0 of 60 rows are kept" in job.batch("in.npz", "answers", code=2)
    assert not list((job.folder / "answers").glob("*part-*"))


def test_carried_columns_may_have_either_order_of_bytes(job: Batching) -> None:
    job.save(images=images(np.arange(60)), be=np.arange(60, dtype=">i4"), le=np.arange(60, dtype="<i4"))
    for output in ("answers", "out.parquet"):
        job.batch("in.npz", output, "--keep-columns", "be,le")
        table = pq.read_table(job.folder / output)
        assert table["be"].type == pa.int32()
        assert table["be"].to_pylist() == table["le"].to_pylist() == list(range(60))


# -- what is not the same job -----------------------------------------------------------------------


def test_a_broken_file_is_one_line_and_rows_before_it_are_kept_until_it_is_mended(job: Batching) -> None:
    write_days(job.folder / "in")
    second = job.folder / "in" / "day=2024-01-02" / "rows.parquet"
    whole = second.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 3 : len(whole) // 3 + 400] = b"\xff" * 400
    second.write_bytes(damaged)
    line = job.batch("in", "answers", "--part-rows", 50, code=2)
    assert f"{second}: got row" in line
    assert "rows are kept" in line
    second.write_bytes(whole[:-50])
    assert "pyarrow cannot read" in job.batch("in", "answers", code=2)
    second.write_bytes(whole)
    assert "of them before" in job.batch("in", "answers", code=REFUSED)
    assert_whole(job, "answers")


def test_a_folder_of_another_job_or_with_other_things_is_refused(job: Batching) -> None:
    write_days(job.folder / "in")
    job.batch("in", "answers", "--part-rows", 100, code=REFUSED)
    asked = len(job.fake.calls)
    for more, said in (
        (["--keep-columns", "id"], "results of another job, with columns"),
        (["--probabilities"], "results of another job, with probabilities False"),
    ):
        assert said in job.batch("in", "answers", *more, code=2)
    assert "with model digits_cascade" in job.batch("in", "answers", model="digits_large", code=2)
    parameters = {PLAN_SHA256: {"string_value": "another"}}
    job.fake.models[0].settings["parameters"] = parameters
    assert "results of another job, with plan None, expected another" in job.batch("in", "answers", code=2)
    del job.fake.models[0].settings["parameters"]
    first = job.folder / "in" / "day=2024-01-01" / "rows.parquet"
    pq.write_table(pq.read_table(first, partitioning=None), first)
    line = job.batch("in", "answers", code=2)
    assert "results of other data: day=2024-01-01/rows.parquet" in line
    # As a person and `touch -d` read it.
    written = datetime.fromtimestamp(first.stat().st_mtime, UTC)
    assert f"bytes, written at {written:%Y-%m-%dT%H:%M:%S}." in line
    # What is refused is left as it is, parts behind a gap too.
    parts = sorted((job.folder / "answers").glob("part-*"))
    parts[0].rename(job.folder / "kept")
    assert "results of another job" in job.batch("in", "answers", "--probabilities", code=2)
    assert sorted((job.folder / "answers").glob("part-*")) == parts[1:]
    (job.folder / "kept").rename(parts[0])
    (job.folder / "other").mkdir()
    (job.folder / "other" / "notes.txt").write_text("mine")
    assert "a folder that holds something else: notes.txt" in job.batch("in", "other", code=2)
    assert [path.name for path in (job.folder / "other").iterdir()] == ["notes.txt"]
    assert len(job.fake.calls) == asked


@pytest.mark.parametrize("change", ["partition", "ids"])
def test_input_that_has_grown_does_not_make_parts_of_other_types(job: Batching, change: str) -> None:
    pixels = pa.array(images(np.arange(20)).reshape(20, -1).tolist(), pa.list_(pa.float32()))
    for day in ("day=1", "day=x"):
        (job.folder / "in" / day).mkdir(parents=True)
    table = pa.table({"image": pixels})
    pq.write_table(table, job.folder / "in" / "day=1" / "rows.parquet")
    job.batch("in", "answers")
    if change == "partition":
        pq.write_table(table, job.folder / "in" / "day=x" / "rows.parquet")
    else:
        named = table.append_column("id", pa.array([f"r{row}" for row in range(20)]))
        pq.write_table(named, job.folder / "in" / "day=1" / "rows2.parquet")
    line = job.batch("in", "answers", code=2)
    column, got, expected = {"partition": ("day", "string", "int"), "ids": ("id", "string", "int64")}[change]
    assert f"column {column}: got {got}, expected {expected}" in line
    assert "20 of 40 rows are kept" in line
    assert pq.read_table(job.folder / "answers").num_rows == 20


@pytest.mark.parametrize("output", ["answers", "out.parquet"])
def test_a_plan_that_changes_while_the_job_runs_ends_it_and_no_answer_of_it_is_kept(
    job: Batching, output: str
) -> None:
    write_days(job.folder / "in")
    model = job.fake.models[0]

    def changing(rows: np.ndarray, parameters: Any) -> Any:
        answers = cascade_answer(rows, parameters)
        if len(job.fake.calls) > 60:
            model.settings["parameters"] = {PLAN_SHA256: {"string_value": "b" * 64}}
            answers["label"] = (answers["label"] + 1) % 10
        return answers

    model.settings["parameters"] = {PLAN_SHA256: {"string_value": "a" * 64}}
    model.__dict__["answer"] = changing
    line = job.batch("in", output, "--part-rows", 60, "--request-rows", 10, "--in-flight", 2, code=5)
    assert f"got plan {'b' * 12}, expected plan {'a' * 12}, as at the beginning" in line
    assert (job.folder / "out.parquet").exists() is False
    model.__dict__["answer"] = cascade_answer
    if output == "answers":
        kept = pq.read_table(job.folder / output).num_rows
        assert kept > 100
        assert "results of another job, with plan aaa" in job.batch("in", output, code=2)
        model.settings["parameters"] = {PLAN_SHA256: {"string_value": "a" * 64}}
        assert "of them before" in job.batch("in", output, code=REFUSED)
        assert_whole(job, output)


def test_two_jobs_at_once_do_not_write_one_folder(job: Batching) -> None:
    write_days(job.folder / "in")
    options = {"kept_types": {}, "classes": None, "part_rows": 1, "confirm": lambda: None}
    with opened_parts(job.folder / "answers", {}, (), **options):
        assert "a folder that another job writes to" in job.batch("in", "answers", code=2)
