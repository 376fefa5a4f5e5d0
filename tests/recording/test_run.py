"""A recording's run: pieces end in order, few of them are in memory, and a pool of sessions asks the members."""

import dataclasses
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.errors import DataError, MemberError
from orchestrator.recording.job import LAST_PIECES_S, RecordingTask, answered_pieces, wanted_rows
from orchestrator.recording.pool import RecordingPool, opened_pool
from orchestrator.rows.blocks import Indices, RowBlock, RowLabels, RowPiece, RowSource, spans
from orchestrator.spec.served_model import ModelInfo, TensorInfo
from tests.recording.builders import rows_of, write_member

ROWS, WORKERS, ROW_VALUES = 60 * 256, 3, 64


class Watched:
    """A source that counts the pieces it gave, and members that are slow for some."""

    def __init__(self) -> None:
        self.given = 0
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.fail_at: int | None = None

    def pieces(self, wanted: Indices, start: int, size: int) -> Iterator[RowPiece]:
        for first, stop in spans(len(wanted), start, size):
            self.given += 1
            rows = np.repeat(wanted[first:stop, None], ROW_VALUES, axis=1).astype(np.float32)
            loaded = RowBlock(ids=np.arange(first, stop), rows=rows)
            yield RowPiece(first=first, stop=stop, load=lambda loaded=loaded: loaded)

    def ask(self, name: str, rows: np.ndarray) -> np.ndarray:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        # Later pieces are done sooner, so that order is put to the test.
        time.sleep(0.002 * (int(rows[0, 0]) // 256 % 3 == 0))
        with self._lock:
            self._at_once -= 1
        if self.fail_at is not None and rows[0, 0] >= self.fail_at:
            raise MemberError("member m", got="a fault")
        return rows[:, :2]

    def task(self) -> RecordingTask:
        taken = TensorInfo(name="x", dtype="FP32", shape=(-1, ROW_VALUES))
        given = TensorInfo(name="y", dtype="FP32", shape=(-1, 2))
        info = ModelInfo(
            name="m", platform="", versions=("1",), max_batch_size=64, inputs=(taken,), outputs=(given,)
        )
        empty = {"manifests": {}, "asked": "here", "made_with": {}}
        pool = RecordingPool(infos={"m": info}, cost={"m": 1.0}, ask=self.ask, workers=WORKERS, **empty)
        about = {"name": "made up", "identity": {}, "data_sha256": "0"}
        source = RowSource(ids=np.arange(ROWS), labels=RowLabels(), pieces=self.pieces, **about)
        return RecordingTask(source=source, pool=pool, wanted=wanted_rows(ROWS, None))


def test_pieces_come_in_order_and_the_reader_is_only_a_few_ahead() -> None:
    watched = Watched()
    at = 256
    for count, answered in enumerate(answered_pieces(watched.task(), start=256), 1):
        assert answered.first == at
        at = answered.stop
        np.testing.assert_array_equal(answered.outputs["m"][:, 0], np.arange(answered.first, answered.stop))
        assert watched.given - count <= WORKERS + 1
    assert at == ROWS
    assert 1 < watched.most_at_once <= WORKERS


def test_what_was_answered_before_a_fault_is_given_before_it_is_raised() -> None:
    watched = Watched()
    watched.fail_at = 5000
    stops: list[int] = []
    begun = time.monotonic()
    with pytest.raises(MemberError, match="a fault"):
        stops.extend(answered.stop for answered in answered_pieces(watched.task()))
    # The piece that holds row 5000 begins before it, and so is answered.
    assert stops[-1] == 5120
    # Nobody waits for pieces that were cancelled.
    assert time.monotonic() - begun < LAST_PIECES_S


@pytest.mark.parametrize(("rows", "limit", "wanted"), [(5, None, 5), (5, 9, 5), (10, 3, [0, 3, 6]), (7, 7, 7)])
def test_wanted_rows_are_spread_evenly(rows: int, limit: int | None, wanted: int | list[int]) -> None:
    expected = list(range(wanted)) if isinstance(wanted, int) else wanted
    assert wanted_rows(rows, limit).tolist() == expected


def test_a_fault_is_raised_although_another_piece_never_comes() -> None:
    watched = Watched()
    never = threading.Event()

    def ask(name: str, rows: np.ndarray) -> np.ndarray:
        if rows[0, 0] >= 256:
            never.wait()
        raise MemberError("member m", got="a fault")

    task = watched.task()
    task = dataclasses.replace(task, pool=dataclasses.replace(task.pool, ask=ask))
    begun = time.monotonic()
    with pytest.raises(MemberError, match="a fault"):
        next(answered_pieces(task))
    # Bounded, and not by the pieces that nobody has begun.
    assert time.monotonic() - begun < 2 * LAST_PIECES_S
    never.set()


@pytest.mark.parametrize("url", [None, "127.0.0.1:1"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["./a", "a"], r"got './a', expected names of members"),
        (["a/"], r"got 'a/', expected"),
        (["a", "../b", "b c"], r"got '../b', 'b c', expected"),
        (["a" * 129], "128 letters"),
        (["a", "ensemble"], "got ensemble, expected another name"),
        (["a", "a"], "a more than once"),
        ([], "got none"),
    ],
)
def test_names_that_plan_would_refuse_are_not_recorded(
    tmp_path: Path, names: list[str], said: str, url: str | None
) -> None:
    with pytest.raises(DataError, match=said), opened_pool(names, tmp_path, url=url):
        pass


def test_a_manifest_that_describes_another_version_than_is_served_is_named(tmp_path: Path) -> None:
    shutil.copytree(Path("model_repository") / "digits_small", tmp_path / "digits_small")
    with opened_pool(["digits_small"], tmp_path) as pool:
        assert pool.version_notes() == []
    shutil.copytree(tmp_path / "digits_small" / "1", tmp_path / "digits_small" / "2")
    with opened_pool(["digits_small"], tmp_path) as pool:
        (note,) = pool.version_notes()
    assert note == "digits_small: version 2 is served, its manifest.json describes 1/model.onnx"
    config = tmp_path / "digits_small" / "config.pbtxt"
    config.write_text(f"{config.read_text()}version_policy {{ specific {{ versions: [1] }} }}\n")
    with opened_pool(["digits_small"], tmp_path) as pool:
        assert pool.version_notes() == []


def words_in(folder: Path) -> list[str]:
    words = ["record", "m", "--data", folder / "d.npz", "-o", folder / "out.npz"]
    return [str(word) for word in (*words, "--repository", folder / "repository")]


def test_a_part_that_only_restart_mends_is_not_said_to_be_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(300)
    # The member has no finite score for it, after a first piece that is kept.
    rows[290] = 0
    np.savez(tmp_path / "d.npz", images=rows)
    write_member(tmp_path / "repository", "m", fragile=True)
    words = words_in(tmp_path)
    assert run(words) == 2
    assert "the same command goes on from there" in capsys.readouterr().err
    part = next((tmp_path / ".out.npz.parts").glob("0*.npz"))
    # A whole archive, so that it is not asked for again, but without what it has to hold.
    np.savez(part, kept=np.arange(256), digest=np.zeros(32, np.uint8))
    assert run([*words, "--skip-bad"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("use --restart")
    assert run([*words, "--skip-bad", "--restart"]) == 0


@pytest.mark.parametrize(("cost", "shown"), [("0.25", "0.25"), ("1495552", "1,495,552"), ("3e29", "3e+29")])
def test_costs_are_shown_in_few_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cost: str, shown: str
) -> None:
    np.savez(tmp_path / "d.npz", images=rows_of(12), labels=np.arange(12) % 3)
    write_member(tmp_path / "repository", "m")
    assert run([*words_in(tmp_path), "--cost", f"m={cost}"]) == 0
    assert f", cost {shown}\n" in capsys.readouterr().out
    assert run([*words_in(tmp_path), "--cost", "m=1e307"]) == 2
    assert "expected NAME=COST with 0, or numbers from" in capsys.readouterr().err
