"""Which rows a plan is chosen on, and which ones only judge it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.records import Records
from orchestrator.spec import Member

# With fewer rows on either side no threshold and no bound means anything.
FEWEST_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class Split:
    """Two disjoint sets of rows.

    Args:
        search: intp, ascending: thresholds are chosen on them.
        certify: intp, ascending: the search never sees them; they only say how far down its list of plans to
            go. Empty where nothing is certified.
        seed: what made them.
    """

    search: npt.NDArray[np.intp]
    certify: npt.NDArray[np.intp]
    seed: int

    @property
    def certify_share(self) -> float:
        """Part of all rows that certify."""
        return len(self.certify) / (len(self.search) + len(self.certify))


def split_from_ids(ids: npt.NDArray[Any], *, certify_share: float, seed: int = 0) -> Split:
    """Splits by a hash of ids and seed: the same rows come out whatever order they are in.

    Args:
        ids: (n,), unique.
        certify_share: part of the rows kept to certify; 0 keeps none.
        seed: another seed gives another split.

    Raises:
        DataError: a part is too small to be of use.
    """
    kept = round(certify_share * len(ids))
    if len(ids) - kept < FEWEST_ROWS or (certify_share > 0 and kept < FEWEST_ROWS):
        parts = f"{len(ids) - kept} rows to search" + (f" and {kept} to certify" if certify_share > 0 else "")
        fix = "record more rows" + (" or use --no-certify" if certify_share > 0 else "")
        least = f"at least {FEWEST_ROWS}" + (" of each" if certify_share > 0 else "")
        raise DataError("records", got=parts, expected=least, fix=fix)
    order = np.argsort(_hashes(ids, seed), kind="stable")
    return Split(search=np.sort(order[kept:]), certify=np.sort(order[:kept]), seed=seed)


def shuffled(ids: npt.NDArray[Any], rows: npt.NDArray[np.intp], *, seed: int) -> npt.NDArray[np.intp]:
    """The given rows in an order that has nothing to do with the one they are in."""
    order: npt.NDArray[np.intp] = rows[np.argsort(_hashes(ids[rows], -1 - seed), kind="stable")]
    return order


def _hashes(ids: npt.NDArray[Any], seed: int) -> npt.NDArray[np.uint64]:
    salt = f"{seed}|"
    digests = (hashlib.blake2b(f"{salt}{name}".encode(), digest_size=8).digest() for name in ids.tolist())
    return np.frombuffer(b"".join(digests), np.uint64)


def records_of_rows(
    records: Records, rows: npt.NDArray[np.intp], members: Sequence[Member] | None = None
) -> Records:
    """Some rows of records, copied; of the given members only, if any are given."""
    names = records.outputs if members is None else [member.name for member in members]
    return dataclasses.replace(
        records,
        ids=records.ids[rows],
        labels=None if records.labels is None else records.labels[rows],
        outputs={name: records.outputs[name][rows] for name in names},
        cost={name: records.cost[name] for name in names},
    )
