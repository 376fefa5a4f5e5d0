import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from orchestrator.planner.intervals import (
    BOUNDS,
    clopper_pearson,
    discordant_pairs,
    fewest_rows,
    losses_only,
    near_chance,
    paired_difference,
    rate_at_least,
    rate_at_most,
    rows_needed,
)


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


RESAMPLES = 1000
# Rates of losses and of gains, from rare to common, lopsided and even.
RATES = [(0.0, 0.0), (0.001, 0.0), (0.02, 0.004), (0.02, 0.02), (0.3, 0.3)]


def bounds_of(method: str, losses: float, gains: float, *, rows: int, delta: float) -> np.ndarray:
    """The bound on 1,000 samples, each pair of counts worked out once."""
    counts = np.random.default_rng(rows).multinomial(rows, (losses, gains, 1 - losses - gains), RESAMPLES)
    pairs, back = np.unique(counts[:, :2], axis=0, return_inverse=True)
    known = np.array([BOUNDS[method](int(lost), int(won), rows, delta) for lost, won in pairs])
    return known[back.reshape(-1)]


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (10, 10), (541, 547), (1, 3)])
def test_rates_are_bounded_by_the_exact_binomial(hits: int, rows: int) -> None:
    exact = binomtest(hits, rows).proportion_ci(0.95, method="exact")
    assert clopper_pearson(hits, rows) == pytest.approx((exact.low, exact.high))
    less = binomtest(hits, rows, alternative="less").proportion_ci(0.9, method="exact")
    more = binomtest(hits, rows, alternative="greater").proportion_ci(0.9, method="exact")
    assert rate_at_most(hits, rows, 0.1) == pytest.approx(less.high)
    assert rate_at_least(hits, rows, 0.1) == pytest.approx(more.low)


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("rows", [200, 5000])
@pytest.mark.parametrize(("losses", "gains"), RATES)
def test_over_1000_samples_the_truth_is_above_the_bound_no_more_often_than_delta(
    method: str, losses: float, gains: float, rows: int
) -> None:
    delta = 0.1
    violations = float((losses - gains > bounds_of(method, losses, gains, rows=rows, delta=delta)).mean())
    assert violations <= delta + 3 * math.sqrt(delta * (1 - delta) / RESAMPLES)


@pytest.mark.parametrize(("losses", "gains"), [(0.01, 0.0), (0.02, 0.0), (0.1, 0.0)])
def test_losses_are_bounded_within_half_again_of_the_normal_approximation_at_5000_rows(
    losses: float, gains: float
) -> None:
    mean = bounds_of("clopper_pearson_losses", losses, gains, rows=5000, delta=0.1).mean()
    normal = losses + norm.ppf(0.9) * math.sqrt(losses * (1 - losses) / 5000)
    assert normal * 0.95 <= mean <= 1.5 * normal


@pytest.mark.parametrize(("losses", "gains"), [(0.02, 0.01), (0.02, 0.02), (0.1, 0.08)])
def test_with_gains_the_paired_bound_is_tighter_and_near_the_normal_approximation(
    losses: float, gains: float
) -> None:
    paired = bounds_of("discordant_pairs", losses, gains, rows=5000, delta=0.1).mean()
    floor = bounds_of("clopper_pearson_losses", losses, gains, rows=5000, delta=0.1).mean()
    variance = losses + gains - (losses - gains) ** 2
    normal = losses - gains + norm.ppf(0.9) * math.sqrt(variance / 5000)
    assert paired < floor
    assert normal * 0.9 <= paired <= 1.5 * normal


def test_without_gains_the_plain_bound_is_the_tighter_one() -> None:
    assert losses_only(5, 0, 1000, 0.05) < discordant_pairs(5, 0, 1000, 0.05)
    assert losses_only(0, 0, 1000, 0.05) < discordant_pairs(0, 0, 1000, 0.05)


def test_more_gains_than_losses_bound_the_loss_at_zero() -> None:
    assert discordant_pairs(2, 90, 1000, 0.05) == 0


@pytest.mark.parametrize("losses", [0, 1, 3])
def test_the_rows_needed_are_the_fewest_that_do(losses: int) -> None:
    given = {"losses": losses, "gains": 0, "rows": 100, "epsilon": 0.04, "delta": 0.05}
    needed = rows_needed("clopper_pearson_losses", **given)
    assert needed is not None
    lost = [math.ceil(losses * rows / 100) for rows in (needed - 1, needed)]
    assert rate_at_most(lost[1], needed, 0.05) <= 0.04 < rate_at_most(lost[0], needed - 1, 0.05)


def test_no_number_of_rows_mends_a_rate_that_is_too_high() -> None:
    assert rows_needed("clopper_pearson_losses", losses=5, gains=0, rows=100, epsilon=0.05, delta=0.1) is None


def test_rows_by_another_bound_count_where_the_plans_own_never_gets_there() -> None:
    given = {"losses": 20, "gains": 20, "rows": 1000, "epsilon": 0.01, "delta": 0.05}
    alone = [rows_needed(method, **given) for method in BOUNDS]
    assert alone[0] is None
    assert fewest_rows(**given) == alone[1] > 1000
    assert fewest_rows(losses=50, gains=0, rows=1000, epsilon=0.01, delta=0.05) is None


@pytest.mark.parametrize("delta", [1e-15, 1e-17, 1e-40])
def test_a_delta_too_small_to_be_taken_from_one_still_bounds(delta: float) -> None:
    assert rate_at_most(0, 1000, delta) == pytest.approx(1 - delta ** (1 / 1000), rel=1e-6)
    assert fewest_rows(losses=0, gains=0, rows=100, epsilon=0.1, delta=delta) is not None


@pytest.mark.parametrize(
    ("right", "rows", "classes"),
    [
        (12, 100, 10), (60, 500, 10), (6000, 50_000, 10), (0, 500, 10), (1, 1000, 1000), (260, 500, 2),
        (3, 500, 2), (4, 12, 3),
    ],
)  # fmt: skip
def test_what_another_order_of_the_classes_gives_is_near(right: int, rows: int, classes: int) -> None:
    interval = near_chance(right, rows, classes)
    assert interval is not None
    assert interval[0] <= right / rows <= interval[1]


@pytest.mark.parametrize(
    ("right", "rows", "classes"),
    [
        (300, 500, 2), (45, 50, 2), (200, 500, 3), (150, 500, 10), (15, 50, 10), (20, 1000, 1000), (3, 3, 2),
        (2, 4, 3), (12, 20, 2),
    ],
)  # fmt: skip
def test_weak_members_and_few_rows_that_are_all_right_are_not(right: int, rows: int, classes: int) -> None:
    assert near_chance(right, rows, classes) is None


@given(seed=st.integers(0, 1000), classes=st.integers(10, 50))
def test_a_good_member_is_near_guessing_under_every_order_that_moves_all_classes(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 2000)
    answers = np.where(rng.random(2000) < 0.95, labels, rng.integers(0, classes, 2000))
    moved = (labels + 1 + seed % (classes - 1)) % classes
    assert near_chance(int((answers == labels).sum()), 2000, classes) is None
    assert near_chance(int((answers == moved).sum()), 2000, classes) is not None
