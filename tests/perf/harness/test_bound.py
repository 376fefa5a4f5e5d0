from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.harness.bound import PROCESSOR, bound_of

RATE = st.floats(1, 1e5)
SHARE = st.floats(0, 1)


@given(st.lists(st.tuples(RATE, SHARE), min_size=1, max_size=4), st.integers(1, 8), st.floats(1e-5, 1))
def test_nothing_may_pass_a_members_own_rate_or_the_cores(
    stages: list[tuple[float, float]], batch: int, cpu_s: float
) -> None:
    names = [f"m{index}" for index in range(len(stages))]
    bound = bound_of(
        names,
        [share for _, share in stages],
        capacity_rows_per_s={name: rate for name, (rate, _) in zip(names, stages, strict=True)},
        batch=batch,
        cores=2,
        cpu_s_per_request=cpu_s,
    )
    limit = bound.requests_per_s * (1 - 1e-9)
    assert limit * cpu_s <= 2
    assert all(limit * share * batch <= rate for rate, share in stages)
    # And something is used up entirely.
    full = [bound.requests_per_s * share * batch / rate for rate, share in stages]
    assert max([*full, bound.requests_per_s * cpu_s / 2]) == pytest.approx(1)


def test_a_member_that_was_not_measured_leaves_only_the_processor() -> None:
    bound = bound_of(
        ["a", "b"], [1.0, 0.1], capacity_rows_per_s={"a": 9.0}, batch=1, cores=2, cpu_s_per_request=0.1
    )
    assert (bound.by, bound.requests_per_s, bound.members_requests_per_s) == (PROCESSOR, 20.0, None)


def test_a_stage_that_no_row_reaches_need_not_be_measured() -> None:
    bound = bound_of(
        ["a", "b"], [1.0, 0.0], capacity_rows_per_s={"a": 9.0}, batch=1, cores=2, cpu_s_per_request=0.1
    )
    assert (bound.by, bound.requests_per_s) == ("a", 9.0)


def test_the_slowest_member_over_its_reach_decides() -> None:
    """Last member 84 rows/s at 15 %: 560 requests/s."""
    bound = bound_of(
        ["a", "b", "c"],
        [1.0, 0.3, 0.15],
        capacity_rows_per_s={"a": 7700, "b": 520, "c": 84},
        batch=1,
        cores=2,
        cpu_s_per_request=0.002,
    )
    assert (bound.by, bound.requests_per_s) == ("c", pytest.approx(560))
