"""Confidence intervals of shares and paired differences, and upper bounds on how much worse a plan is.

A *loss* is a row the reference gets right and the plan wrong, a *gain* the other way round. Rows are independent
draws, so counts are binomial, and the bounds are exact for any number of rows.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm


def clopper_pearson(hits: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of a share (Clopper and Pearson, Biometrika 26, 1934).

    Args:
        hits: successes.
        rows: trials, at least 1.
        level: two-sided coverage.
    """
    low, high = clopper_pearson_ends(np.array([hits]), rows, level)
    return float(low[0]), float(high[0])


def clopper_pearson_ends(
    hits: npt.NDArray[np.int64], rows: int, level: float = 0.95
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lower and upper ends of the same intervals, float64 (n,), for many numbers of successes, int64 (n,)."""
    tail = (1 - level) / 2
    # scipy gives NaN for the ends that no beta distribution has.
    low = np.where(hits == 0, 0.0, beta.ppf(tail, hits, rows - hits + 1))
    high = np.where(hits == rows, 1.0, beta.ppf(1 - tail, hits + 1, rows - hits))
    return low, high


def paired_difference(
    one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Mean of one - other over the same rows, with a normal interval of the paired differences.

    The variance gets half a row in each direction, one in all, so that identical columns do not claim certainty
    (the idea of Agresti and Min, Statistics in Medicine 24, 2005).

    Args:
        one: bool (n,), which rows one model gets right.
        other: bool (n,), which rows the other gets right.
        level: two-sided coverage.
    """
    rows = len(one)
    gains, losses = int((one & ~other).sum()), int((other & ~one).sum())
    difference = (gains - losses) / rows
    up, down, n = gains + 0.5, losses + 0.5, rows + 1.0
    spread = math.sqrt(max(up + down - (up - down) ** 2 / n, 0.0)) / n
    reach = float(norm.ppf(0.5 + level / 2)) * spread
    return difference, (difference - reach, difference + reach)


# Part of delta that `discordant_pairs` spends on the rate of disagreement. The other factor gets the most,
# because a share near one half needs more rows to be known as well.
RATE_PART = 0.1
# Beyond this many rows the answer to "how many more" is "too many".
MOST_ROWS = 10**9


def rate_at_most(hits: int, rows: int, delta: float) -> float:
    """Upper Clopper-Pearson bound of a rate: the rate is above it with probability at most delta."""
    return 1.0 if hits >= rows else float(beta.isf(delta, hits + 1, rows - hits))


def rate_at_least(hits: int, rows: int, delta: float) -> float:
    """Lower Clopper-Pearson bound of a rate: the rate is below it with probability at most delta."""
    return 0.0 if hits <= 0 else float(beta.ppf(delta, hits, rows - hits + 1))


def losses_only(losses: int, gains: int, rows: int, delta: float) -> float:
    """Bound of the loss rate, which bounds accuracy(reference) - accuracy(plan) since gains only help."""
    del gains
    return rate_at_most(losses, rows, delta)


def discordant_pairs(losses: int, gains: int, rows: int, delta: float) -> float:
    """Bound of accuracy(reference) - accuracy(plan) that lets gains count against losses.

    With q the rate of rows where exactly one of both is right, and t the share of losses among those rows, the
    difference is q (2 t - 1). Given how many those are, losses are binomial with t, so both factors have exact
    bounds, each wrong with its part of delta. Tighter than `losses_only` once gains are about as frequent as
    losses.
    """
    tilt = tilt_at_most(losses, gains, delta)
    # A negative product would need a lower bound of q, with a part of delta; no goal asks for less than 0.
    return rate_at_most(losses + gains, rows, delta * RATE_PART) * tilt if tilt > 0 else 0.0


def tilt_at_most(losses: int, gains: int, delta: float) -> float:
    """Upper bound of 2 t - 1, from -1 to 1: below 0, gains outweigh losses for sure."""
    pairs = losses + gains
    return 2 * rate_at_most(losses, pairs, delta * (1 - RATE_PART)) - 1 if pairs else 1.0


Bound = Callable[[int, int, int, float], float]
BOUNDS: dict[str, Bound] = {"clopper_pearson_losses": losses_only, "discordant_pairs": discordant_pairs}


def rows_needed(method: str, *, losses: int, gains: int, rows: int, epsilon: float, delta: float) -> int | None:
    """How many rows with the same shares of losses and gains would bring the bound to epsilon; None for never.

    Args:
        method: a key of BOUNDS.
        losses: seen on `rows` rows.
        gains: seen on `rows` rows.
        rows: at least 1.
        epsilon: what the bound has to reach.
        delta: chance that the bound does not hold.
    """
    bound = BOUNDS[method]

    def good(count: int) -> bool:
        lost, won = math.ceil(losses * count / rows), math.floor(gains * count / rows)
        return bound(lost, won, count, delta) <= epsilon

    high = rows
    while not good(high):
        high *= 2
        if high > MOST_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def fewest_rows(*, losses: int, gains: int, rows: int, epsilon: float, delta: float) -> int | None:
    """`rows_needed` by the bound that needs the fewest; which one tests a plan is settled anew with more rows."""
    needed = [
        rows_needed(method, losses=losses, gains=gains, rows=rows, epsilon=epsilon, delta=delta)
        for method in BOUNDS
    ]
    return min((count for count in needed if count is not None), default=None)
