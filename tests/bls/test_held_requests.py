"""A cascade's process says in a file how many requests it has to answer yet."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from orchestrator.spec.held_requests import HELD_REQUESTS, held_requests, number_of_held_requests
from tests.bls.fixtures import EASY, HARD, ask_all, asking, eventually, large, loaded, usual, wait_for


def test_the_number_counts_requests_from_arrival_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"{tmp_path}/held_"
    monkeypatch.setenv(HELD_REQUESTS, prefix)
    gate = threading.Event()

    def slow(rows: np.ndarray) -> np.ndarray:
        gate.wait(10)
        return large(rows)

    with loaded(tmp_path, usual(large=slow)) as model:
        assert held_requests(prefix, os.getpid()) == 0
        ask_all(model, [asking(EASY), asking(EASY)])
        assert held_requests(prefix, os.getpid()) == 0
        hard = [asking(HARD), asking(EASY), asking(HARD)]
        listed = model.execute(hard) or []
        assert held_requests(prefix, os.getpid()) == 2
        gate.set()
        for request, response in zip(hard, listed, strict=True):
            wait_for(request, response)
        # Taken off after the answer, never before it.
        eventually(lambda: held_requests(prefix, os.getpid()) == 0)


def test_a_process_that_keeps_no_number_is_told_apart_from_one_that_holds_nothing(tmp_path: Path) -> None:
    assert held_requests(f"{tmp_path}/held_", 7) is None


def test_a_link_with_the_name_of_the_file_is_replaced_and_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"{tmp_path}/held_"
    monkeypatch.setenv(HELD_REQUESTS, prefix)
    victim = tmp_path / "victim"
    victim.write_text("precious things")
    Path(f"{prefix}{os.getpid()}").symlink_to(victim)
    assert held_requests(prefix, os.getpid()) is None
    number_of_held_requests()[0] = 3
    assert held_requests(prefix, os.getpid()) == 3
    assert victim.read_text() == "precious things"
