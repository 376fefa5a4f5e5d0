"""A recording that is stopped, in whatever way, goes on to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.planner.records import records_from_path
from tests.fakes.kserve import CodedError, FakeKServe, FakeModel, Slot
from tests.fakes.kserve_fronts import GrpcFront
from tests.recording.builders import NAMES, SIDE, picture, png, rows_of, write_folder, write_member

ROOT = Path(__file__).parents[2]
MEMBERS = ("a", "b")
EACH = 450


def _answer(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
    # Its first three pixels, so that every row has scores of its own.
    return {"logits": rows.reshape(len(rows), -1)[:, :3].astype(np.float32)}


def served(delay_s: float = 0.0, **changes: object) -> FakeKServe:
    """Members a and b, and one that is a cascade by its outputs."""
    taken, given = Slot("image", "UINT8", (3, SIDE, SIDE)), Slot("logits", "FP32", (3,))
    models = [FakeModel(name, _answer, [taken], [given], max_batch_size=64) for name in MEMBERS]
    return FakeKServe(models, delay_s=delay_s, **changes)


class Job:
    """A folder of pictures recorded from a fake server that can be slow."""

    def __init__(self, folder: Path, front: GrpcFront, fake: FakeKServe) -> None:
        self.folder, self.front, self.fake = folder, front, fake
        self.parts = folder / ".out.npz.parts"

    def words(self, output: str = "out.npz", *options: object) -> list[str]:
        words = ["record", *MEMBERS, "--data", self.folder / "pictures", "-o", self.folder / output]
        words += ["--url", self.front.address, "--repository", self.folder / "repository", *options]
        return list(map(str, words))

    def stopped(self, number: int) -> tuple[int, str]:
        """Runs it in a process of its own until some rows are kept, then stops that."""
        self.fake.delay_s = 0.1
        child = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *self.words()],
            cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        end = time.monotonic() + 60
        while not list(self.parts.glob("0*.npz")) and child.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        child.send_signal(number)
        error = child.communicate(timeout=60)[1]
        self.fake.delay_s = 0.0
        return child.returncode, error

    def bytes(self, output: str = "out.npz") -> bytes:
        return (self.folder / output).read_bytes()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    ids = write_folder(root / "pictures", each=EACH)
    (root / "pictures" / ids[500]).write_bytes(b"no picture")
    write_member(root / "repository", "a", seed=1)
    write_member(root / "repository", "b", seed=2)
    return root


@pytest.fixture(scope="module")
def good_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same number, all of which can be read."""
    root = tmp_path_factory.mktemp("good") / "pictures"
    write_folder(root, each=EACH)
    return root


@pytest.fixture
def job(tmp_path: Path, pictures: Path) -> Iterator[Job]:
    for name in ("pictures", "repository"):
        (tmp_path / name).symlink_to(pictures / name)
    fake = served()
    with GrpcFront(fake) as front:
        yield Job(tmp_path, front, fake)


