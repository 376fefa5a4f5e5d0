"""Confidence intervals of shares and of paired differences."""

from __future__ import annotations

import math

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
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, rows - hits + 1))
    high = 1.0 if hits == rows else float(beta.ppf(1 - tail, hits + 1, rows - hits))
    return low, high


def paired_difference(
    one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Mean of one - other over the same rows, with a normal interval of the paired differences.

    The variance gets half a row in each direction, one in all, so that identical columns do not claim certainty
    (the idea of Agresti and Min, Statistics in Medicine 24, 2005).

    Args:
        one: bool (n,), which rows one route gets right.
        other: bool (n,), the same of the other route.
        level: two-sided coverage.
    """
    rows = len(one)
    gains, losses = int((one & ~other).sum()), int((other & ~one).sum())
    difference = (gains - losses) / rows
    up, down, n = gains + 0.5, losses + 0.5, rows + 1.0
    spread = math.sqrt(max(up + down - (up - down) ** 2 / n, 0.0)) / n
    reach = float(norm.ppf(0.5 + level / 2)) * spread
    return difference, (difference - reach, difference + reach)
