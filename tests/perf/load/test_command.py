from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DataError
from perf.load.command import chosen_rows, next_prime_below


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
