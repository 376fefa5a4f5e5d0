"""Accuracies that are near guessing, and those that are not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planner.intervals import near_chance


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
        (300, 500, 2),
        (45, 50, 2),
        (200, 500, 3),
        (150, 500, 10),
        (15, 50, 10),
        (20, 1000, 1000),
        (3, 3, 2),
        (2, 4, 3),
        (12, 20, 2),
    ],
)
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
