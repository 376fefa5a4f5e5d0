"""One recording from start to end, with what is kept when it stops early.

Members are asked about pieces of rows in threads; results come in order, in bounded memory.
"""

import contextlib
import dataclasses
import itertools
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, DiskError, first_few
from orchestrator.files import nearest_existing
from orchestrator.planner.records import NON_FINITE, Records, RecordsFile, unusable_rows, write_records_in_parts
from orchestrator.progress import Advance, Progress, no_progress, rows_kept, saying_what_is_kept
from orchestrator.recording.pool import RecordingPool, opened_pool
from orchestrator.recording.scores import check_piece, evidence_of
from orchestrator.recording.shards import (
    NO_DIGEST,
    RecordedPiece,
    Shards,
    finished_recording,
    keep_fingerprint,
    recording_fingerprint,
    stored_outputs,
)
from orchestrator.recording.summary import costs_of_rows, meta_of, summary_of
from orchestrator.rows.blocks import (
    UNLABELLED,
    ColumnNames,
    Indices,
    RowBlock,
    RowPiece,
    RowSource,
    sha256_of_array,
)
from orchestrator.rows.labels import MemberClasses, class_map_from_path
from orchestrator.rows.opening import row_source
from orchestrator.rows.pictures import reader_for
from orchestrator.spec.manifest import one_order

Scores = npt.NDArray[np.float32]
# A shard is written after so many bytes of scores, or after so many seconds or this share of the time spent so
# far, whichever is longer: a killed run loses no more. The share keeps a run of hours to a few hundred shards.
SHARD_BYTES, SHARD_S, SHARD_SHARE = 32 << 20, 0.5, 0.02
# How long a run that ends early waits for pieces that are being asked about.
LAST_PIECES_S = 2.0


@dataclass(frozen=True, kw_only=True)
class RecordingTask:
    """Which rows are recorded by which members.

    Args:
        wanted: int64 (n,), indices of rows of the source, ascending.
        skip_bad: leave out rows that cannot be read or answered, instead of stopping at them.
    """

    source: RowSource
    pool: RecordingPool
    wanted: Indices
    skip_bad: bool = False

    def id_of(self, position: int) -> object:
        """Id of a wanted row."""
        return self.source.ids[self.wanted[position]].item()


def wanted_rows(rows: int, limit: int | None) -> Indices:
    """Indices of all rows, or of `limit` spread evenly over them: a folder is sorted by class."""
    if limit is None or limit >= rows:
        return np.arange(rows)
    return np.arange(limit) * rows // limit


def answered_pieces(task: RecordingTask, *, start: int = 0) -> Generator[RecordedPiece, None, None]:
    """Asks about every position from `start` on, and gives the answers in order.

    Raises DataError where a row cannot be read, or a member has no finite scores for it, and bad rows are not
    skipped; MemberError or ClientError where a member failed.
    """
    waiting: deque[Future[RecordedPiece]] = deque()
    executor = ThreadPoolExecutor(task.pool.workers)
    try:
        for piece in task.source.pieces(task.wanted, start, task.pool.piece_rows()):
            waiting.append(executor.submit(_answered, task, piece))
            # One more than can run, so that no worker waits for the reader.
            if len(waiting) > task.pool.workers + 1:
                yield waiting[0].result()
                waiting.popleft()
        while waiting:
            yield waiting[0].result()
            waiting.popleft()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        # A read from a mount that is gone never ends; finished pieces are kept all the same.
        wait([future for future in waiting if not future.cancelled()], timeout=LAST_PIECES_S)


