"""Joining records files: of other members over the same rows, of other rows of the same members, or both.

Every member must have every row, once. Scores are copied in pieces; memory holds ids and labels of all files.
"""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few
from orchestrator.planner.dataset_split import JOINED, kept_origin
from orchestrator.planner.records import (
    MEAN_LENGTH,
    NON_FINITE,
    OUTPUTS,
    SKIPPED_LISTED,
    RecordsFile,
    records_file_from_path,
    scores_from_array,
    unusable_rows,
    write_records_in_parts,
)
from orchestrator.recording.summary import facts_of
from orchestrator.rows.npz import extract_array
from orchestrator.spec.answer import first_unlike
from orchestrator.spec.validation import is_finite

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.intp]
# Limits of one piece of scores; rows in random order touch a page of the file each.
PIECE_BYTES, PIECE_ROWS = 16 << 20, 8192
# Texts for people; where they differ all are kept.
_LISTED = ("data", "asked")


def join_records(
    paths: Sequence[Path], output: Path, *, skip_bad: bool = False, by_id: bool = False
) -> dict[str, Any]:
    """Joins two records files or more by the ids of their rows; JSON values like those of `summary_of`.

    The output appears whole or not at all, with rows and members in the order of the files. With `skip_bad` rows
    that some member lacks are left out; with `by_id` rows of one id are the same although the files say that their
    data differ.

    Raises:
        DataError: two files contradict each other, a member lacks rows, or a file is broken.
    """
    if len(paths) < 2:
        raise DataError("records to join", got=f"{len(paths)} files", expected="two or more")
    files = [_plain_file(path) for path in paths]
    classes = [file.classes for file in files]
    _check_same(files, classes, "{} classes in {}, {} in {}", expected="members of the same classes")
    words = ["text" if file.ids.dtype.kind == "U" else "numbers" for file in files]
    _check_same(files, words, "ids that are {} in {}, {} in {}", expected="ids of one kind")
    ids, codes = _numbered(files)
    table = _Table(files=files, ids=ids, codes=codes)
    members = list(dict.fromkeys(name for file in files for name in file.cost))
    kept = table.kept(members, skip_bad=skip_bad)
    notes = [] if by_id else table.notes_on_data()
    joined = RecordsFile(
        path=output,
        ids=ids[kept],
        labels=table.labels(kept),
        groups=table.groups(kept),
        classes=files[0].classes,
        cost={name: _one_cost(name, files) for name in members},
        meta=joined_meta(files, kept=ids[kept], left_out=np.delete(ids, kept)),
    )
    right = _written(joined, table, kept)
    left_out = len(ids) - len(kept)
    if left_out:
        notes.insert(0, f"{left_out} rows left out that not every member has")
    return {
        "output": str(output),
        **facts_of(joined, right, joined.meta.get("members", {})),
        "data_sha256": joined.meta.get("data_sha256"),
        "left_out_rows": left_out,
        "joined": [str(path) for path in paths],
        "notes": [*notes, *_notes_of(files)],
    }


def _written(joined: RecordsFile, table: "_Table", kept: Codes) -> dict[str, int]:
    """Writes the file; gives how many rows each member gets right, for no member where there are no labels."""
    labels, right = joined.labels, {} if joined.labels is None else dict.fromkeys(joined.cost, 0)

    def counted(name: str) -> Generator[npt.NDArray[np.float32], None, None]:
        at = 0
        for part in table.scores(name, kept, joined.path):
            if labels is not None:
                right[name] += int((part.argmax(axis=1) == labels[at : at + len(part)]).sum())
            at += len(part)
            yield part

    with contextlib.ExitStack() as stack:
        # Closed here also where writing fails, since an open one has unpacked files on the disk.
        parts = {name: stack.enter_context(contextlib.closing(counted(name))) for name in joined.cost}
        write_records_in_parts(joined, parts)
    return right


