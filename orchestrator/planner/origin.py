"""Which rows records are made of: a recording, a part of one, or several joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.planner.records import Records
from orchestrator.spec import CascadeSpec

# What `meta` of records and `fit.extra` of plans keep of it.
PART, JOINED = "part", "joined_rows"


def kept_origin(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan keeps of its records' origin beside their hash."""
    return {key: meta[key] for key in (PART, JOINED) if key in meta}


def has_seen(spec: CascadeSpec, records: Records) -> bool:
    """Whether a plan was chosen on some of the rows, as far as hashes tell.

    That is the same recording, a part of it, what it is a part of, or something joined with it. Two parts of one
    recording share rows unless one cut made both.
    """
    if spec.fit is None or not spec.fit.data_sha256:
        return False
    theirs = {**kept_origin(spec.fit.extra), "data_sha256": spec.fit.data_sha256}
    if _is_other_part(theirs, records.meta):
        return False
    return any(_share_rows(one, other) for one in _pieces(theirs) for other in _pieces(records.meta))


def _is_other_part(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both are of one cut of one recording, and not the same part."""
    ours, theirs = one.get(PART) or {}, other.get(PART) or {}
    whole = bool(ours) and ours.get("data_sha256") == theirs.get("data_sha256")
    same_cut = all(ours.get(key) == theirs.get(key) for key in ("share", "seed"))
    return whole and same_cut and one.get("data_sha256") != other.get("data_sha256")


def _pieces(origin: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The recording itself, and all that were joined into it or into what it is a part of."""
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
    return siblings and any(ours.get(key) != theirs.get(key) for key in ("share", "seed"))