def _answered(task: RecordingTask, piece: RowPiece) -> RecordedPiece:
    loaded, skipped = _labelled(task, piece.load())
    loaded = task.pool.completed(loaded)
    if loaded.refused and not task.skip_bad:
        first = loaded.refused[0]
        raise DataError(
            f"data {task.source.name}",
            got=f"row {task.id_of(int(first.id))} that cannot be read ({first.reason})",
            fix="mend it, or leave such rows out with `skip_bad`",
        )
    skipped |= {int(one.id): one.reason for one in loaded.refused}
    outputs = {name: _asked(task.pool, name, loaded) for name in task.pool.names}
    for name, scores in outputs.items():
        bad = loaded.ids[unusable_rows(scores)].tolist()
        if bad and not task.skip_bad:
            raise DataError(
                f"member {name}",
                got=f"NaN, infinity or no finite score for rows {first_few([task.id_of(one) for one in bad])}",
                expected="finite scores",
                fix="leave the member out, or such rows with `skip_bad`",
            )
        skipped |= dict.fromkeys(bad, f"member {name}: no finite scores")
    good = ~np.isin(loaded.ids, list(skipped))
    return RecordedPiece(
        first=piece.first,
        stop=piece.stop,
        kept=loaded.ids[good],
        outputs={name: scores[good] for name, scores in outputs.items()},
        skipped=skipped,
        digests=tuple(itertools.compress(loaded.digests, good)),
        lengths={name: lengths[good] for name, lengths in task.pool.row_lengths(loaded.rows).items()},
        non_finite=int(_non_finite(loaded)[good].sum()),
    )


def _non_finite(loaded: RowBlock) -> npt.NDArray[np.bool_]:
    """Which rows (n,) hold NaN or infinity."""
    found = np.zeros(len(loaded.ids), np.bool_)
    for tensor in loaded.rows.values() if isinstance(loaded.rows, Mapping) else (loaded.rows,):
        array = np.asarray(tensor)
        if array.dtype.kind == "f" and len(array):
            found |= ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        elif array.dtype == object:
            parts = (np.asarray(row) for row in array)
            found |= [row.dtype.kind == "f" and not np.isfinite(row).all() for row in parts]
    return found


def _labelled(task: RecordingTask, loaded: RowBlock) -> tuple[RowBlock, dict[int, str]]:
    """The rows that have a label, and why the others are left out; all rows where the source has no labels."""
    labels = task.source.labels.numbers
    if labels is None:
        return loaded, {}
    has_label = labels[task.wanted[loaded.ids]] >= 0
    if has_label.all():
        return loaded, {}
    kept = dataclasses.replace(loaded.picked(np.flatnonzero(has_label)), refused=loaded.refused)
    return kept, dict.fromkeys(loaded.ids[~has_label].tolist(), "no label")


def _asked(pool: RecordingPool, name: str, loaded: RowBlock) -> Scores:
    expected = (len(loaded.ids), pool.classes)
    if not len(loaded.ids):
        return np.zeros(expected, np.float32)
    scores = pool.scores(name, loaded.rows)
    if scores.shape != expected:
        got = f"scores of shape {list(scores.shape)}"
        raise DataError(f"member {name}", got=got, expected=list(expected))
    check_piece(name, scores, pool.kinds)
    return scores


def record_into(shards: Shards, task: RecordingTask, *, advance: Advance) -> None:
    """Asks about the rows that the shards lack, and adds them; finished pieces are kept however it ends."""
    held: list[RecordedPiece] = []
    held_bytes = 0
    begun = since = time.monotonic()
    try:
        # Closed here and not by the garbage collector, since its threads may still ask.
        with contextlib.closing(answered_pieces(task, start=shards.done)) as pieces:
            for piece in pieces:
                held.append(piece)
                held_bytes += sum(scores.nbytes for scores in piece.outputs.values())
                now = time.monotonic()
                if held_bytes >= SHARD_BYTES or now - since >= max(SHARD_S, SHARD_SHARE * (now - begun)):
                    # Let go first: what could not be written is not written a second time below.
                    full, held, held_bytes, since = held, [], 0, now
                    shards.add(full)
                advance(piece.stop - piece.first)
    finally:
        if held:
            shards.add(held)


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """Which rows are recorded, and how their labels are read.

    Args:
        data: what `row_source` takes.
        limit: rows at most, spread evenly over the data; None records all.
        skip_bad: leave out rows that cannot be read or answered, or lack a label.
        by_order: take sorted class names for the classes in order.
        class_map: file that says what the data calls each class.
        first_label: number of the first class in labels that are numbers.
        columns: which columns or arrays of the data hold what.
    """

    data: str
    limit: int | None = None
    skip_bad: bool = False
    by_order: bool = False
    class_map: Path | None = None
    first_label: int = 0
    columns: ColumnNames = field(default_factory=ColumnNames)