def _plain_file(path: Path) -> RecordsFile:
    """A records file with ids of one dtype for whole numbers and one kind of text, so that equal ids are equal."""
    file = records_file_from_path(path)
    ids = file.ids
    if ids.dtype == np.uint64 and int(ids.max(initial=0)) > np.iinfo(np.int64).max:
        raise DataError(f"records {path} ids", got=f"{ids.max()}", expected="64-bit whole numbers, or text")
    return dataclasses.replace(file, ids=ids.astype(np.str_ if ids.dtype.kind in "US" else np.int64))


def _check_same(
    files: Sequence[RecordsFile], values: Sequence[Any], got: str, *, expected: str, what: str = "records to join",
    fix: str | None = None,
) -> None:  # fmt: skip
    """Refuses files with different values; `got` is a text with places for two values, each with its file."""
    for file, value in zip(files, values, strict=True):
        if value != values[0]:
            text = got.format(values[0], files[0].path, value, file.path)
            raise DataError(what, got=text, expected=expected, fix=fix)


def _numbered(files: Sequence[RecordsFile]) -> tuple[Array, list[Codes]]:
    """All ids (N,) in order of their first appearance, and for each file the places of its rows among them."""
    stacked = np.concatenate([file.ids for file in files])
    unique, first, inverse = np.unique(stacked, return_index=True, return_inverse=True)
    rank = np.empty(len(unique), np.intp)
    order = np.argsort(first)
    rank[order] = np.arange(len(unique))
    codes = rank[inverse.reshape(-1)]
    return unique[order], np.split(codes, np.cumsum([len(file.ids) for file in files])[:-1])


def _one_cost(name: str, files: Sequence[RecordsFile]) -> float:
    having = [file for file in files if name in file.cost]
    costs = [file.cost[name] for file in having]
    if len(_mean_lengths(name, having)) == len(having):
        # Each is a mean over the rows of its file.
        return float(np.average(costs, weights=[file.rows for file in having]))
    got, fix = "{:g} in {}, {:g} in {}", "record with the same `cost`"
    _check_same(having, costs, got, what=f"cost of {name}", expected="one", fix=fix)
    return costs[0]


