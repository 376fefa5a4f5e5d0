from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from orchestrator.planner.intervals import clopper_pearson, paired_difference


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (10, 10), (541, 547), (1, 3)])
def test_the_interval_is_the_exact_binomial_one(hits: int, rows: int) -> None:
    exact = binomtest(hits, rows).proportion_ci(0.95, method="exact")
    assert clopper_pearson(hits, rows) == pytest.approx((exact.low, exact.high))


def test_the_paired_interval_covers_a_known_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        base = rng.random(300) < 0.9
        flips = rng.random(300)
        other = np.where(flips < 0.03, ~base, base)
        # Flips lose right answers (0.9 of rows) more often than they win wrong ones: true difference 0.024.
        low, high = paired_difference(base, other)[1]
        covered += low <= 0.03 * 0.9 - 0.03 * 0.1 <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_identical_routes_differ_by_nothing_but_not_with_certainty() -> None:
    same = np.ones(100, np.bool_)
    difference, (low, high) = paired_difference(same, same)
    assert difference == 0
    assert low < 0 < high
