"""What to say of members that are no better than guessing, most often for labels in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.planner.chance import near_chance

Labels = npt.NDArray[np.int64]
# Rows that a member gets right if the labels were these.
Count = Callable[[str, Labels], int]


def chance_notes(
    right: Mapping[str, int], count: Count, *, labels: Labels, classes: int, labels_by: object
) -> list[str]:
    """Notes on members whose accuracy is near guessing.

    Args:
        right: member -> rows it gets right; none of random weights.
        count: the same for other labels.
        labels: int64 (n,) in 0..k-1.
        classes: k.
        labels_by: how the labels were made from names, see `Source`; None for numbers.
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
    """How to record with the right classes.

    Args:
        labels_by: "map", "name" or "order" where the labels were names, else None.
        one_based: each label less one would make the accuracy a good one.
    """
    if one_based:
        return "each less 1 fits them: record with --first-label 1"
    if labels_by == "order":
        return "sorted names were taken for the classes in order: record with --class-map, which says the real one"
    if labels_by == "map":
        return "the lines of --class-map have to be in the order of the members' scores"
    if labels_by == "name":
        return (
            "names went by the members' own: give these in the order of the scores (export member --labels), "
            "or say which is which with --class-map"
        )
    return (
        "numbers have to be the members' own, from 0 (else --first-label); "
        "for class names record with --class-map, which says their order"
    )
