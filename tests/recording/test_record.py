"""`committee record`: every source gives the same records, and what cannot be recorded is one line."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.__main__ import run
from orchestrator.local import LocalMembers
from orchestrator.planner.records import Records, records_from_path
from orchestrator.recording.job import records_of
from tests.commands import printed_by
from tests.full_disk import assert_told_of_full_disk
from tests.recording.builders import NAMES, picture, png, rows_of, write_folder, write_member


class Recording:
    """The command in a folder with members a and b."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.capsys = capsys
        write_member(self.repository, "a", seed=1)
        write_member(self.repository, "b", seed=2)

    def record(self, data: object, *options: object, members: str = "a,b", code: int = 0) -> str:
        """Runs it; gives stdout, or the one line on stderr where it failed."""
        words = ["record", "--members", members, "--data", data, "-o", self.folder / "out.npz"]
        return printed_by([*words, "--repository", self.repository, *options], self.capsys, code=code)

    def records(self) -> Records:
        return records_from_path(self.folder / "out.npz")

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Recording:
    return Recording(tmp_path, capsys)


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


def npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_folder_arrays_and_parquet_give_the_same_records(recording: Recording) -> None:
    ids = write_folder(recording.folder / "pictures")
    rows, labels = rows_of(12), np.repeat(np.arange(3), 4)
    encoded = [png(picture(seed)) for seed in range(12)]
    words = [NAMES[label] for label in labels]
    lists = pa.array(rows.reshape(12, -1).tolist(), pa.list_(pa.uint8()))
    sources = [
        recording.folder / "pictures",
        npz(recording.folder / "rows.npz", images=rows, labels=labels, ids=np.array(ids)),
        npz(recording.folder / "words.npz", images=rows, labels=np.array(words), ids=np.array(ids)),
        npz(recording.folder / "fortran.npz", images=np.asfortranarray(rows), labels=labels.astype(np.uint8),
            ids=np.array(ids)),
        parquet(recording.folder / "rows.parquet", image=encoded, label=labels, id=ids),
        parquet(recording.folder / "struct.parquet", image=[{"bytes": one} for one in encoded], label=words,
                id=ids),
        parquet(recording.folder / "lists.parquet", image=lists, label=pa.array(words).dictionary_encode(),
                id=ids),
    ]  # fmt: skip
    expected = {name: LocalMembers(recording.repository, [name]).ask(name, rows) for name in ("a", "b")}
    for source in sources:
        recording.record(source)
        found = recording.records()
        assert found.ids.tolist() == ids, source
        assert found.labels is not None
        assert found.labels.tolist() == labels.tolist()
        for name, scores in expected.items():
            np.testing.assert_array_equal(found.outputs[name], scores)
        assert found.cost == {"a": 144.0, "b": 144.0}
        assert found.meta["members"]["a"]["output_kind"] == "logits"
        assert len(found.meta["data_sha256"]) == 64
    # What it was recorded from, so that the same command again has nothing to do.
    assert [name for name in recording.files() if name.startswith(".")] == [".out.npz.recording"]


def test_rows_without_labels_are_recorded_without_them_and_a_note_says_so(recording: Recording) -> None:
    np.save(recording.folder / "rows.npy", rows_of(5))
    assert "no labels" in recording.record(recording.folder / "rows.npy")
    assert recording.records().labels is None
    for seed in range(3):
        path = recording.folder / "flat" / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(picture(seed)))
    assert "without labels" in recording.record(recording.folder / "flat")
    assert recording.records().ids.tolist() == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("kind", ["pictures", "rows.npz", "rows.npy", "rows.parquet"])
def test_a_limit_takes_rows_spread_over_the_data(recording: Recording, kind: str) -> None:
    write_folder(recording.folder / "pictures", each=8)
    rows = rows_of(24)
    npz(recording.folder / "rows.npz", images=rows)
    np.save(recording.folder / "rows.npy", rows)
    parquet(recording.folder / "rows.parquet", image=[png(picture(seed)) for seed in range(24)])
    recording.record(recording.folder / kind, "--limit", 7)
    found = recording.records()
    wanted = [0, 3, 6, 10, 13, 17, 20]
    assert found.meta["limit"] == 7
    np.testing.assert_array_equal(
        found.outputs["a"], LocalMembers(recording.repository, ["a"]).ask("a", rows[wanted])
    )