def _mean_lengths(name: str, files: Sequence[RecordsFile]) -> list[float]:
    """How long the rows of the files are on average for a member whose cost depends on that, where they say so."""
    facts = [(file.meta.get("members") or {}).get(name, {}) for file in files]
    return [float(one[MEAN_LENGTH]) for one in facts if is_finite(one.get(MEAN_LENGTH))]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Which rows each file has: ids (N,) of all rows, and for each file (n,) the places of its rows in them."""

    files: Sequence[RecordsFile]
    ids: Array
    codes: Sequence[Codes]

    def kept(self, members: Sequence[str], *, skip_bad: bool) -> Codes:
        """Places of the rows that every member has, ascending."""
        everywhere = np.ones(len(self.ids), bool)
        for name in members:
            count = np.zeros(len(self.ids), np.intp)
            for place in self._having(name):
                count[self.codes[place]] += 1
            self._check_once(name, count)
            if not skip_bad and not count.all():
                lacking = self.ids[count == 0]
                raise DataError(
                    f"member {name}",
                    got=f"no scores of {len(lacking)} of {len(self.ids)} rows, id {first_few(lacking)}",
                    expected="every row with every member",
                    fix="record those too, or leave such rows out with `skip_bad`",
                )
            everywhere &= count == 1
        if not everywhere.any():
            raise DataError("records to join", got="no row that every member has", expected="the same ids")
        return np.flatnonzero(everywhere)

    def _having(self, name: str) -> list[int]:
        return [place for place, file in enumerate(self.files) if name in file.cost]

    def _check_once(self, name: str, count: Codes) -> None:
        twice = self.ids[count > 1]
        if not len(twice):
            return
        paths = first_few([self.files[place].path for place in self._having(name)])
        others = "" if self.ids.dtype.kind == "U" else "; rows numbered from 0 in each file need other ids"
        raise DataError(
            f"member {name}",
            got=f"scores of {len(twice)} rows more than once, id {first_few(twice)}, in {paths}",
            expected="other rows, or other members, in each file",
            fix=f"leave one of them out{others}",
        )

    def notes_on_data(self) -> list[str]:
        """Notes on files that share some rows although their data differ by hash; refuses those that share all."""
        notes = []
        for place, file in enumerate(self.files):
            for before, other in enumerate(self.files[:place]):
                hashes = {one.meta.get("data_sha256") for one in (file, other)} - {None}
                shared = len(np.intersect1d(self.codes[place], self.codes[before])) if len(hashes) > 1 else 0
                if not shared:
                    continue
                if shared == len(self.codes[place]) == len(self.codes[before]):
                    raise DataError(
                        f"records {file.path}",
                        got=f"other data (data_sha256) under the same ids than in {other.path}",
                        expected="the same rows",
                        fix="if one id means the same row in both all the same, say `by_id`",
                    )
                notes.append(
                    f"{other.path} and {file.path} share {shared} ids and were recorded from other data "
                    "(data_sha256): that is so where one left rows out, and where an id means two rows"
                )
        return notes

    def labels(self, kept: Codes) -> npt.NDArray[np.int64] | None:
        """int64 (n,) of the kept rows, None where no file has any."""
        values = [file.labels for file in self.files]
        return self._agreed("label", values, kept)

    def groups(self, kept: Codes) -> Array | None:
        """Groups (n,) of the kept rows, None where no file has any."""
        held = [file.groups for file in self.files]
        some = [groups for groups in held if groups is not None]
        if not some:
            return None
        words = ["text" if groups.dtype.kind in "US" else "numbers" for groups in some]
        having = [file for file in self.files if file.groups is not None]
        _check_same(having, words, "groups that are {} in {}, {} in {}", expected="groups of one kind")
        names, codes = np.unique(np.concatenate(some), return_inverse=True)
        parts = iter(np.split(codes, np.cumsum([len(groups) for groups in some])[:-1]))
        found = self._agreed("group", [None if groups is None else next(parts) for groups in held], kept, names)
        return None if found is None else names[found]

    def _agreed(
        self, kind: str, values: Sequence[Array | None], kept: Codes, names: Array | None = None
    ) -> npt.NDArray[np.int64] | None:
        """What the files say of the kept rows, (n,) whole numbers from 0, places in `names` where there are such.

        None where no file says anything.
        """
        known = np.full(len(self.ids), -1, np.int64)
        for file, codes, said in zip(self.files, self.codes, values, strict=True):
            if said is None:
                continue
            before = known[codes]
            other = (before >= 0) & (before != said)
            if other.any():
                at = int(np.flatnonzero(other)[0])
                now, then = (one if names is None else names[one] for one in (said[at], before[at]))
                got = f"{kind} {now} of row {file.ids[at]}, and {then} in a file before it"
                fix = f"record all with the same {kind}s"
                raise DataError(f"records {file.path}", got=got, expected=f"the same {kind}", fix=fix)
            known[codes] = said
        found = known[kept]
        if (found < 0).all():
            return None
        if (found < 0).any():
            without = self.ids[kept][found < 0]
            got = f"no {kind} of {len(without)} of {len(kept)} rows, id {first_few(without)}"
            raise DataError("records to join", got=got, expected=f"a {kind} in every row, or in none")
        return found

    def scores(self, name: str, kept: Codes, output: Path) -> Iterator[npt.NDArray[np.float32]]:
        """A member's scores of the kept rows, float32 (n, k) in all."""
        # Files are unpacked beside the output, where there must be room for as much anyhow.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            yield from self._unpacked(name, kept, Path(folder))

    def _unpacked(self, name: str, kept: Codes, folder: Path) -> Iterator[npt.NDArray[np.float32]]:
        having = self._having(name)
        source, row = np.full(len(self.ids), -1, np.intp), np.zeros(len(self.ids), np.intp)
        for place in having:
            extract_array(self.files[place].path, f"{OUTPUTS}{name}", folder / f"{place}.npy")
            source[self.codes[place]] = place
            row[self.codes[place]] = np.arange(len(self.codes[place]))
        classes = self.files[0].classes
        size = max(1, min(PIECE_ROWS, PIECE_BYTES // (4 * classes)))
        for first in range(0, len(kept), size):
            wanted = kept[first : first + size]
            piece = np.empty((len(wanted), classes), np.float32)
            for place in having:
                here = source[wanted] == place
                # Mapped anew for each piece, so that pages that were touched do not add up.
                stored = np.load(folder / f"{place}.npy", mmap_mode="r", allow_pickle=False)
                piece[here] = scores_from_array(name, stored[row[wanted[here]]])
            bad = unusable_rows(piece)
            if len(bad):
                got = f"NaN, infinity or no finite score, id {first_few(self.ids[wanted[bad]])}"
                raise DataError(f"records, outputs of {name}", got=got, expected="finite scores")
            yield piece


def joined_meta(
    files: Sequence[RecordsFile], *, kept: npt.NDArray[Any], left_out: npt.NDArray[Any]
) -> dict[str, Any]:
    """The meta of joined records; equal metas give the same again.

    `kept` are the ids (n,) of the joined file, `left_out` those of rows that are in some file and not in this one.

    Raises:
        DataError: two say different things of one member, of the classes or of costs.
    """
    _check_one(files)
    metas = [file.meta for file in files]
    joined = _agreed(metas)
    for key in _LISTED:
        if said := _distinct(meta.get(key) for meta in metas):
            joined[key] = said[0] if len(said) == 1 else " + ".join(map(str, said))
    if any("members" in meta for meta in metas):
        joined["members"] = _members(files)
    if any("recorded_with" in meta for meta in metas):
        joined["recorded_with"] = _agreed([meta.get("recorded_with") or {} for meta in metas])
    if count := max(meta.get(NON_FINITE, 0) for meta in metas):
        # At least: which rows these were is not recorded.
        joined[NON_FINITE] = count
    joined |= _skipped(metas, kept=kept, left_out=left_out)
    origins = _distinct({"data_sha256": meta.get("data_sha256"), **kept_origin(meta)} for meta in metas)
    if len(origins) > 1:
        for key in origins[0] | {JOINED: None, "part": None}:
            joined.pop(key, None)
        hashes = [str(origin["data_sha256"]) for origin in origins]
        joined["data_sha256"] = hashlib.sha256("|".join(["joined", *hashes]).encode()).hexdigest()
        joined[JOINED] = [origin for origin in origins if origin["data_sha256"] is not None]
    return joined


def _notes_of(files: Sequence[RecordsFile]) -> list[str]:
    """Notes on records that were made under different conditions."""
    known = [file.meta["recorded_with"] for file in files if file.meta.get("recorded_with")]
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


def _check_one(files: Sequence[RecordsFile]) -> None:
    """Refuses costs in two units, and class names that differ."""
    named = [file for file in files if file.meta.get("class_names")]
    for file in files[1:]:
        unit, other = (str(one.meta.get("cost_unit", "MACs")) for one in (file, files[0]))
        if unit != other:
            got = f"costs in {unit}, and in {other} in {files[0].path}"
            raise DataError(f"records {file.path}", got=got, expected="one unit")
    for file in named[1:]:
        names, known = file.meta["class_names"], named[0].meta["class_names"]
        are_texts = all(isinstance(name, str) for name in (*names, *known))
        if (first_unlike(names, known) is not None) if are_texts else names != known:
            got = f"other class names or another order of them than in {named[0].path}"
            raise DataError(f"records {file.path}", got=got, expected="members of the same classes")


def _members(files: Sequence[RecordsFile]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    said_by: dict[str, Path] = {}
    for file in files:
        for name, facts in file.meta.get("members", {}).items():
            known = members.setdefault(name, facts)
            other = said_by.setdefault(name, file.path)
            keys = {*known, *facts} - {MEAN_LENGTH}
            differing = sorted(key for key in keys if known.get(key) != facts.get(key))
            if differing:
                got = f"another {', '.join(differing)} of {name} than in {other}"
                raise DataError(
                    f"records {file.path}", got=got, expected="the same model", fix="record both with it"
                )
    for name, facts in members.items():
        having = [file for file in files if name in file.cost]
        if len(lengths := _mean_lengths(name, having)) == len(having):
            mean = float(np.average(lengths, weights=[file.rows for file in having]))
            members[name] = {**facts, MEAN_LENGTH: mean}
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
