"""Rows split in two: to choose a plan on and to certify it, or to plan with and to evaluate on.

Rows that belong together, a group, stay on one side; without groups each row is one by itself.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.records import Records
from orchestrator.rows.blocks import sha256_of_array
from orchestrator.spec import CascadeSpec, Member

# With fewer rows on either side no threshold and no bound means anything.
FEWEST_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class DatasetSplit:
    """Two disjoint sets of rows.

    Args:
        search: intp, ascending: thresholds are chosen on these rows.
        certify: intp, ascending: the search never sees these rows; the certificate is made from them. Empty where
            nothing is certified.
    """

    search: npt.NDArray[np.intp]
    certify: npt.NDArray[np.intp]
    seed: int


def split_from_ids(
    ids: npt.NDArray[Any], *, certify_share: float, seed: int = 0, groups: npt.NDArray[Any] | None = None
) -> DatasetSplit:
    """Splits unique ids (n,) by a hash of id and seed: the same rows come out whatever order they are in.

    The part `certify_share` of them is kept to certify; 0 keeps none. With groups (n,) the hash is that of a row's
    group, and as many rows are kept as whole groups come nearest to.

    Raises:
        DataError: a part is too small to be of use.
    """
    order = np.argsort(_hashes(ids if groups is None else groups, seed), kind="stable")
    kept = _place_between_groups(order, groups, round(certify_share * len(ids)))
    got, least, fix = f"{len(ids) - kept} rows to search", f"at least {FEWEST_ROWS}", "record more rows"
    if certify_share > 0:
        got, least, fix = f"{got} and {kept} to certify", f"{least} of each", f"{fix} or use `certify=False`"
    if len(ids) - kept < FEWEST_ROWS or (certify_share > 0 and kept < FEWEST_ROWS):
        raise DataError("records", got=got + _in_groups(groups), expected=least, fix=fix)
    return DatasetSplit(search=np.sort(order[kept:]), certify=np.sort(order[:kept]), seed=seed)


def shuffled_halves(
    records: Records, rows: npt.NDArray[np.intp], *, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The given rows in two halves, each in an order that depends on ids, or groups, and the seed alone."""
    names = records.ids if records.groups is None else records.groups
    order = np.asarray(rows[np.argsort(_hashes(names[rows], -1 - seed), kind="stable")])
    half = _place_between_groups(order, records.groups, len(rows) // 2)
    return order[:half], order[half:]


def _place_between_groups(order: npt.NDArray[np.intp], groups: npt.NDArray[Any] | None, wanted: int) -> int:
    """The place nearest to `wanted` in the rows of `order` that divides no group; groups stand together there."""
    if groups is None:
        return wanted
    named = groups[order]
    places = np.array([0, *(np.flatnonzero(named[1:] != named[:-1]) + 1), len(order)])
    return int(places[np.abs(places - wanted).argmin()])


def _in_groups(groups: npt.NDArray[Any] | None) -> str:
    return "" if groups is None else f", in {len(np.unique(groups))} groups, which stay together"


def _hashes(ids: npt.NDArray[Any], seed: int) -> npt.NDArray[np.uint64]:
    salt = f"{seed}|"
    digests = (hashlib.blake2b(f"{salt}{name}".encode(), digest_size=8).digest() for name in ids.tolist())
    return np.frombuffer(b"".join(digests), np.uint64)


def records_of_rows(
    records: Records, rows: npt.NDArray[np.intp], members: Sequence[Member] | None = None
) -> Records:
    """Some rows of records, copied, with the outputs of the given members; None for all members."""
    names = records.outputs if members is None else [member.name for member in members]
    return dataclasses.replace(
        records,
        ids=records.ids[rows],
        labels=None if records.labels is None else records.labels[rows],
        groups=None if records.groups is None else records.groups[rows],
        outputs={name: records.outputs[name][rows] for name in names},
        cost={name: records.cost[name] for name in names},
    )


def parts_from_records(records: Records, *, share: float, seed: int) -> tuple[Records, Records]:
    """Two disjoint parts, by a hash of ids and seed, so that records of the same rows are always cut alike.

    The first part gets `share` of the rows, as near as whole groups come to it. Each has a `data_sha256` of its
    own, a hash of the whole's and the ids, by which `has_seen` tells rows that a plan was chosen on from others.

    Raises:
        DataError: a part has too few rows to be of use.
    """
    first = round(share * records.rows)
    if not FEWEST_ROWS <= first <= records.rows - FEWEST_ROWS:
        got = f"parts of {first} and {records.rows - first} rows"
        raise DataError(f"`share` {share:g}", got=got, expected=f"at least {FEWEST_ROWS} rows in each")
    groups = records.groups
    split = split_from_ids(records.ids, certify_share=1 - first / records.rows, seed=seed, groups=groups)
    cut = {"share": share, "seed": seed, **({} if groups is None else {"groups": sha256_of_array(groups)})}
    return (
        _part(records, split.search, {"part": "first", **cut}),
        _part(records, split.certify, {"part": "rest", **cut}),
    )


def _part(records: Records, rows: npt.NDArray[np.intp], facts: dict[str, Any]) -> Records:
    whole = records.meta.get("data_sha256")
    part = records_of_rows(records, rows)
    digest = hashlib.sha256(f"{whole}|{sha256_of_array(part.ids)}".encode()).hexdigest()
    meta = dict(records.meta)
    # The recordings that were joined make up the whole; one part may have rows of only one of them.
    joined = {JOINED: meta.pop(JOINED)} if JOINED in meta else {}
    meta |= {"data_sha256": digest, PART: {**facts, "data_sha256": whole, **joined}}
    return dataclasses.replace(part, meta=meta)


# Keys in `meta` of records and `fit.extra` of plans that say which recordings rows are from.
PART, JOINED = "part", "joined_rows"
# What decides on which side of a cut a row is.
_CUT = ("share", "seed", "groups")


def kept_origin(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `meta` that a plan keeps to know its records again, beside their hash."""
    return {key: meta[key] for key in (PART, JOINED) if key in meta}


def has_seen(spec: CascadeSpec, records: Records) -> bool:
    """Whether a plan was chosen on some of the rows, as far as hashes tell.

    It was where the plan's records and these are one recording, or one is a part of the other, or both were joined
    from a common one. Two parts of one recording share rows unless they are the two sides of one cut.
    """
    if spec.fit is None or not spec.fit.data_sha256:
        return False
    theirs = {**kept_origin(spec.fit.extra), "data_sha256": spec.fit.data_sha256}
    if _is_other_part(theirs, records.meta):
        return False
    return any(_share_rows(one, other) for one in _pieces(theirs) for other in _pieces(records.meta))


def _is_other_part(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether these are the two sides of one cut of one recording."""
    ours, theirs = one.get(PART) or {}, other.get(PART) or {}
    whole = bool(ours) and ours.get("data_sha256") == theirs.get("data_sha256")
    same_cut = all(ours.get(key) == theirs.get(key) for key in _CUT)
    return whole and same_cut and one.get("data_sha256") != other.get("data_sha256")


def _pieces(origin: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The recording, and all recordings that were joined into it or into the one it is a part of."""
    yield origin
    for joined in (origin.get(JOINED), (origin.get(PART) or {}).get(JOINED)):
        for piece in joined or ():
            yield from _pieces(piece)


def _share_rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    hashes = one.get("data_sha256"), other.get("data_sha256")
    ours, theirs = one.get(PART) or {}, other.get(PART) or {}
    if None in hashes:
        return False
    if hashes[0] in (hashes[1], theirs.get("data_sha256")) or ours.get("data_sha256") == hashes[1]:
        return True
    siblings = bool(ours) and bool(theirs) and ours.get("data_sha256") == theirs.get("data_sha256")
    return siblings and any(ours.get(key) != theirs.get(key) for key in _CUT)
