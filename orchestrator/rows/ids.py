"""Ids and labels of rows: what they must be, and hashes that tell whether two arrays are the same."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few

Array = npt.NDArray[Any]


def check_ids(what: str, ids: Array, rows: int) -> None:
    """Refuses ids that are not one per row, neither whole numbers nor text, or not unique.

    Raises:
        DataError: naming the ids at fault.
    """
    if ids.shape != (rows,):
        raise DataError(what, got=f"{ids.size} ids of shape {list(ids.shape)}", expected=f"{rows}, one per row")
    if ids.dtype.kind not in "iuUS":
        raise DataError(what, got=f"ids of dtype {ids.dtype}", expected="whole numbers or text")
    broken = [text for text in (ids.tolist() if ids.dtype.kind == "U" else ()) if not _is_text(text)]
    if broken:
        got = f"ids that are no text: {first_few([ascii(text) for text in broken])}"
        raise DataError(what, got=got, expected="Unicode", fix="rename them")
    order = np.sort(ids)
    twice = np.unique(order[1:][order[1:] == order[:-1]])
    if len(twice):
        raise DataError(what, got=f"an id more than once: {first_few(twice)}", expected="unique ids")


def _is_text(text: str) -> bool:
    """Whether the text has no half characters, which file names have that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_labels(
    what: str,
    labels: Array,
    *,
    rows: int,
    classes: int,
    first: int = 0,
    mending: str = "subtract {first} from each",
) -> None:
    """Refuses labels that are not one class number per row.

    Args:
        what: names the labels in an error.
        labels: to be (n,) whole numbers.
        rows: n.
        classes: k.
        first: number of the first class; that of the last one is k - 1 more.
        mending: the fix for labels that number the classes from another first one.

    Raises:
        DataError: naming the fault.
    """
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        got = f"labels of dtype {labels.dtype}, shape {list(labels.shape)}"
        raise DataError(what, got=got, expected=f"whole numbers [{rows}], one per row")
    if not rows:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < first or high >= first + classes:
        begin = 1 if low >= 1 and high == classes else low
        is_shifted = low >= 0 and high - begin == classes - 1
        raise DataError(
            what,
            got=f"labels from {low} to {high}",
            expected=f"{first} to {first + classes - 1}",
            fix=f"they look {begin}-based: {mending.format(first=begin)}" if is_shifted else None,
        )


def sha256_of_array(rows: Array) -> str:
    """Hash of an array's dtype, shape and bytes."""
    return sha256_of_parts(rows.dtype, rows.shape, parts=[rows])


def sha256_of_parts(dtype: np.dtype[Any], shape: tuple[int, ...], *, parts: Iterable[Array]) -> str:
    """Hash of an array that comes in parts along its first axis; equal to that of the whole array."""
    digest = hashlib.sha256(f"{dtype.str}{tuple(shape)}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def plain_ids(what: str, ids: Array, rows: int) -> Array:
    """Ids as int64 or text.

    Raises:
        DataError: another kind, or another number of them than there are rows.
    """
    if ids.shape != (rows,):
        raise DataError(f"{what} ids", got=f"shape {list(ids.shape)}", expected=f"[{rows}], one per row")
    if ids.dtype.kind in "iu" and ids.dtype != np.uint64:
        return ids.astype(np.int64)
    if ids.dtype.kind in "US":
        try:
            return ids.astype(np.str_)
        except UnicodeDecodeError as error:
            raise DataError(f"{what} ids", got=f"bytes that are not ASCII ({error})", expected="text") from error
    raise DataError(f"{what} ids", got=f"dtype {ids.dtype}", expected="whole numbers or text")
