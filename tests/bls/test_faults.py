"""Faults that are nobody's request: each costs the request it was met with, and no other."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.bls.requests import Reply
from orchestrator.decision import StageOutcome
from tests.bls.fixtures import EASY, HARD, K, ask_all, asking, large, loaded, rows_of, usual, wait_for
from tests.fakes.triton import Request, TritonError


class Garbled(Request):
    """A request whose parameters raise."""

    error: Exception = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    def parameters(self) -> str:
        raise self.error


class Odd(Garbled):
    error = RuntimeError("a fault of our own")


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [(Garbled, TritonError.INVALID_ARG, "UTF-8"), (Odd, TritonError.INTERNAL, "a fault of our own")],
)
def test_a_request_that_cannot_be_read_is_answered_alone(
    tmp_path: Path, kind: type[Request], code: int, words: str
) -> None:
    with loaded(tmp_path, usual()) as model:
        requests = [asking(EASY), kind({"x": rows_of(EASY)}), asking(HARD)]
        first, bad, last = ask_all(model, requests)
    assert bad.error().code() == code
    assert words in bad.error().message()
    assert "/" not in bad.error().message(), "paths are nobody's business"
    assert not first.has_error()
    assert not last.has_error()


def test_a_fault_of_our_own_in_a_worker_is_answered_and_the_worker_lives_on(tmp_path: Path) -> None:
    wrong = [True]

    def odd(rows: np.ndarray) -> np.ndarray:
        # Text instead of numbers passes the shape check and breaks the arithmetic behind it.
        return np.full((len(rows), K), "x") if wrong[0] else rows[:, K:]

    with loaded(tmp_path, usual(large=odd)) as model:
        (broken,) = ask_all(model, [asking(HARD)])
        wrong[0] = False
        (fine,) = ask_all(model, [asking(HARD)])
        assert model._scheduler._run.rows_in_table == 0
    assert broken.error().code() == TritonError.INTERNAL
    assert "\n" not in broken.error().message()
    assert fine.column("label")[0, 0] == 2


def test_a_fault_after_rows_left_the_table_does_not_touch_who_took_their_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, asked = threading.Event(), threading.Event()

    def slow(rows: np.ndarray) -> np.ndarray:
        if asked.is_set():
            gate.wait(10)
        asked.set()
        return large(rows)

    with loaded(tmp_path, usual(large=slow)) as model:
        scheduler = model._scheduler
        settle, fail_batch = scheduler._settle, scheduler.fail_batch
        first, second = (asking(HARD) for _ in range(2))

        def failing(outcome: StageOutcome, errors: dict[int, str]) -> list[Reply]:
            if outcome.stage == 1 and asked.is_set() and not gate.is_set():
                raise RuntimeError("a fault after the rows were fed")
            return settle(outcome, errors)

        def late(*arguments: Any) -> list[Reply]:
            # Between the fault and its handling another request takes the slot that has become free.
            assert model.execute([second]) is None
            replies = fail_batch(*arguments)
            gate.set()
            return replies

        monkeypatch.setattr(scheduler, "_settle", failing)
        monkeypatch.setattr(scheduler, "fail_batch", late)
        assert model.execute([first]) is None
        broken, fine = wait_for(first, None), wait_for(second, None)
        assert scheduler._run.rows_in_table == 0
    assert broken.error().code() == TritonError.INTERNAL
    assert fine.column("label")[0, 0] == 2
