"""The 1,797 scanned digits that ship with scikit-learn, in three disjoint splits fixed by row.

The row ids of the splits lie in digits_splits.json beside this file and are read from there, so that a change in
scikit-learn's shuffling can never move a row from one split to another.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError

SPLITS_PATH = Path(__file__).with_name("digits_splits.json")


@dataclass(frozen=True, kw_only=True)
class DigitsSplit:
    """Rows of one split: row numbers in scikit-learn's data set (n,), values 0 to 16 (n, 1, 8, 8), labels (n,)."""

    ids: npt.NDArray[np.int64]
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@lru_cache(maxsize=1)
def _all_digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    try:
        # scikit-learn is optional.
        from sklearn.datasets import load_digits
    except ImportError as error:
        fix = "install the demo's packages: pip install 'committee[demo]'"
        raise DataError("digits", got="no scikit-learn", fix=fix) from error
    data = load_digits()
    return np.ascontiguousarray(data.images[:, None], np.float32), np.asarray(data.target, np.int64)


def digits_split(name: str) -> DigitsSplit:
    """The rows of a split, in ascending row number.

    Raises DataError where there is no such split, or scikit-learn is not installed.
    """
    splits = json.loads(SPLITS_PATH.read_text(encoding="utf-8"))
    if name not in splits:
        raise DataError("digits split", got=repr(name), expected=f"one of {', '.join(splits)}")
    images, labels = _all_digits()
    ids = np.array(splits[name], np.int64)
    return DigitsSplit(ids=ids, images=images[ids], labels=labels[ids])


def digit_image(index: int) -> tuple[npt.NDArray[np.float32], int]:
    """One digit by its row number, float32 (1, 8, 8), and its label.

    Raises DataError where there is no such row, or scikit-learn is not installed.
    """
    images, labels = _all_digits()
    if not 0 <= index < len(images):
        raise DataError("digit", got=index, expected=f"a row number from 0 to {len(images) - 1}")
    # A copy, so that a caller's change does not reach later calls.
    return images[index].copy(), int(labels[index])
