"""One recording from start to end: what is asked, what is kept when it stops, what the file says of itself."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.commandline import interrupt, interrupted_from
from orchestrator.errors import CommitteeError, DataError, SpecError, first_few
from orchestrator.progress import Progress, no_progress
from orchestrator.recording.again import finished_recording, keep_fingerprint, recording_fingerprint
from orchestrator.recording.pool import Pool
from orchestrator.recording.run import Task, record_into, wanted_rows
from orchestrator.recording.scores import evidence_of, row_dims_noted
from orchestrator.recording.shards import NO_DIGEST, RESTART, Shards
from orchestrator.recording.summary import Recorded, meta_of, summary_of
from orchestrator.rows.blocks import ColumnNames, Indices, RowSource
from orchestrator.rows.class_map import class_map_from_path
from orchestrator.rows.ids import sha256_of_array
from orchestrator.rows.labels import UNLABELLED, MemberClasses
from orchestrator.rows.opening import row_source


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How to record.

    Args:
        data: the source, as written on the command line.
        output: records file.
        limit: rows at most.
        skip_bad: leave out rows that cannot be used.
        restart: throw away an unfinished recording.
        by_order: take sorted class names for the classes in order.
        class_map: file that says what the data calls each class.
        columns: which columns or arrays of the data are what.
    """

    data: str
    output: Path
    limit: int | None = None
    skip_bad: bool = False
    restart: bool = False
    by_order: bool = False
    class_map: Path | None = None
    first_label: int = 0
    columns: ColumnNames = field(default_factory=ColumnNames)


def source_of(
    pool: Pool,
    data: str,
    *,
    by_order: bool = False,
    class_map: Path | None = None,
    first_label: int = 0,
    columns: ColumnNames | None = None,
) -> RowSource:
    """The source that the pool is to be asked about.

    Args:
        pool: the members.
        data: as written on the command line.
        by_order: take sorted class names for the classes in order.
        class_map: file that says what the data calls each class.
        first_label: number of the first class in labels that are numbers.
        columns: which columns or arrays of the data are what; None for the usual names.

    Raises:
        CommitteeError: it cannot be used, or not with these members.
    """
    names = pool.class_names()
    mapped = None if class_map is None else class_map_from_path(class_map, count=pool.classes, known=names)
    classes = MemberClasses(
        count=pool.classes, names=names, by_order=by_order, class_map=mapped, first_label=first_label
    )
    reader = pool.picture_reader()
    return row_source(data, pool.info, classes=classes, read_picture=reader, columns=columns)


