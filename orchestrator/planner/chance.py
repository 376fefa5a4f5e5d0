"""Whether a share of right answers can be told from guessing: labels in another order give no error, only that."""

from __future__ import annotations

from orchestrator.spec.shares import wilson_ci95

# With enough rows even an accuracy of 12 % on ten classes is surely better than guessing, and still worth nothing.
# Near is up to twice guessing, and, where that is much, up to a tenth of the way from guessing to always right.
_FACTOR, _SHARE = 2.0, 0.1


def near_chance(right: int, rows: int, classes: int) -> tuple[float, float] | None:
    """The 95 % interval of an accuracy that is near guessing, None for one that is not.

    It is near where the interval ends below what counts as near, or, with few rows, where the accuracy is below
    that and the interval reaches down to guessing.

    Args:
        right: rows answered right.
        rows: rows answered, at least 1.
        classes: k, at least 2.
    """
    guessing = 1 / classes
    near = min(_FACTOR * guessing, guessing + _SHARE * (1 - guessing))
    low, high = wilson_ci95(right, rows)
    unsure = low <= guessing and right / rows <= near
    return (low, high) if high <= near or unsure else None
