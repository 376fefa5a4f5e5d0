"""Where rows come from: globs, folders of files of one kind, pictures, URLs."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.__main__ import run
from orchestrator.cli import console
from orchestrator.cli.batch import REFUSED
from tests.batch.fixtures import Batching, encoded
from tests.commands import printed_by
from tests.fakes.kserve import images


def lists(keys: range) -> pa.Array:
    return pa.array(images(keys).reshape(len(keys), 64).tolist(), pa.list_(pa.float32()))


def write(folder: Path, kind: str, keys: range) -> None:
    path = folder / f"rows-{keys.start:03d}{kind}"
    folder.mkdir(exist_ok=True)
    if kind == ".parquet":
        pq.write_table(pa.table({"image": lists(keys)}), path)
    elif kind == ".jsonl":
        rows = images(keys).reshape(len(keys), 64).tolist()
        path.write_text("".join(json.dumps({"image": row}) + "\n" for row in rows))
    elif kind == ".npz":
        np.savez(path, images=images(keys))
    else:
        np.save(path, images(keys))


@pytest.mark.parametrize("kind", [".parquet", ".jsonl", ".npz", ".npy"])
def test_files_of_a_folder_and_of_a_glob_follow_one_another(job: Batching, kind: str) -> None:
    for start in range(0, 30, 10):
        write(job.folder / "in", kind, range(start, start + 10))
    # A part without rows, as engines write them.
    write(job.folder / "in", kind, range(25, 25))
    job.batch("in", "all.npz", "--request-rows", 8)
    assert job.answers("all.npz")["id"] == list(range(30))
    assert job.answers("all.npz")["label"] == [key % 10 for key in range(30)]
    job.batch(f"in/rows-0[12]*{kind}", "some.npz")
    assert job.answers("some.npz")["label"] == list(range(10)) * 2
    job.batch("in", "parts", "--part-rows", 7)
    again = job.folder / "parts" / "part-000000000000.parquet"
    names = sorted(path.name for path in (job.folder / "parts").glob("part-*"))
    (job.folder / "parts" / names[-1]).unlink()
    job.batch("in", "parts")
    found = [one for part in sorted((job.folder / "parts").glob("part-*")) for one in pq.read_table(part)["id"]]
    assert [one.as_py() for one in found] == list(range(30))
    assert again.exists()
    assert "no file of that name" in job.batch(f"in/nothing*{kind}", "none.npz", code=2)


def test_many_small_files_make_no_small_requests(job: Batching) -> None:
    for start in range(200):
        write(job.folder / "in", ".parquet", range(start % 30, start % 30 + 1))
        (job.folder / "in" / f"rows-{start % 30:03d}.parquet").rename(job.folder / "in" / f"{start:04d}.parquet")
    job.batch("in", "out.npz", "--request-rows", 64)
    assert sorted(len(call.rows) for call in job.fake.calls) == [8, 64, 64, 64]
    assert job.answers()["label"] == [start % 30 % 10 for start in range(200)]


def test_a_folder_of_pictures_is_answered_by_path_and_a_broken_one_refused(job: Batching) -> None:
    for place, key in (("b/x.png", 3), ("a/y.png", 4), ("z.png", 5)):
        path = job.folder / "in" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(key))
    (job.folder / "in" / "a" / "broken.png").write_bytes(encoded(1)[:30])
    job.batch("in", code=REFUSED)
    assert dict(zip(job.answers()["id"], job.answers()["label"], strict=True)) == {
        "b/x.png": 3, "a/y.png": 4, "z.png": 5,
    }  # fmt: skip
    assert list(job.refused()) == ["a/broken.png"]


@pytest.mark.parametrize("data", ["memory://data", "memory://data/*/rows-*.parquet"])
def test_data_elsewhere_are_read_through_fsspec_and_a_job_goes_on(job: Batching, data: str) -> None:
    system = fsspec.filesystem("memory")
    for day in (1, 2):
        write(job.folder / "in", ".parquet", range(day * 10, day * 10 + 10))
        system.put_file(f"{job.folder}/in/rows-0{day}0.parquet", f"/data/day=2024-01-0{day}/rows-0{day}0.parquet")
    words = ["batch", data, job.folder / "answers", "--model", "digits_cascade", "--url", job.front.address]
    words += ["--part-rows", 10, "--request-rows", 10]
    printed_by(words, job.capsys)
    assert [one.as_py() for one in pq.read_table(job.folder / "answers")["label"]] == list(range(10)) * 2
    (job.folder / "answers" / "part-000000000010.parquet").unlink(missing_ok=True)
    asked = len(job.fake.calls)
    assert "20 of 20 rows answered" in printed_by(words, job.capsys)
    assert len(job.fake.calls) - asked <= 1
    assert "no such file" in printed_by(["batch", "memory://none/*.npy", *words[2:]], job.capsys, code=2)
    system.rm("/data", recursive=True)


def test_files_whose_columns_do_not_go_together_are_one_line(job: Batching) -> None:
    write(job.folder / "in", ".parquet", range(3))
    pq.write_table(pa.table({"image": ["text"]}), job.folder / "in" / "z.parquet")
    assert "files whose columns do not go together" in job.batch("in", code=2)
    (job.folder / "tables").mkdir()
    (job.folder / "tables" / "a.jsonl").write_text('{"id": 1, "image": [1]}\n')
    (job.folder / "tables" / "b.jsonl").write_text('{"image": [1]}\n')
    assert "b.jsonl: got other columns of ids than the files before" in job.batch("tables", code=2)


def test_off_a_terminal_progress_is_lines(job: Batching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_S", 0.0)
    job.save(images=images(range(100)))
    words = ["batch", job.folder / "in.npz", job.folder / "out", "--model", "digits_cascade"]
    assert run([*map(str, words), "--url", job.front.address, "--request-rows", "25"]) == 0
    lines = [
        line for line in job.capsys.readouterr().err.splitlines() if line.startswith("asking digits_cascade: ")
    ]
    assert "100 of 100 rows" in lines[-1]
    assert "rows/s, 0:00:00 left" in lines[-1]


def test_probabilities_are_carried_and_parts_of_refused_rows_alone_have_their_columns(job: Batching) -> None:
    rows = images(range(60))
    rows[:45] = np.nan
    job.save(images=rows, label=np.arange(60), word=np.array([f"n{row}" for row in range(60)]))
    words = ["--part-rows", 20, "--request-rows", 20, "--probabilities", "--keep-columns", "label,word"]
    job.batch("in.npz", "parts", *words, code=REFUSED)
    parts = [pq.read_table(path) for path in sorted((job.folder / "parts").glob("part-*"))]
    assert [part.num_rows for part in parts] == [0, 0, 15]
    assert parts[2]["id"].to_pylist() == list(range(45, 60))
    assert parts[2]["input_label"].to_pylist() == list(range(45, 60))
    assert [len(one) for one in parts[2]["probabilities"].to_pylist()] == [10] * 15
    assert parts[0].schema.names == parts[2].schema.names
    # Again, from the second part on.
    (job.folder / "parts" / "part-000000000020.parquet").unlink()
    assert "15 of 60 rows answered, 45 refused" in job.batch("in.npz", "parts", *words, code=REFUSED)
    assert pq.read_table(job.folder / "parts")["word"].to_pylist() == [f"n{row}" for row in range(45, 60)]
    job.batch("in.npz", "out.npz", "--probabilities", code=REFUSED)
    assert np.argmax(job.answers("out.npz")["probabilities"], axis=1).tolist() == [
        row % 10 for row in range(45, 60)
    ]


def test_a_table_goes_on_in_its_middle_with_its_ids_and_lines(job: Batching) -> None:
    lines = [json.dumps({"id": f"r{key}", "image": images([key]).ravel().tolist()}) for key in range(30)]
    lines[17] = '{"id": "r17", "image": [1]}'
    (job.folder / "in.jsonl").write_text("\n".join(lines))
    words = ["--part-rows", 10, "--request-rows", 10]
    job.batch("in.jsonl", "parts", *words, code=REFUSED)
    for place in (10, 20):
        (job.folder / "parts" / f"part-0000000000{place}.parquet").unlink()
    said = job.batch("in.jsonl", "parts", *words, code=REFUSED)
    assert "29 of 30 rows answered, 1 refused" in said
    assert ", 10 of them before" in said
    (refused,) = (job.folder / "parts").glob("_refused-*")
    assert "in.jsonl row 17 (line 18)" in json.loads(refused.read_text())["reason"]
    assert pq.read_table(job.folder / "parts")["id"].to_pylist() == [f"r{key}" for key in range(30) if key != 17]