def record_job(
    pool: Pool, wishes: Wishes, *, progress: Progress = no_progress, tell: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Records, or goes on with recording, and says what is in the file.

    Args:
        pool: the members.
        wishes: how to record.
        progress: counts the rows that were asked about.
        tell: called with a sentence where an unfinished recording is continued.

    Raises:
        CommitteeError: anything about the data, the members or the disk; what is settled is kept.
        Interrupted: somebody ended it.
    """
    source = source_of(
        pool,
        wishes.data,
        by_order=wishes.by_order,
        class_map=wishes.class_map,
        first_label=wishes.first_label,
        columns=wishes.columns,
    )
    wanted = wanted_rows(len(source.ids), wishes.limit)
    if not wishes.skip_bad:
        _check_labelled(source, wanted)
    task = Task(source=source, pool=pool, wanted=wanted, skip_bad=wishes.skip_bad)
    header = _header(task, wishes)
    fingerprint = recording_fingerprint(header, pool, source, skip_bad=wishes.skip_bad)
    finished = None if wishes.restart else finished_recording(wishes.output, fingerprint)
    if finished is not None:
        seen = {name: evidence_of(finished.outputs(name)) for name in pool.names}
        return summary_of(finished, pool, source, output=wishes.output, seen=seen) | {"up_to_date": True}
    _check_disk(wishes.output, pool, rows=len(wanted))
    shards = Shards(wishes.output, header, members=pool.names, restart=wishes.restart)
    with contextlib.closing(shards), _ended_well(shards, len(wanted)):
        if shards.resumed and tell is not None:
            tell(f"going on after {shards.resumed} of {len(wanted)} rows kept in {shards.folder}")
        with progress(f"asking {len(pool.names)} members", len(wanted)) as advance:
            advance(shards.resumed)
            digest = record_into(shards, task, advance=advance)
        summary = _finished(shards, task, wishes, digest=digest, fingerprint=fingerprint)
        shards.remove()
    return summary


def _check_labelled(source: RowSource, wanted: Indices) -> None:
    """Refuses rows without labels beside others that have them."""
    if source.labels is None:
        return
    without = wanted[source.labels[wanted] < 0]
    if len(without):
        raise DataError(
            f"data {source.name}",
            got=f"{len(without)} of {len(wanted)} rows without a label (null, NaN or {UNLABELLED}): "
            f"{first_few(source.ids[without])}",
            expected="a label in every row",
            fix="leave such rows out with `skip_bad`, or give them labels",
        )


def _header(task: Task, wishes: Wishes) -> dict[str, Any]:
    """What a run must share with the one it goes on with."""
    source, pool = task.source, task.pool
    return {
        "format": 1,
        "data": wishes.data,
        "data_identity": source.identity,
        "labels": None if source.labels is None else sha256_of_array(source.labels),
        "rows": len(source.ids),
        "limit": wishes.limit,
        "members": pool.about(),
        "member_order": list(pool.names),
        "cost": dict(pool.cost),
        "asked": pool.asked,
        "piece_rows": pool.piece_rows(),
    }


@contextlib.contextmanager
def _ended_well(shards: Shards, total: int) -> Iterator[None]:
    """Makes SIGTERM an exception like Ctrl-C, and says what is kept when the block ends early."""
    try:
        with _terminable():
            yield
    except KeyboardInterrupt as stopped:
        kept = _kept(shards, total) or "no row was settled yet"
        raise interrupted_from(stopped, f"stopped: {kept}") from None
    except SpecError:
        raise
    except CommitteeError as error:
        # What only `restart` can mend is not kept.
        kept = "" if error.fix == RESTART else _kept(shards, total)
        fix = "; ".join(text for text in (error.fix, kept) if text)
        raise type(error)(error.what, got=error.got, expected=error.expected, fix=fix or None) from error


def _kept(shards: Shards, total: int) -> str:
    if not shards.done:
        return ""
    return f"{shards.done} of {total} rows are kept in {shards.folder}, the same command goes on from there"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM an exception, so that what is settled is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_disk(output: Path, pool: Pool, *, rows: int) -> None:
    """Refuses before any work what would not fit: parts and the finished file lie side by side for a moment."""
    need = 2 * rows * pool.classes * 4 * len(pool.names)
    place = next(folder for folder in output.resolve().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise DataError(
            f"records {output}",
            got=f"{free / 1e6:,.1f} MB free",
            expected=f"{need / 1e6:,.1f} MB for {rows} rows, {pool.classes} classes, {len(pool.names)} members",
            fix="make room, or record fewer rows with `limit`",
        )


def _finished(
    shards: Shards, task: Task, wishes: Wishes, *, digest: bytes, fingerprint: str | None
) -> dict[str, Any]:
    """Writes the records file and says what is in it."""
    source, pool = task.source, task.pool
    kept = shards.kept()
    skipped = {str(source.ids[task.wanted[at]]): why for at, why in sorted(shards.skipped().items())}
    if not len(kept):
        got = f"not one usable row: {next(iter(skipped.values()), 'none at all')}"
        shards.remove()
        raise DataError(f"data {wishes.data}", got=got)
    rows = task.wanted[kept]
    recorded = Recorded(
        rows=len(rows),
        labels=None if source.labels is None else source.labels[rows],
        sha256=source.data_sha256 or (digest.hex() if digest != NO_DIGEST else None),
        skipped=skipped,
        skipped_rows=len(skipped),
        outputs=shards.outputs,
    )
    seen = {name: evidence_of(shards.outputs(name)) for name in pool.names}
    meta = meta_of(pool, source, data=wishes.data, sha256=recorded.sha256, skipped=skipped, seen=seen)
    meta["members"] = row_dims_noted(meta["members"], lambda: _row_dims(task, int(kept[0])))
    if wishes.limit is not None:
        meta["limit"] = wishes.limit
    shards.write(ids=source.ids[rows], labels=recorded.labels, classes=pool.classes, cost=pool.cost, meta=meta)
    keep_fingerprint(wishes.output, fingerprint)
    summary = summary_of(recorded, pool, source, output=wishes.output, seen=seen)
    return summary | {"resumed_rows": shards.resumed}


def _row_dims(task: Task, position: int) -> list[int]:
    """Shape of a row that was recorded."""
    piece = next(iter(task.source.pieces(task.wanted, position, 1)))
    return list(piece.load().rows.shape[1:])