def source_for(pool: RecordingPool, options: RecordOptions) -> RowSource:
    """The rows to record, with labels in the members' classes.

    Raises CommitteeError where the data cannot be used, or not with these members.
    """
    names, path = pool.class_names(), options.class_map
    classes = MemberClasses(
        count=pool.classes,
        names=names,
        by_order=options.by_order,
        class_map=None if path is None else class_map_from_path(path, count=pool.classes, known=names),
        first_label=options.first_label,
    )
    reader = reader_for(pool.info, pool.preprocess)
    columns = dataclasses.replace(options.columns, trained=one_order(pool.manifests))
    return row_source(options.data, pool.info, classes=classes, read_picture=reader, columns=columns)


def record_job(
    pool: RecordingPool,
    options: RecordOptions,
    output: Path,
    *,
    restart: bool = False,
    progress: Progress = no_progress,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Records rows, or continues an unfinished recording of them, and describes the file, see `summary_of`.

    With `restart` an unfinished recording is thrown away, and what is up to date is recorded again. `tell` gets a
    sentence where an unfinished recording is continued.

    Raises:
        CommitteeError: anything about the data, the members or the disk; rows that were answered are kept.
        Interrupted: the process was asked to end; the same is kept.
    """
    source = source_for(pool, options)
    wanted = wanted_rows(len(source.ids), options.limit)
    if not options.skip_bad:
        _check_labelled(source, wanted)
    task = RecordingTask(source=source, pool=pool, wanted=wanted, skip_bad=options.skip_bad)
    header = _header(task, options)
    fingerprint = recording_fingerprint(header, pool, source, skip_bad=options.skip_bad)
    finished = None if restart else finished_recording(output, fingerprint)
    if finished is not None:
        outputs = partial(stored_outputs, output)
        seen = {name: evidence_of(outputs(name)) for name in pool.names}
        return summary_of(finished, outputs, pool, source, seen=seen) | {"up_to_date": True}
    _check_disk(output, pool, rows=len(wanted))
    shards = Shards(output, header, restart=restart)

    def kept() -> str:
        # A part that cannot be read is not kept: only `restart` helps.
        is_kept = shards.done and not shards.is_broken
        return rows_kept(shards.done, len(wanted), shards.folder) if is_kept else ""

    with contextlib.closing(shards), saying_what_is_kept(kept):
        if shards.resumed and tell is not None:
            tell(f"going on after {shards.resumed} of {len(wanted)} rows kept in {shards.folder}")
        with progress(f"asking {len(pool.names)} members", len(wanted)) as advance:
            advance(shards.resumed)
            record_into(shards, task, advance=advance)
        summary = _finished(shards, task, options)
        keep_fingerprint(output, fingerprint)
        shards.remove()
    return summary


def records_of(
    repository: Path, members: Sequence[str], data: str, *, derive: Sequence[str] = (), limit: int | None = None
) -> Records:
    """Every member's outputs on a data source, all in memory; arguments and errors are those of `record_job`.

    `derive` names models of the repository that make tensors which members read.
    """
    with opened_pool(members, repository, derive=derive) as pool:
        source = source_for(pool, RecordOptions(data=data))
        wanted = wanted_rows(len(source.ids), limit)
        task = RecordingTask(source=source, pool=pool, wanted=wanted)
        pieces = list(answered_pieces(task))
        outputs = {name: np.concatenate([piece.outputs[name] for piece in pieces]) for name in pool.names}
        lengths = {name: np.concatenate([piece.lengths[name] for piece in pieces]) for name in pool.lengths}
        seen = {name: evidence_of([scores]) for name, scores in outputs.items()}
        meta = meta_of(pool, source, data=data, sha256=source.data_sha256, skipped={}, seen=seen)
        labels = source.labels.numbers
        labels = None if labels is None else labels[wanted]
        groups = None if source.groups is None else source.groups[wanted]
        cost = costs_of_rows(pool, lengths, meta)
        return Records(ids=source.ids[wanted], labels=labels, groups=groups, outputs=outputs, cost=cost, meta=meta)


def _check_labelled(source: RowSource, wanted: Indices) -> None:
    """Refuses rows without labels beside others that have them."""
    labels = source.labels.numbers
    without = wanted[:0] if labels is None else wanted[labels[wanted] < 0]
    if len(without):
        raise DataError(
            f"data {source.name}",
            got=f"{len(without)} of {len(wanted)} rows without a label (null, NaN or {UNLABELLED}): "
            f"{first_few(source.ids[without])}",
            expected="a label in every row",
            fix="leave such rows out with `skip_bad`, or give them labels",
        )


def _header(task: RecordingTask, options: RecordOptions) -> dict[str, Any]:
    """What a resumed run and the one it resumes have in common."""
    source, pool, labels = task.source, task.pool, task.source.labels.numbers
    return {
        "format": 3,
        "data": options.data,
        "data_identity": source.identity,
        "labels": None if labels is None else sha256_of_array(labels),
        **({} if source.groups is None else {"groups": sha256_of_array(source.groups)}),
        "rows": len(source.ids),
        "limit": options.limit,
        "members": pool.about(),
        "member_order": list(pool.names),
        "cost": dict(pool.cost),
        **pool.about_derived(),
        "asked": pool.asked,
        "piece_rows": pool.piece_rows(),
    }


def _check_disk(output: Path, pool: RecordingPool, *, rows: int) -> None:
    """Refuses a disk without room for the parts and the finished file, which both exist for a moment."""
    need = 2 * rows * pool.classes * 4 * len(pool.names)
    free = shutil.disk_usage(nearest_existing(output.resolve().parent)).free
    if need > free:
        raise DiskError(
            f"no space left on {output}",
            got=f"{free / 1e6:,.1f} MB free",
            expected=f"{need / 1e6:,.1f} MB for {rows} rows, {pool.classes} classes, {len(pool.names)} members",
            fix="make room, or record fewer rows with `limit`",
        )


def _finished(shards: Shards, task: RecordingTask, options: RecordOptions) -> dict[str, Any]:
    """Writes the records file and returns its summary."""
    source, pool, output = task.source, task.pool, shards.output
    kept = shards.kept()
    skipped = {str(source.ids[task.wanted[at]]): why for at, why in sorted(shards.skipped().items())}
    if not len(kept):
        got = f"not one usable row: {next(iter(skipped.values()), 'none at all')}"
        shards.remove()
        raise DataError(f"data {options.data}", got=got)
    rows = task.wanted[kept]
    ids, labels = source.ids[rows], None if source.labels.numbers is None else source.labels.numbers[rows]
    sha256 = source.data_sha256 or (shards.digest.hex() if shards.digest != NO_DIGEST else None)
    seen = {name: evidence_of(shards.outputs(name)) for name in pool.names}
    meta = meta_of(pool, source, data=options.data, sha256=sha256, skipped=skipped, seen=seen)
    for about in meta["members"].values():
        said = about.get("input", {"dims": [], "dtype": ""})
        are_tokens = len(said["dims"]) == 1 and said["dtype"].startswith("INT")
        if -1 in said["dims"] and not are_tokens:
            # A member that takes rows of any shape: the plan needs to know which ones it was asked about.
            first = next(iter(source.pieces(task.wanted, int(kept[0]), 1))).load().rows
            about["input"]["dims"] = list(np.shape(cast(Any, first))[1:])
    if options.limit is not None:
        meta["limit"] = options.limit
    if count := shards.non_finite():
        meta[NON_FINITE] = count
    cost = costs_of_rows(pool, {name: shards.lengths(name) for name in pool.lengths}, meta)
    groups = None if source.groups is None else source.groups[rows]
    file = RecordsFile(
        path=output, ids=ids, labels=labels, groups=groups, classes=pool.classes, cost=cost, meta=meta
    )
    write_records_in_parts(file, {name: shards.outputs(name) for name in pool.names})
    return summary_of(file, shards.outputs, pool, source, seen=seen) | {"resumed_rows": shards.resumed}
