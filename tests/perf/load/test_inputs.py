from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DataError
from perf.load.inputs import chosen_rows, next_prime, next_prime_below, write_input_data


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
    write_input_data(tmp_path / "a" / "in.json", rows, input_name="image")
    steps = json.loads((tmp_path / "a" / "in.json").read_text())["data"]
    back = [np.frombuffer(base64.b64decode(step["image"]["b64"]), dtype).reshape(2, 4) for step in steps]
    np.testing.assert_array_equal(np.stack(back), rows)


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
