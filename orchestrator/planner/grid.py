"""Correct rows and cost of every tuple of thresholds of one ordering of members, all at once.

A row's score at a stage matters only through its *bin*: how many of the stage's thresholds it reaches. This is
the exit rule in another form, for speed: a row exits at threshold j where j < bin, and a property test holds that
to `exit_rule.exits`. With V_i 1 where a row is correct if it is answered at stage i and 0 where it is not, and
"deferred by j_1..j_i" meaning that its first i bins are at most j_1..j_i, the number of correct rows telescopes:

    correct(j) = sum V_0 + sum over i of the sum of (V_i - V_i-1) over the rows deferred by j_1..j_i
    cost(j)    = n c_0   + sum over i of c_i times the number of rows deferred by j_1..j_i

Each inner sum is a cumulative sum, along every axis, of a joint histogram of i bins. So 101 thresholds at each of
three stages, a million tuples, cost one pass over the rows and a few over a million cells, exactly.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Bins = npt.NDArray[np.int16]
Counts = npt.NDArray[np.int32]
# Whole numbers up to here are exact in float64.
EXACT = float(1 << 53)
# Kernel rounding moves scores by about 1e-6 with the batch size; a threshold this far from any score flips no row.
MIN_GAP = 2e-5


def thresholds_from_scores(score: npt.NDArray[np.float32], quantiles: int) -> npt.NDArray[np.float32]:
    """Thresholds near the quantiles of a score, each in the middle of a gap no score lies in.

    Args:
        score: float32 (n,).
        quantiles: how many are wanted; fewer come back where gaps are few.

    Returns:
        float32 (q,), ascending.
    """
    places = middles(score)
    if not len(places):
        return np.zeros(0, np.float32)
    wanted = np.quantile(score.astype(np.float64), np.linspace(0, 1, quantiles))
    above = np.clip(np.searchsorted(places, wanted), 0, len(places) - 1)
    below = np.maximum(above - 1, 0)
    nearest = np.where(wanted - places[below] < places[above] - wanted, below, above)
    found: npt.NDArray[np.float32] = places[np.unique(nearest)].astype(np.float32)
    return found


def middles(score: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The middles of all gaps between neighbouring scores that are wide enough for a threshold, ascending."""
    ordered = np.unique(score.astype(np.float64))
    gaps = np.flatnonzero(np.diff(ordered) >= MIN_GAP)
    return np.asarray((ordered[gaps] + ordered[gaps + 1]) / 2, np.float64)


def bins_from_scores(score: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float32]) -> Bins:
    """How many thresholds each row reaches, int16 (n,): it exits at threshold j where j < bin."""
    return np.searchsorted(thresholds, score, side="right").astype(np.int16)


def integers_from_costs(costs: Sequence[float], rows: int) -> tuple[npt.NDArray[np.float64], float]:
    """Costs as whole numbers, so that sums over rows are exact and equal costs are equal.

    Args:
        costs: per member, finite and not negative.
        rows: how many are added up at most.

    Returns:
        float64 (m,) of whole numbers, and how many of them make one unit of cost.
    """
    values = np.asarray(costs, np.float64)
    total = float(values.sum()) * max(rows, 1)
    for digits in range(10):
        scale = 10.0**digits
        if total * scale >= EXACT:
            break
        scaled = values * scale
        # Relative, so that nothing but 0 becomes 0.
        if np.all(np.abs(scaled - np.round(scaled)) <= 1e-9 * scaled):
            return np.round(scaled), scale
    # No short decimals: rounding to the finest unit that fits changes a cost by less than float64 does in a sum.
    scale = 1.0 if total == 0 else 2.0 ** math.floor(math.log2(EXACT / total))
    return np.round(values * scale), scale


def totals_of_tuples(
    bins: Sequence[Bins],
    sizes: Sequence[int],
    *,
    correct: Sequence[Sequence[npt.NDArray[np.int8]]],
    costs: Sequence[float],
) -> tuple[list[Counts], npt.NDArray[np.float64]]:
    """Totals of every tuple of thresholds.

    Args:
        bins: int16 (n,) per group but the last.
        sizes: thresholds per group but the last, q_i; index q_i stands for never.
        correct: per measure, int8 (n,) per group: 1 where the group's answer counts as correct.
        costs: per group, whole numbers.

    Returns:
        int32 (q_0 + 1, q_1 + 1, ...) per measure: correct rows; and float64 of the same shape: total cost.
    """
    rows = len(correct[0][0])
    totals: list[Any] = [np.int32(groups[0].sum(dtype=np.int64)) for groups in correct]
    cost: Any = np.float64(rows * costs[0])
    flat = np.zeros(rows, np.intp)
    shape: tuple[int, ...] = ()
    for place, (part, size) in enumerate(zip(bins, sizes, strict=True)):
        shape = (*shape, size + 1)
        flat = flat * (size + 1) + part
        for measure, groups in enumerate(correct):
            change = (groups[place + 1] - groups[place]).astype(np.float64)
            moved = _below(np.bincount(flat, weights=change, minlength=math.prod(shape)), shape)
            totals[measure] = totals[measure][..., None] + moved
        deferred = _below(np.bincount(flat, minlength=math.prod(shape)), shape)
        cost = cost[..., None] + deferred * np.float64(costs[place + 1])
    return [np.asarray(total, np.int32) for total in totals], np.asarray(cost, np.float64)


def _below(histogram: npt.NDArray[Any], shape: tuple[int, ...]) -> Counts:
    """Cumulative sums along every axis, int32."""
    cells = histogram.astype(np.int32).reshape(shape)
    for axis in range(len(shape)):
        np.cumsum(cells, axis=axis, out=cells)
    return cells


def tuples_allowed(sizes: Sequence[int], *, max_stages: int, may_never_exit: bool) -> npt.NDArray[np.bool_] | None:
    """Which tuples make at most that many stages; None where all do.

    Args:
        sizes: thresholds per group but the last.
        max_stages: longest cascade wanted.
        may_never_exit: whether index q_i, never, is a choice.
    """
    groups = len(sizes) + 1
    if may_never_exit and groups <= max_stages:
        return None
    finite = np.zeros(tuple(size + 1 for size in sizes), np.int8)
    for axis, size in enumerate(sizes):
        line = np.ones(size + 1, np.int8)
        line[size] = 0
        finite += line.reshape([-1 if other == axis else 1 for other in range(len(sizes))])
    stages = finite + 1
    good: npt.NDArray[np.bool_] = stages <= max_stages if may_never_exit else stages == groups
    return good
