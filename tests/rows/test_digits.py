"""The splits are fixed by row and share nothing."""

import json

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.rows.digits import SPLITS_PATH, digit_image, digits_split

pytest.importorskip("sklearn", reason="the scans come with scikit-learn")


def test_the_splits_are_those_first_drawn_disjoint_and_hold_every_row():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    labels = load_digits().target
    train, rest = train_test_split(range(1797), train_size=800, stratify=labels, random_state=0)
    plan, test = train_test_split(rest, train_size=450, stratify=labels[rest], random_state=0)
    drawn = {"train": sorted(train), "plan": sorted(plan), "test": sorted(test)}
    assert json.loads(SPLITS_PATH.read_text()) == drawn
    assert {name: digits_split(name).ids.tolist() for name in drawn} == drawn


def test_scans_are_float32_from_0_to_16():
    images = digits_split("plan").images
    assert images.dtype == np.float32
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 16)


def test_writing_into_a_digit_changes_no_later_one():
    first, _ = digit_image(7)
    kept = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(digit_image(7)[0], kept)


@pytest.mark.parametrize(
    "call", [lambda: digits_split("tests"), lambda: digit_image(1797), lambda: digit_image(-1)]
)
def test_what_is_not_there_is_said(call):
    with pytest.raises(DataError):
        call()
