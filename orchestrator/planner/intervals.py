"""Intervals of shares and paired differences, bounds on how much worse a plan is, and accuracy near guessing.

A *loss* is a row the reference gets right and the plan wrong, a *gain* the other way round. Rows are independent
draws, so counts are binomial, and the bounds are exact for any number of rows. Labels in another order than the
classes give no error, only an accuracy near guessing.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm

from orchestrator.errors import DataError
from orchestrator.planner.records import Records
from orchestrator.spec.shares import wilson_ci95

# Part of delta that `discordant_pairs` spends on the rate of disagreement. The other factor gets the most,
# because a share near one half needs more rows to be known as well.
RATE_PART = 0.1
# Beyond this many rows the answer to "how many more" is "too many".
MOST_ROWS = 10**9
Labels = npt.NDArray[np.int64]
# Rows that a member would get right if the labels were these.
Count = Callable[[str, Labels], int]
# How labels were made from names, None for numbers -> what puts them into the order of the classes.
ORDER_HINTS = {
    None: "numbers have to be the members' own, from 0 (else `record.first_label`); "
    "for class names record with `record.class_map`, which says their order",
    "map": "the lines of `record.class_map` have to be in the order of the members' scores",
    "name": "names went by the members' own: give these in the order of the scores "
    "(export member `export.labels`), or say which is which with `record.class_map`",
    "order": "sorted names were taken for the classes in order: record with `record.class_map`, "
    "which says the real one",
}
# With enough rows even an accuracy of 12 % on ten classes is surely better than guessing, and still worth nothing.
# Near is up to twice guessing, and, where that is much, up to a tenth of the way from guessing to always right.
_FACTOR, _SHARE = 2.0, 0.1


def clopper_pearson(hits: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided binomial interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""
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
    (the idea of Agresti and Min, Statistics in Medicine 24, 2005). `one` and `other` are bool (n,): the rows that
    either model gets right.
    """
    rows = len(one)
    gains, losses = int((one & ~other).sum()), int((other & ~one).sum())
    difference = (gains - losses) / rows
    up, down, n = gains + 0.5, losses + 0.5, rows + 1.0
    spread = math.sqrt(max(up + down - (up - down) ** 2 / n, 0.0)) / n
    reach = float(norm.ppf(0.5 + level / 2)) * spread
    return difference, (difference - reach, difference + reach)


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
    """How many rows with the same shares of losses and gains would bring the bound to epsilon; None for never."""
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
    seen = {"losses": losses, "gains": gains, "rows": rows}
    needed = [rows_needed(method, **seen, epsilon=epsilon, delta=delta) for method in BOUNDS]
    return min((count for count in needed if count is not None), default=None)


def near_chance(right: int, rows: int, classes: int) -> tuple[float, float] | None:
    """The 95 % interval of an accuracy that is near guessing, None for one that is not.

    It is near where the interval ends below what counts as near, or, with few rows, where the accuracy is below
    that and the interval reaches down to guessing. There is at least one row, and two classes.
    """
    guessing = 1 / classes
    near = min(_FACTOR * guessing, guessing + _SHARE * (1 - guessing))
    low, high = wilson_ci95(right, rows)
    unsure = low <= guessing and right / rows <= near
    return (low, high) if high <= near or unsure else None


def chance_notes(
    right: Mapping[str, int], count: Count, *, labels: Labels, classes: int, labels_by: object
) -> list[str]:
    """Notes on members whose accuracy is near guessing.

    Args:
        right: member -> rows it gets right; none of random weights.
        count: gives the rows that a member would get right with other labels.
        labels: int64 (n,) in 0..k-1.
        classes: k.
        labels_by: how the labels were made from names, see ORDER_HINTS.
    """
    rows = len(labels)
    near = {name: interval for name, hits in right.items() if (interval := near_chance(hits, rows, classes))}
    if not near:
        return []
    if len(near) < len(right):
        return [
            f"{name}: {accuracy_text(right[name], rows, classes, interval)}, and others are better: "
            "are its classes in another order, or was it not trained?"
            for name, interval in near.items()
        ]
    best = max(near, key=lambda name: right[name])
    text = accuracy_text(right[best], rows, classes, near[best])
    shifted = labels_by is None and labels.min() >= 1 and not near_chance(count(best, labels - 1), rows, classes)
    return [
        f"the best member, {best}: {text}; are the labels in the order of the members' classes? "
        f"{order_hint(labels_by, one_based=shifted)}"
    ]


def accuracy_text(right: int, rows: int, classes: int, interval: tuple[float, float]) -> str:
    """An accuracy beside guessing, in words."""
    low, high = interval
    shown = f"accuracy {right / rows:.4f} on {rows} rows (95 % interval {low:.4f} to {high:.4f})"
    return f"{shown}, near guessing ({1 / classes:.4f})"


def order_hint(labels_by: Any, *, one_based: bool = False) -> str:
    """How to record with the right classes, with arguments of other commands in backticks.

    Args:
        labels_by: a key of ORDER_HINTS.
        one_based: each label less one would make the accuracy a good one.
    """
    if one_based:
        return "each less 1 fits them: record with `record.first_label=1`"
    return ORDER_HINTS.get(labels_by, ORDER_HINTS[None])


def notes_on_records(records: Records) -> list[str]:
    """Notes on recorded members whose accuracy is near guessing; none where nobody knows the labels.

    Members are only noted, since a search leaves them out where others are better.
    """
    if records.labels is None:
        return []

    def count(name: str, labels: Labels) -> int:
        return int((records.outputs[name].argmax(axis=1) == labels).sum())

    return chance_notes(
        {name: count(name, records.labels) for name in records.outputs},
        count,
        labels=records.labels,
        classes=records.classes,
        labels_by=records.meta.get("labels_by"),
    )


def check_above_chance(records: Records, *, accuracy: float, rows: int) -> None:
    """Refuses a plan near guessing: with labels in another order it would be certified, served, and wrong.

    Raises:
        DataError: the plan's accuracy, counted on so many rows, is near that of guessing.
    """
    right = round(accuracy * rows)
    interval = near_chance(right, rows, records.classes)
    if interval is not None:
        raise DataError(
            "plan",
            got=accuracy_text(right, rows, records.classes, interval),
            expected="a plan that is better than guessing",
            fix=f"{order_hint(records.meta.get('labels_by'))}; or write it all the same with `allow_near_chance`",
        )