# Each process works for two seconds. SIGTERM does all that SIGINT does, and what a killed run leaves behind is put
# there by hand below.
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGKILL, signal.SIGINT))],
)
def test_a_stopped_run_goes_on_to_the_bytes_of_one_that_was_not(
    job: Job, good_pictures: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (job.folder / "pictures").unlink()
    (job.folder / "pictures").symlink_to(good_pictures)
    code, error = job.stopped(number)
    assert code == (-number if number == signal.SIGKILL else 128 + number), error
    assert not (job.folder / "out.npz").exists()
    if number != signal.SIGKILL:
        assert "are kept in" in error
        assert error.count("\n") == 1
    asked = len(job.fake.calls)
    assert run([*job.words(), "--json"]) == 0
    out = capsys.readouterr()
    resumed = json.loads(out.out)["resumed_rows"]
    assert f"going on after {resumed} of {3 * EACH} rows" in out.err
    assert 0 < resumed < 3 * EACH
    later = sum(len(call.rows) for call in job.fake.calls[asked:])
    assert later == 2 * (3 * EACH - resumed)
    first = job.bytes()
    assert run(job.words()) == 0
    assert job.bytes() == first
    assert {path.name for path in job.folder.iterdir()} == {"pictures", "repository", "out.npz"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_whose_read_never_returns(tmp_path: Path, number: int) -> None:
    write_folder(tmp_path / "pictures", each=1)
    write_member(tmp_path / "repository", "a")
    words = ["record", "a", "--data", "pictures", "-o", "out.npz", "--repository", "repository"]
    # As from a mount that is gone.
    code = (
        "import sys, threading, orchestrator.rows.pictures as source\n"
        "from orchestrator.__main__ import main\n"
        "def read(path, what):\n    print('reading', flush=True)\n    threading.Event().wait()\n"
        "source.picture_bytes = read\n"
        f"sys.argv = {['committee', *words]}\nmain()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        child.send_signal(number)
        try:
            error = child.communicate(timeout=20)[1]
        finally:
            child.kill()
    assert child.returncode == 128 + number
    assert error == "stopped: no row was settled yet\n"


def test_a_bad_row_stops_and_the_same_command_with_skip_bad_goes_on(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(job.words()) == 2
    error = capsys.readouterr().err
    assert "dog/050.png" in error
    assert f"256 of {3 * EACH} rows are kept" in error
    assert run(job.words("out.npz", "--skip-bad", "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["resumed_rows"], summary["skipped_rows"], summary["rows"]) == (256, 1, 3 * EACH - 1)
    (job.folder / "again").mkdir()
    assert run(job.words("again/out.npz", "--skip-bad")) == 0
    assert job.bytes("again/out.npz") == job.bytes()


def test_other_data_members_or_options_are_refused_or_start_over(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(job.words()) == 2
    capsys.readouterr()
    for options, said in ((("--limit", 9), "limit"), (("--cost", "a=1"), "cost")):
        assert run(job.words("out.npz", *options)) == 2
        error = capsys.readouterr().err
        assert f"differs in {said}," in error
        assert error.count("\n") == 1
    (job.folder / "pictures").unlink()
    write_folder(job.folder / "pictures", each=3)
    assert run(job.words()) == 2
    assert "differs in data identity, rows" in capsys.readouterr().err.replace("labels, ", "")
    assert run(job.words("out.npz", "--restart")) == 0
    assert records_from_path(job.folder / "out.npz").rows == 9


def test_a_broken_part_is_asked_for_again(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(job.words()) == 2
    part = next(job.parts.glob("*.npz"))
    part.write_bytes(part.read_bytes()[:-30])
    (job.folder / ".out.npz.left.part").write_bytes(b"of a killed run")
    assert run(job.words("out.npz", "--skip-bad", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["resumed_rows"] == 0
    assert {path.name for path in job.folder.iterdir()} == {"pictures", "repository", "out.npz"}


def test_two_runs_to_one_file_are_refused(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.fake.delay_s = 0.1
    child = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *job.words()], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        while not (job.parts / "header.json").exists() and child.poll() is None:
            time.sleep(0.01)
        assert run(job.words()) == 2
        assert "another process" in capsys.readouterr().err
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(60)


def test_a_server_that_fails_in_the_middle_loses_nothing(
    job: Job, good_pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [False]

    def fails_later(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
        if broken[0] and sum(len(call.rows) for call in job.fake.calls) > 1000:
            raise CodedError("INVALID_ARGUMENT", "enough")
        return _answer(rows, parameters)

    (job.folder / "pictures").unlink()
    (job.folder / "pictures").symlink_to(good_pictures)
    job.fake.models = [
        FakeModel(m.name, fails_later, m.inputs, m.outputs, max_batch_size=64) for m in job.fake.models
    ]
    broken[0] = True
    assert run(job.words()) == 5
    error = capsys.readouterr().err
    assert "rows are kept in" in error
    assert error.count("\n") == 1
    broken[0] = False
    assert run(job.words("out.npz", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["resumed_rows"] >= 256


def test_served_members_without_a_manifest_need_a_cost_and_are_noted(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    (job.folder / "repository").unlink()
    np.savez(job.folder / "rows.npz", images=rows_of(9), labels=np.arange(9) % 3)
    tail = ["--url", job.front.address, "--repository", str(job.folder / "none")]
    words = ["record", *MEMBERS, "--data", str(job.folder / "rows.npz"), "-o", str(job.folder / "out.npz"), *tail]
    assert run(words) == 2
    assert "say it with --cost a=... --cost b=..., or name the repository" in capsys.readouterr().err
    assert run([*words, "--cost", "a=1", "--cost", "b=20"]) == 0
    assert "no manifest of a, b" in capsys.readouterr().out
    found = records_from_path(job.folder / "out.npz")
    assert found.cost == {"a": 1.0, "b": 20.0}
    assert found.meta["members"]["a"]["sha256"] is None
    np.testing.assert_array_equal(found.outputs["a"], _answer(rows_of(9), None)["logits"])
    assert run(["record", "c", *words[3:], "--cost", "c=1"]) == 5
    assert "c" in capsys.readouterr().err
    (job.folder / "one").mkdir()
    (job.folder / "one" / "x.png").write_bytes(png(np.ones((4, 4, 3), np.uint8)))
    words[words.index("--data") + 1] = str(job.folder / "one")
    assert run([*words, "--cost", "a=1", "--cost", "b=20"]) == 2
    assert "preprocess" in capsys.readouterr().err


# -- a finished recording has nothing to do, unless anything that decides it is another ---------------------


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    write_folder(tmp_path / "pictures", each=10)
    for seed, name in enumerate(("a", "b")):
        write_member(tmp_path / "repository", name, seed=seed)
    monkeypatch.chdir(tmp_path)
    return ["record", "a", "b", "--data", "pictures", "--repository", "repository", "-o", "out.npz", "--json"]


def recorded(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(words) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    del summary["seconds"]
    return summary


def test_the_same_command_says_the_same_and_leaves_the_file(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = recorded(words, capsys)
    assert first["up_to_date"] is False
    stamp = Path("out.npz").stat().st_mtime_ns
    assert recorded(words, capsys) == first | {"up_to_date": True}
    assert Path("out.npz").stat().st_mtime_ns == stamp
    assert recorded([*words, "--restart"], capsys) == first
    assert Path("out.npz").stat().st_mtime_ns != stamp


def _another_picture() -> None:
    Path("pictures", NAMES[0], "000.png").write_bytes(png(np.full((4, 4, 3), 7, np.uint8)))


def _another_picture_that_looks_as_old() -> None:
    path = Path("pictures", NAMES[0], "000.png")
    stat = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    path.write_bytes(png(picture(1)).ljust(stat.st_size, b" "))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def _another_member() -> None:
    write_member(Path("others"), "b", seed=9)
    for file in ("1/model.onnx", "manifest.json"):
        Path("others/b", file).replace(Path("repository/b", file))


def _another_label() -> None:
    Path("pictures", NAMES[0], "000.png").rename(Path("pictures", NAMES[1], "900.png"))


@pytest.mark.parametrize(
    "change", [_another_picture, _another_picture_that_looks_as_old, _another_member, _another_label]
)
def test_other_rows_or_members_are_recorded_again(
    words: list[str], change: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = recorded(words, capsys)
    change()
    after = recorded(words, capsys)
    assert after["up_to_date"] is False
    assert after["data_sha256"] != before["data_sha256"] or after["members"] != before["members"]


@pytest.mark.parametrize("more", ["--limit 5", "--cost a=3", "--skip-bad", "--output-kind a=logits"])
def test_other_options_are_recorded_again(words: list[str], more: str, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(words, capsys)
    assert recorded([*words, *more.split()], capsys)["up_to_date"] is False
    assert recorded([*words, *more.split()], capsys)["up_to_date"] is True


def test_half_of_a_recording_is_not_taken_for_the_whole(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(words, capsys)
    assert run(["split", "out.npz", "-o", "half.npz", "--rest", "rest.npz"]) == 0
    Path("rest.npz").replace("out.npz")
    again = recorded(words, capsys)
    assert (again["rows"], again["up_to_date"]) == (30, False)


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_a_broken_file_is_recorded_again(
    words: list[str], damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(words, capsys)
    whole = Path("out.npz").read_bytes()
    Path("out.npz").write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert recorded(words, capsys)["up_to_date"] is False
    assert Path("out.npz").read_bytes() == whole
