"""Jobs into a folder of parts: killed at any moment and started again, no row is lost and none is there twice."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from orchestrator.cli.batch import REFUSED
from tests.batch.fixtures import Batching
from tests.fakes.kserve import images

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
    lines = [line for side in sorted(folder.glob("_refused-*")) for line in side.read_text().splitlines()]
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


@pytest.mark.parametrize("seed", [1, 2])
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
