"""The splits are fixed by row and share nothing."""

import json

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.rows.digits import SPLIT_SIZES, SPLITS_PATH, digit_image, digits_split, fixed_splits

pytest.importorskip("sklearn", reason="the scans come with scikit-learn")


def test_the_stored_rows_are_those_the_code_draws():
    assert json.loads(SPLITS_PATH.read_text()) == fixed_splits()


def test_splits_are_disjoint_and_hold_every_row():
    ids = [digits_split(name).ids for name in SPLIT_SIZES]
    assert [len(part) for part in ids] == list(SPLIT_SIZES.values())
    assert sorted(np.concatenate(ids)) == list(range(1797))


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
