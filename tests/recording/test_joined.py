"""`committee record --join`: recordings made apart become what one recording of all would have been."""

import json
from pathlib import Path

import pytest

from orchestrator.__main__ import run
from orchestrator.planner.records import records_from_path, write_records
from orchestrator.spec import Preprocess
from tests.planner.builders import made_records
from tests.recording.builders import write_folder, write_member

SIX = Preprocess(mode="RGB", height_px=6, width_px=6)


class Files:
    """Members a and b on disk, pictures for them, and the command."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        write_member(folder / "repository", "a", seed=1)
        write_member(folder / "repository", "b", seed=2)
        write_folder(folder / "pictures", each=12)

    def record(self, members: str, name: str, *options: str, data: str = "pictures") -> str:
        words = ["record", "--members", members, "--data", str(self.folder / data), "-o", self.path(name)]
        assert run([*words, "--repository", str(self.folder / "repository"), *options]) == 0
        self.capsys.readouterr()
        return self.path(name)

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.npz")

    def join(self, *words: str, code: int = 0) -> str:
        """Runs it; gives stdout, or the one line on stderr where it failed."""
        assert run(["record", "--join", *words]) == code
        out = self.capsys.readouterr()
        if code:
            assert out.err.count("\n") == 1, out.err
        return out.err if code else out.out


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Files:
    return Files(tmp_path, capsys)


def test_members_recorded_apart_join_to_the_bytes_of_one_recording(files: Files) -> None:
    apart = [files.record(name, name) for name in ("a", "b")]
    together = files.record("a,b", "together")
    said = files.join(*apart, "-o", files.path("joined"))
    assert Path(files.path("joined")).read_bytes() == Path(together).read_bytes()
    assert "joined.npz: 36 rows, 3 classes, 2 members" in said
    assert "  a: accuracy " in said
    words = ["--max-mean-cost-share", "1", "--allow-near-chance", "--repository", str(files.folder / "repository")]
    assert run(["plan", files.path("joined"), *words]) == 0


def test_json_says_what_a_recording_says_and_what_was_left_out(files: Files) -> None:
    whole, fewer = files.record("a", "whole"), files.record("b", "fewer", "--limit", "18")
    assert "got no scores of 18 of 36 rows" in files.join(whole, fewer, "-o", files.path("joined"), code=2)
    summary = json.loads(files.join(whole, fewer, "-o", files.path("joined"), "--skip-bad", "--json"))
    found = records_from_path(Path(files.path("joined")))
    assert (summary["rows"], found.rows, summary["left_out_rows"]) == (18, 18, 18)
    assert summary["joined"] == [whole, fewer]
    left_out, other_data = summary["notes"]
    assert left_out == "18 rows left out that not every member has"
    assert "share 18 ids and were recorded from other data" in other_data
    right = (found.outputs["b"].argmax(axis=1) == found.labels).mean()
    assert summary["members"]["b"]["accuracy"] == pytest.approx(right)


def test_members_that_take_other_rows_are_told_to_be_joined(files: Files) -> None:
    write_member(files.folder / "repository", "wide", seed=3, side=6, preprocess=SIX)
    words = ["record", "a", "wide", "--data", str(files.folder / "pictures"), "-o", files.path("x")]
    assert run([*words, "--repository", str(files.folder / "repository")]) == 2
    assert "record them apart, then join the files with `committee record --join`" in files.capsys.readouterr().err
    # The same pictures in two sizes are the same rows.
    both = [files.record(name, name) for name in ("a", "wide")]
    files.join(*both, "-o", files.path("joined"))
    assert list(records_from_path(Path(files.path("joined"))).outputs) == ["a", "wide"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["A", "-o", "OUT"], "records to join: got 1 files, expected two or more"),
        (["A", "B", "-o", "A"], "the same file twice"),
        (["A", "A", "-o", "OUT"], "the same file twice"),
        (["A", "B", "-o", "out.json"], "expected a file name ending in .npz"),
        (["A", "missing.npz", "-o", "OUT"], "missing.npz: got no such file"),
        (["A", "B", "-o", "OUT", "--data", "x", "--limit", "3"], "got --data, --limit, expected records files"),
        (["A", "B", "-o", "OUT", "--repository", "x"], "got --repository"),
    ],
)
def test_what_cannot_be_joined_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    places = {name: str(tmp_path / f"{name}.npz") for name in ("A", "B", "OUT")}
    for name in ("A", "B"):
        made = made_records(0, members=1, costs={name: 1.0})
        write_records(made, Path(places[name]))
    assert run(["record", "--join", *(places.get(word, word) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert {path.name for path in tmp_path.iterdir()} == {"A.npz", "B.npz"}


@pytest.mark.parametrize(
    ("words", "says"), [(["a"], "got no --data"), (["a", "--data", "x", "--by-id"], "got --by-id without --join")]
)
def test_without_join_there_are_data_to_ask_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert run(["record", *words, "-o", str(tmp_path / "x.npz")]) == 2
    assert says in capsys.readouterr().err