def test_the_summary_as_json_has_accuracies_hashes_and_notes(recording: Recording) -> None:
    write_member(recording.repository, "raw", seed=3, random_weights=True)
    write_folder(recording.folder / "pictures")
    summary = json.loads(recording.record(recording.folder / "pictures", "--json", members="a,raw"))
    found = recording.records()
    assert summary["rows"] == 12
    assert summary["members"]["a"]["accuracy"] == (found.outputs["a"].argmax(1) == found.labels).mean()
    assert summary["members"]["raw"]["random_weights"] is True
    assert found.meta["members"]["raw"]["random_weights"] is True
    assert any("random weights in raw" in note for note in summary["notes"])
    assert summary["data_sha256"] == found.meta["data_sha256"]


def test_class_names_go_by_name_and_only_where_there_are_none_by_order(recording: Recording) -> None:
    write_folder(recording.folder / "two", names=("owl", "dog"), each=2)
    recording.record(recording.folder / "two")
    assert recording.records().labels.tolist() == [1, 1, 2, 2]
    write_folder(recording.folder / "foreign", names=("n01", "n02", "n03"), each=1)
    assert "classes that no member has: n01" in recording.record(recording.folder / "foreign", code=2)
    assert "taken in order" in recording.record(recording.folder / "foreign", "--labels-by-order")
    assert recording.records().labels.tolist() == [0, 1, 2]
    write_member(recording.repository, "nameless", labels=None)
    assert "taken in order" in recording.record(recording.folder / "foreign", members="nameless")
    assert "2 classes" in recording.record(recording.folder / "two", members="nameless", code=2)


def test_bad_rows_are_refused_by_name_or_skipped_and_counted(recording: Recording) -> None:
    ids = write_folder(recording.folder / "pictures")
    broken = recording.folder / "pictures" / ids[5]
    broken.write_bytes(broken.read_bytes()[:40])
    (recording.folder / "pictures" / ids[7]).write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    write_member(recording.repository, "fragile", seed=5, fragile=True)
    for options in ((), ("--restart",)):
        assert ids[5] in recording.record(recording.folder / "pictures", *options, code=2)
    out = recording.record(recording.folder / "pictures", "--skip-bad", "--json", members="a,fragile")
    summary, found = json.loads(out), recording.records()
    assert summary["skipped_rows"] == 2
    assert set(summary["skipped"]) == {ids[5], ids[7]}
    assert found.meta["skipped"] == summary["skipped"]
    assert found.ids.tolist() == [row_id for row_id in ids if row_id not in summary["skipped"]]
    np.testing.assert_array_equal(found.outputs["a"], LocalMembers(recording.repository, ["a"]).ask(
        "a", rows_of(12)[[0, 1, 2, 3, 4, 6, 8, 9, 10, 11]]))  # fmt: skip
    broken.unlink()
    assert ids[7] in recording.record(recording.folder / "pictures", members="fragile", code=2)


def test_files_that_are_no_pictures_are_left_out_with_a_note(recording: Recording) -> None:
    write_folder(recording.folder / "pictures")
    (recording.folder / "pictures" / "cat" / "notes.txt").write_text("x")
    (recording.folder / "pictures" / "cat" / ".DS_Store").write_text("x")
    assert "left out: cat/notes.txt" in recording.record(recording.folder / "pictures")
    assert recording.records().rows == 12


def _empty_class(folder: Path) -> Path:
    write_folder(folder / "data")
    (folder / "data" / "yak").mkdir()
    return folder / "data"


def _folder(folder: Path, *, sub: str | None = None) -> Path:
    (folder / "data" / (sub or "")).mkdir(parents=True)
    return folder / "data"


def _loose(folder: Path) -> Path:
    write_folder(folder / "data")
    (folder / "data" / "x.png").write_bytes(png(picture(1)))
    return folder / "data"


