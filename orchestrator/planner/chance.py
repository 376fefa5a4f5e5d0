"""Whether members are better than guessing: labels in another order than the classes give no error, only that."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.records import Records
from orchestrator.spec.shares import wilson_ci95

Labels = npt.NDArray[np.int64]
# Rows that a member would get right if the labels were these.
Count = Callable[[str, Labels], int]
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


def chance_notes(
    right: Mapping[str, int], count: Count, *, labels: Labels, classes: int, labels_by: object
) -> list[str]:
    """Notes on members whose accuracy is near guessing.

    Args:
        right: member -> rows it gets right; none of random weights.
        count: gives the rows that a member would get right with other labels.
        labels: int64 (n,) in 0..k-1.
        classes: k.
        labels_by: how the labels were made from names: "map", "name" or "order"; None for numbers.
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
    return (
        f"accuracy {right / rows:.4f} on {rows} rows (95 % interval {low:.4f} to {high:.4f}), near guessing "
        f"({1 / classes:.4f})"
    )


def order_hint(labels_by: Any, *, one_based: bool = False) -> str:
    """How to record with the right classes, with arguments of other commands in backticks.

    Args:
        labels_by: "map", "name" or "order" where the labels were names, else None.
        one_based: each label less one would make the accuracy a good one.
    """
    if one_based:
        return "each less 1 fits them: record with `record.first_label=1`"
    if labels_by == "order":
        return (
            "sorted names were taken for the classes in order: record with `record.class_map`, "
            "which says the real one"
        )
    if labels_by == "map":
        return "the lines of `record.class_map` have to be in the order of the members' scores"
    if labels_by == "name":
        return (
            "names went by the members' own: give these in the order of the scores "
            "(export member `export.labels`), or say which is which with `record.class_map`"
        )
    return (
        "numbers have to be the members' own, from 0 (else `record.first_label`); "
        "for class names record with `record.class_map`, which says their order"
    )


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

    Args:
        records: the plan was made from.
        accuracy: of the plan.
        rows: that its accuracy was counted on.

    Raises:
        DataError: the accuracy is near that of guessing.
    """
    right = round(accuracy * rows)
    interval = near_chance(right, rows, records.classes)
    if interval is None:
        return
    raise DataError(
        "plan",
        got=accuracy_text(right, rows, records.classes, interval),
        expected="a plan that is better than guessing",
        fix=f"{order_hint(records.meta.get('labels_by'))}; or write it all the same with `allow_near_chance`",
    )
