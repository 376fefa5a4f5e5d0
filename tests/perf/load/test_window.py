from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.load.closed import Window, exits_of


def window_of(stages: np.ndarray) -> Window:
    deferred, exits = exits_of(stages)
    return Window(
        latency_ms=np.arange(len(stages), dtype=np.float64),
        deferred=deferred,
        exits=exits,
        seconds=2.0,
        batch=stages.shape[1],
    )


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