def _renamed(folder: Path) -> Path:
    np.save(folder / "d.npy", ROWS)
    return (folder / "d.npy").rename(folder / "d.npz")


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def _flipped(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


ROWS = rows_of(12)
ENCODED = [png(picture(seed)) for seed in range(12)]
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: f / "none", "which is not there"),
    "missing file": (lambda f: f / "none.npz", "no such file"),
    "kind": (lambda f: f / "repository" / "a" / "manifest.json", "expected digits:"),
    "split": (lambda f: "digits:none", "digits split"),
    "digits do not fit": (lambda f: "digits:plan", "dtype float32, expected uint8"),
    "empty class": (_empty_class, "class folders without pictures: yak"),
    "no pictures": (_folder, "no pictures"),
    "no pictures in classes": (lambda f: _folder(f, sub="cat"), "no pictures in its sub-folders"),
    "loose": (_loose, "beside the class folders: x.png"),
    "dtype": (lambda f: npz(f / "d.npz", images=ROWS.astype(np.float32)), "dtype float32, expected uint8"),
    "shape": (lambda f: npz(f / "d.npz", images=ROWS[:, :, :3]), "shape [1, 3, 3, 4]"),
    "no rows": (lambda f: npz(f / "d.npz", images=ROWS[:0]), "expected at least one row"),
    "no images": (lambda f: npz(f / "d.npz", labels=np.arange(3)), "expected an array images"),
    "high label": (lambda f: npz(f / "d.npz", images=ROWS, labels=np.arange(12)), "labels from 0 to 11"),
    "low label": (lambda f: npz(f / "d.npz", images=ROWS, labels=np.arange(12) - 12), "labels from -12"),
    "float label": (lambda f: npz(f / "d.npz", images=ROWS, labels=np.full(12, 0.5)), "float64 such as 0.5"),
    "few labels": (lambda f: npz(f / "d.npz", images=ROWS, labels=np.zeros(3, int)), "shape [3]"),
    "strange label": (lambda f: npz(f / "d.npz", images=ROWS, labels=np.array(["cat", "yak"] * 6)), "has: yak"),
    "duplicate id": (lambda f: npz(f / "d.npz", images=ROWS, ids=np.arange(12) // 2), "more than once: 0, 1, 2"),
    "few ids": (lambda f: npz(f / "d.npz", images=ROWS, ids=np.arange(3)), "shape [3]"),
    "objects": (lambda f: npz(f / "d.npz", images=np.array([{}] * 3, object)), "numpy cannot read"),
    "array as npz": (_renamed, "a single array, expected an archive"),
    "truncated npz": (lambda f: _cut(npz(f / "d.npz", images=ROWS), 0.6), "numpy cannot read"),
    "flipped npz": (lambda f: _flipped(npz(f / "d.npz", images=ROWS)), "numpy cannot read"),
    "parquet dtype": (lambda f: parquet(f / "d.parquet", image=["x"] * 3), "column image"),
    "parquet columns": (lambda f: parquet(f / "d.parquet", x=ENCODED, y=ENCODED), "columns x, y"),
    "parquet label": (lambda f: parquet(f / "d.parquet", image=ENCODED, label=[9] * 12), "labels from 9 to 9"),
    "parquet null": (lambda f: parquet(f / "d.parquet", image=ENCODED, label=[0, None] * 6), "6 of 12 rows"),
    "parquet id": (lambda f: parquet(f / "d.parquet", image=ENCODED, id=["x"] * 12), "more than once: x"),
    "parquet picture": (lambda f: parquet(f / "d.parquet", image=[*ENCODED[:8], ENCODED[8][:40]]), "row 8 that"),
    "truncated parquet": (lambda f: _cut(parquet(f / "d.parquet", image=ENCODED), 0.6), "pyarrow cannot read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_data_that_cannot_be_used_is_one_line(recording: Recording, case: str) -> None:
    make, said = BAD[case]
    error = recording.record(make(recording.folder), code=2)
    assert said in error
    assert "out.npz" not in recording.files()


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ({"name": "other", "classes": 4}, "3 classes of a, 4 of other"),
        ({"name": "large", "side": 5}, "UINT8 [3, 5, 5] for large"),
        ({"name": "swapped", "labels": ("dog", "cat", "owl")}, "another order of them in swapped than in a"),
        ({"name": "short", "labels": ("dog",)}, "in short than in a"),
        ({"name": "missing"}, "no manifest.json"),
    ],
)
def test_members_that_do_not_go_together_are_one_line(recording: Recording, member: dict, said: str) -> None:
    if member["name"] != "missing":
        write_member(recording.repository, **member)
    npz(recording.folder / "d.npz", images=ROWS)
    assert said in recording.record(recording.folder / "d.npz", members=f"a,{member['name']}", code=2)


def test_members_and_options_that_make_no_sense_are_one_line(recording: Recording) -> None:
    data = npz(recording.folder / "d.npz", images=ROWS)
    assert "a more than once" in recording.record(data, members="a,a", code=2)
    assert "expected names of members" in recording.record(data, members="", code=2)
    for word in ("a", "a=x", "a=-1", "a=nan", "=3"):
        assert "NAME=COST" in recording.record(data, "--cost", word, code=2)
    assert "c, not recorded" in recording.record(data, "--cost", "c=1", code=2)
    assert "the data itself" in recording.record(data, "-o", data, code=2)
    assert "a folder" in recording.record(data, "-o", recording.folder, code=2)
    assert "127.0.0.1:1" in recording.record(data, "--url", "127.0.0.1:1", "--timeout-s", 0.5, code=5)


def test_costs_on_the_command_line_come_before_the_manifests(recording: Recording) -> None:
    recording.record(npz(recording.folder / "d.npz", images=ROWS), "--cost", "b=2.5")
    assert recording.records().cost == {"a": 144.0, "b": 2.5}


def test_members_may_stand_alone_after_the_option_or_behind_commas(recording: Recording) -> None:
    data = npz(recording.folder / "d.npz", images=ROWS)
    tail = [
        "--data",
        str(data),
        "-o",
        str(recording.folder / "out.npz"),
        "--repository",
        str(recording.repository),
    ]
    for words in (["a", "b"], ["--members", "a", "b"], ["--members", "a,b"], ["--members=a", "--members=b"]):
        assert run(["record", *words, *tail]) == 0
        assert list(recording.records().outputs) == ["a", "b"]


def test_a_disk_without_room_is_refused_before_any_work(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = npz(recording.folder / "d.npz", images=ROWS)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    assert "free" in recording.record(data, code=1)
    assert "out.npz" not in recording.files()


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing_half_written(recording: Recording) -> None:
    data = npz(recording.folder / "d.npz", images=rows_of(5000))
    words = [
        "record",
        "a",
        "--data",
        data,
        "-o",
        recording.folder / "out.npz",
        "--repository",
        recording.repository,
    ]
    # The parts of an unfinished recording lie beside the output.
    assert_told_of_full_disk(words, most_bytes=30_000, written=recording.folder / ".out.npz.parts")
    assert recording.files() == {"repository", "d.npz"}


def test_records_in_memory_are_those_of_the_file(recording: Recording) -> None:
    data = npz(recording.folder / "d.npz", images=rows_of(700), labels=np.arange(700) % 3)
    recording.record(data)
    held, stored = records_of(recording.repository, ["a", "b"], str(data)), recording.records()
    # Null is as good as missing, and left out where a file is read.
    assert {key: value for key, value in held.meta.items() if value is not None} == stored.meta
    for name in ("a", "b"):
        np.testing.assert_array_equal(held.outputs[name], stored.outputs[name])


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = Recording(tmp_path, capsys)
    side = 32
    big = tmp_path / "big"
    write_member(big, "m", side=side, preprocess=None)
    pixels = np.random.default_rng(0).integers(0, 256, (6000, 3, side, side)).astype(np.uint8)
    peaks = []
    for rows in (2000, 6000):
        data = tmp_path / f"{rows}.npz"
        np.savez(data, images=pixels[:rows])
        tracemalloc.start()
        recording.record(data, "--repository", big, "--restart", members="m")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    added_bytes = 4000 * 3 * side * side
    assert peaks[1] - peaks[0] < added_bytes / 6, peaks
    assert peaks[1] < pixels.nbytes, peaks
