"""Pieces are settled in order, and never many of them are in memory."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from orchestrator.errors import MemberError
from orchestrator.recording.pool import RecordingPool
from orchestrator.recording.run import LAST_PIECES_S, RecordingTask, answered_pieces, wanted_rows
from orchestrator.rows.blocks import Indices, RowBlock, RowPiece, RowSource, spans
from orchestrator.rows.labels import RowLabels
from orchestrator.spec.served_model import ModelInfo, TensorInfo

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
        pool = RecordingPool(
            infos={"m": info},
            manifests={},
            cost={"m": 1.0},
            asked="here",
            made_with={},
            ask=self.ask,
            workers=WORKERS,
        )
        source = RowSource(
            name="made up",
            ids=np.arange(ROWS),
            labels=RowLabels(),
            pieces=self.pieces,
            identity={},
            data_sha256="0",
        )
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
    stops = []
    begun = time.monotonic()

    def take_all() -> None:
        for answered in answered_pieces(watched.task()):
            stops.append(answered.stop)

    with pytest.raises(MemberError, match="a fault"):
        take_all()
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
