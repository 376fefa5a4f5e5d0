"""The meta of joined records: what all files agree on, and errors where they contradict each other."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.dataset_split import JOINED, kept_origin
from orchestrator.planner.records import SKIPPED_LISTED
from orchestrator.spec.class_names import first_unlike

Named = tuple[str, Mapping[str, Any]]
# Texts for people; where they differ all are kept.
_LISTED = ("data", "asked")
_KINDS = {
    "members": dict, "recorded_with": dict, "skipped": dict, "skipped_rows": int, "part": dict, JOINED: list,
    "class_names": list,
}  # fmt: skip


def joined_meta(metas: Sequence[Named], *, kept: npt.NDArray[Any], left_out: npt.NDArray[Any]) -> dict[str, Any]:
    """The meta of joined records; equal metas give the same again.

    Args:
        metas: path and meta of each file.
        kept: ids (n,) of the joined file.
        left_out: ids of rows that are in some file, and not in the joined one.

    Raises:
        DataError: two say different things of one member, of the classes or of costs.
    """
    for path, meta in metas:
        _check_kinds(path, meta)
    _check_one(metas)
    values = [meta for _, meta in metas]
    joined = _agreed(values)
    for key in _LISTED:
        if said := _distinct(meta.get(key) for meta in values):
            joined[key] = said[0] if len(said) == 1 else " + ".join(map(str, said))
    if any("members" in meta for meta in values):
        joined["members"] = _members(metas)
    if any("recorded_with" in meta for meta in values):
        joined["recorded_with"] = _agreed([meta.get("recorded_with") or {} for meta in values])
    joined |= _skipped(values, kept=kept, left_out=left_out)
    origins = _distinct({"data_sha256": meta.get("data_sha256"), **kept_origin(meta)} for meta in values)
    if len(origins) > 1:
        for key in origins[0] | {JOINED: None, "part": None}:
            joined.pop(key, None)
        hashes = [str(origin["data_sha256"]) for origin in origins]
        joined["data_sha256"] = hashlib.sha256("|".join(["joined", *hashes]).encode()).hexdigest()
        joined[JOINED] = [origin for origin in origins if origin["data_sha256"] is not None]
    return joined


def notes_of(metas: Iterable[Mapping[str, Any]]) -> list[str]:
    """Notes on records that were made under different conditions."""
    known = [meta["recorded_with"] for meta in metas if meta.get("recorded_with")]
    keys = sorted({key for one in known for key in one if any(other.get(key) != one[key] for other in known)})
    return [f"recorded with different {' and '.join(keys)}".replace("_", " ")] if keys else []


def _agreed(metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries that are equal in all metas; class names, which were compared before, also where some have none."""
    first = metas[0]
    agreed = {key: first[key] for key in first if all(key in one and one[key] == first[key] for one in metas)}
    names = next((one["class_names"] for one in metas if one.get("class_names")), None)
    return agreed | ({} if names is None else {"class_names": names})


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def _check_kinds(path: str, meta: Mapping[str, Any]) -> None:
    wrong = [key for key, kind in _KINDS.items() if key in meta and not isinstance(meta[key], kind)]
    of_members = meta.get("members", {})
    if not wrong and any(not isinstance(facts, dict) for facts in of_members.values()):
        wrong = ["members"]
    if wrong:
        raise DataError(f"records {path}", got=f"meta with other kinds of {', '.join(wrong)}", fix="record again")


def _check_one(metas: Sequence[Named]) -> None:
    first = metas[0]
    for path, meta in metas[1:]:
        unit, other = (str(one.get("cost_unit", "MACs")) for one in (meta, first[1]))
        if unit != other:
            got = f"costs in {unit}, and in {other} in {first[0]}"
            raise DataError(f"records {path}", got=got, expected="one unit")
    named = [(path, meta["class_names"]) for path, meta in metas if meta.get("class_names")]
    for path, names in named[1:]:
        if not _same_names(names, named[0][1]):
            got = f"other class names or another order of them than in {named[0][0]}"
            raise DataError(f"records {path}", got=got, expected="members of the same classes")


def _same_names(one: Sequence[Any], other: Sequence[Any]) -> bool:
    texts = all(isinstance(name, str) for name in (*one, *other))
    return first_unlike(one, other) is None if texts else one == other


def _members(metas: Sequence[Named]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for path, meta in metas:
        for name, facts in meta.get("members", {}).items():
            known = members.setdefault(name, facts)
            other = said_by.setdefault(name, path)
            differing = sorted(key for key in {*known, *facts} if known.get(key) != facts.get(key))
            if differing:
                got = f"another {', '.join(differing)} of {name} than in {other}"
                raise DataError(f"records {path}", got=got, expected="the same model", fix="record both with it")
    return members


def _skipped(
    metas: Sequence[Mapping[str, Any]], *, kept: npt.NDArray[Any], left_out: npt.NDArray[Any]
) -> dict[str, Any]:
    """Rows that were left out of any file; their number is a lower bound where not all are listed."""
    if not len(left_out) and not any("skipped_rows" in meta for meta in metas):
        return {}
    reasons = {key: why for meta in reversed(metas) for key, why in meta.get("skipped", {}).items()}
    # A row that one file lacks may be in another.
    there = np.isin(np.array(list(reasons), np.str_), kept.astype(np.str_)) if reasons else ()
    listed = {key: why for (key, why), is_kept in zip(reasons.items(), there, strict=True) if not is_kept}
    for one in left_out.tolist():
        listed.setdefault(str(one), "not recorded for every member")
    complete = all(meta.get("skipped_rows", 0) == len(meta.get("skipped", {})) for meta in metas)
    most = len(listed) if complete else max([len(listed), *(meta.get("skipped_rows", 0) for meta in metas)])
    return {"skipped_rows": most, "skipped": dict(list(listed.items())[:SKIPPED_LISTED])}
