"""Records cut in two: rows to plan with, and rows that nothing was ever chosen on."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.origin import JOINED, PART
from orchestrator.planner.records import Records
from orchestrator.planner.split import FEWEST_ROWS, records_of_rows, split_from_ids
from orchestrator.rows.ids import sha256_of_array


def parts_from_records(records: Records, *, share: float, seed: int) -> tuple[Records, Records]:
    """Two disjoint parts, by a hash of ids and seed, so that members recorded apart are cut alike.

    Each part's `data_sha256` is its own, made of the whole's and its ids: a plan can tell the rows it was chosen
    on from the others.

    Args:
        records: of n rows.
        share: of the rows that go to the first part.
        seed: another seed gives another cut.

    Raises:
        DataError: a part has too few rows to be of use.
    """
    first = round(share * records.rows)
    if not FEWEST_ROWS <= first <= records.rows - FEWEST_ROWS:
        raise DataError(
            f"--share {share:g}",
            got=f"parts of {first} and {records.rows - first} rows",
            expected=f"at least {FEWEST_ROWS} rows in each",
        )
    split = split_from_ids(records.ids, certify_share=1 - first / records.rows, seed=seed)
    return (
        _part(records, split.search, {"part": "first", "share": share, "seed": seed}),
        _part(records, split.certify, {"part": "rest", "share": share, "seed": seed}),
    )


def _part(records: Records, rows: npt.NDArray[np.intp], facts: dict[str, Any]) -> Records:
    whole = records.meta.get("data_sha256")
    part = records_of_rows(records, rows)
    digest = hashlib.sha256(f"{whole}|{sha256_of_array(part.ids)}".encode()).hexdigest()
    meta = dict(records.meta)
    # What was joined is in the whole; one part alone may have rows of one piece only.
    joined = {JOINED: meta.pop(JOINED)} if JOINED in meta else {}
    meta |= {"data_sha256": digest, PART: {**facts, "data_sha256": whole, **joined}}
    return dataclasses.replace(part, meta=meta)
