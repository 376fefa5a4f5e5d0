import asyncio
import base64
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DataError, UnavailableError
from orchestrator.spec.rows import stacked
from perf.load.closed import Window, closed_tasks, closed_threads, window_from_stages
from perf.load.inputs import chosen_rows, next_prime, next_prime_below, write_input_data

ROWS = np.arange(7)[:, None]


def test_threads_keep_so_many_requests_in_flight_and_see_the_exits() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def ask(rows: np.ndarray) -> np.ndarray:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.002)
        with lock:
            inside -= 1
        return (rows[:, 0] == 3).astype(np.int32)

    window = closed_threads(ask, ROWS, concurrency=3, batch=2, seconds=0.3)
    assert most == 3
    assert window.exits is not None
    assert window.exits.sum() == 2 * window.requests
    # Each row is in two of the seven batches, as the first and as the second.
    assert window.exits[1] / window.exits.sum() == pytest.approx(1 / 7, abs=0.03)
    assert (window.latency_ms >= 2).all()


def test_tasks_do_the_same() -> None:
    async def ask(rows: np.ndarray) -> np.ndarray:
        await asyncio.sleep(0.002)
        return np.zeros(len(rows), np.int32)

    window = asyncio.run(closed_tasks(ask, ROWS, concurrency=4, batch=1, seconds=0.2))
    assert window.reach(2) == (1.0, 0.0)
    assert window.requests_per_s == pytest.approx(window.requests / 0.18)


def test_an_error_ends_the_loop_and_reaches_the_caller() -> None:
    def ask(rows: np.ndarray) -> np.ndarray:
        raise UnavailableError("gone")

    start = time.monotonic()
    with pytest.raises(UnavailableError, match="gone"):
        closed_threads(ask, ROWS, concurrency=3, batch=1, seconds=5.0)
    assert time.monotonic() - start < 2


def window_of(stages: np.ndarray) -> Window:
    return window_from_stages(np.arange(len(stages), dtype=np.float64), stages, 2.0, stages.shape[1])


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=30))
def test_reach_is_the_share_of_rows_at_or_past_a_stage(values: list[list[int]]) -> None:
    stages = np.array(values, np.int32)
    reach = window_of(stages).reach(4)
    assert reach == pytest.approx([(stages >= stage).mean() for stage in range(4)])


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=30))
def test_easy_and_hard_make_the_whole(values: list[list[int]]) -> None:
    stages = np.array(values, np.int32)
    window = window_of(stages)
    assert window.deferred is not None
    hard = [index for index, row in enumerate(values) if any(row)]
    found = window.percentiles_ms()
    assert found["hard_p50_ms"] == (pytest.approx(np.median(hard)) if hard else None)
    assert (found["easy_p99_ms"] is None) == (len(hard) == len(values))


def test_rates_count_requests() -> None:
    assert window_of(np.zeros((10, 4), np.int32)).requests_per_s == 5.0


@given(st.integers(min_value=-5, max_value=5000))
def test_the_next_prime_is_prime_and_the_nearest(number: int) -> None:
    def is_prime(value: int) -> bool:
        return value > 1 and all(value % divisor for divisor in range(2, value))

    found = next_prime(number)
    assert found >= number
    assert is_prime(found)
    assert not any(is_prime(value) for value in range(max(number, 2), found))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_rows_read_back_bit_for_bit(tmp_path: Path, dtype: type) -> None:
    rows = (255 * np.random.default_rng(0).random((3, 2, 4))).astype(dtype)
    write_input_data(tmp_path / "a" / "in.json", {"image": rows})
    steps = json.loads((tmp_path / "a" / "in.json").read_text())["data"]
    parts = [step["image"] for step in steps]
    back = [np.frombuffer(base64.b64decode(one["content"]["b64"]), dtype).reshape(one["shape"]) for one in parts]
    np.testing.assert_array_equal(np.stack(back), rows)


def test_texts_and_rows_of_any_length_are_written_too(tmp_path: Path) -> None:
    texts = np.array([["größe".encode()], [b""], [b'"a"\n\x00']], object)
    ids = stacked([np.arange(size) for size in (1, 4, 2)])
    write_input_data(tmp_path / "in.json", {"text": texts, "ids": ids})
    steps = json.loads((tmp_path / "in.json").read_text())["data"]
    assert [step["text"] for step in steps] == [["größe"], [""], ['"a"\n\x00']]
    assert [step["ids"]["shape"] for step in steps] == [[1], [4], [2]]
    with pytest.raises(DataError, match="input text: got bytes that are not UTF-8"):
        write_input_data(tmp_path / "in.json", {"text": np.array([[b"\xff"]], object)})


@given(
    kinds=st.lists(st.booleans(), min_size=2, max_size=60),
    hard=st.floats(0, 1),
    rows=st.sampled_from([2, 13, 101]),
    seed=st.integers(0, 1000),
)
def test_a_file_has_the_share_of_hard_rows_that_was_asked_for(
    kinds: list[bool], hard: float, rows: int, seed: int
) -> None:
    is_hard = np.array(kinds)
    wanted = round(hard * rows)
    if (wanted and not is_hard.any()) or (wanted < rows and is_hard.all()):
        with pytest.raises(DataError, match=r"no (hard|easy) row"):
            chosen_rows(is_hard, hard=hard, rows=rows, seed=seed)
        return
    chosen = chosen_rows(is_hard, hard=hard, rows=rows, seed=seed)
    assert len(chosen) == rows
    assert int(is_hard[chosen].sum()) == wanted
    for kind in (True, False):
        _, times = np.unique(chosen[is_hard[chosen] == kind], return_counts=True)
        # Nothing comes twice before everything came once.
        assert not len(times) or times.max() - times.min() <= 1


def test_without_a_share_rows_come_once_and_as_they_are() -> None:
    chosen = chosen_rows(np.arange(100) % 4 == 0, hard=None, rows=97, seed=3)
    assert len(np.unique(chosen)) == 97


@pytest.mark.parametrize(("number", "prime"), [(2, 2), (3, 3), (4, 3), (547, 547), (1000, 997)])
def test_a_file_holds_the_largest_prime_number_of_rows_there_are(number: int, prime: int) -> None:
    assert next_prime_below(number) == prime
