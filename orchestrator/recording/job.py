"""One recording from start to end, with what is kept when it stops early."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import CommitteeError, DataError, SpecError, first_few, interrupted_from
from orchestrator.files import nearest_existing
from orchestrator.planner.records import Records, RecordsFile
from orchestrator.progress import Progress, no_progress
from orchestrator.recording.pool import RecordingPool, opened_pool
from orchestrator.recording.run import RecordingTask, answered_pieces, record_into, wanted_rows
from orchestrator.recording.scores import evidence_of, row_dims_noted
from orchestrator.recording.shards import NO_DIGEST, Shards
from orchestrator.recording.summary import Recorded, meta_of, summary_of
from orchestrator.recording.up_to_date import finished_recording, keep_fingerprint, recording_fingerprint
from orchestrator.rows.blocks import UNLABELLED, ColumnNames, Indices, RowSource, sha256_of_array
from orchestrator.rows.labels import MemberClasses, class_map_from_path
from orchestrator.rows.opening import row_source


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

    Raises:
        CommitteeError: the data cannot be used, or not with these members.
    """
    names = pool.class_names()
    class_map = None
    if options.class_map is not None:
        class_map = class_map_from_path(options.class_map, count=pool.classes, known=names)
    classes = MemberClasses(
        count=pool.classes,
        names=names,
        by_order=options.by_order,
        class_map=class_map,
        first_label=options.first_label,
    )
    reader = pool.picture_reader()
    return row_source(options.data, pool.info, classes=classes, read_picture=reader, columns=options.columns)


def record_job(
    pool: RecordingPool,
    options: RecordOptions,
    output: Path,
    *,
    restart: bool = False,
    progress: Progress = no_progress,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Records rows, or continues an unfinished recording of them, and describes the file.

    Args:
        pool: the members.
        options: which rows.
        output: records file to write.
        restart: throw away an unfinished recording, and record again what is up to date.
        progress: counts the rows that were asked about.
        tell: called with a sentence where an unfinished recording is continued.

    Returns:
        see `summary_of`.

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
        seen = {name: evidence_of(finished.outputs(name)) for name in pool.names}
        return summary_of(finished, pool, source, output=output, seen=seen) | {"up_to_date": True}
    _check_disk(output, pool, rows=len(wanted))
    shards = Shards(output, header, members=pool.names, restart=restart)
    with contextlib.closing(shards), _saying_what_is_kept(shards, len(wanted)):
        if shards.resumed and tell is not None:
            tell(f"going on after {shards.resumed} of {len(wanted)} rows kept in {shards.folder}")
        with progress(f"asking {len(pool.names)} members", len(wanted)) as advance:
            advance(shards.resumed)
            digest = record_into(shards, task, advance=advance)
        summary = _finished(shards, task, options, digest=digest)
        keep_fingerprint(output, fingerprint)
        shards.remove()
    return summary


def records_of(repository: Path, members: Sequence[str], data: str) -> Records:
    """Every member's outputs on every row of a data source, all in memory.

    Raises:
        CommitteeError: as `record_job`.
    """
    with opened_pool(members, repository) as pool:
        source = source_for(pool, RecordOptions(data=data))
        task = RecordingTask(source=source, pool=pool, wanted=wanted_rows(len(source.ids), None))
        pieces = list(answered_pieces(task))
        outputs = {name: np.concatenate([one.outputs[name] for one in pieces]) for name in pool.names}
        seen = {name: evidence_of([scores]) for name, scores in outputs.items()}
        meta = meta_of(pool, source, data=data, sha256=source.data_sha256, skipped={}, seen=seen)
        return Records(
            ids=source.ids, labels=source.labels.numbers, outputs=outputs, cost=dict(pool.cost), meta=meta
        )


def _check_labelled(source: RowSource, wanted: Indices) -> None:
    """Refuses rows without labels beside others that have them."""
    if source.labels.numbers is None:
        return
    without = wanted[source.labels.numbers[wanted] < 0]
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
        "format": 1,
        "data": options.data,
        "data_identity": source.identity,
        "labels": None if labels is None else sha256_of_array(labels),
        "rows": len(source.ids),
        "limit": options.limit,
        "members": pool.about(),
        "member_order": list(pool.names),
        "cost": dict(pool.cost),
        "asked": pool.asked,
        "piece_rows": pool.piece_rows(),
    }


@contextlib.contextmanager
def _saying_what_is_kept(shards: Shards, total: int) -> Iterator[None]:
    """Adds to errors and interrupts in the block how many rows are kept for the next run."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        kept = _kept(shards, total) or "no row was settled yet"
        raise interrupted_from(stopped, f"stopped: {kept}") from None
    except SpecError:
        raise
    except CommitteeError as error:
        # A part that cannot be read is not kept: only `restart` helps.
        kept = "" if shards.is_broken else _kept(shards, total)
        fix = "; ".join(text for text in (error.fix, kept) if text)
        raise type(error)(error.what, got=error.got, expected=error.expected, fix=fix or None) from error


def _kept(shards: Shards, total: int) -> str:
    if not shards.done:
        return ""
    return f"{shards.done} of {total} rows are kept in {shards.folder}, the same command goes on from there"


def _check_disk(output: Path, pool: RecordingPool, *, rows: int) -> None:
    """Refuses a disk without room for the parts and the finished file, which both exist for a moment."""
    need = 2 * rows * pool.classes * 4 * len(pool.names)
    place = nearest_existing(output.resolve().parent)
    free = shutil.disk_usage(place).free
    if need > free:
        raise DataError(
            f"records {output}",
            got=f"{free / 1e6:,.1f} MB free",
            expected=f"{need / 1e6:,.1f} MB for {rows} rows, {pool.classes} classes, {len(pool.names)} members",
            fix="make room, or record fewer rows with `limit`",
        )


def _finished(shards: Shards, task: RecordingTask, options: RecordOptions, *, digest: bytes) -> dict[str, Any]:
    """Writes the records file and returns its summary."""
    source, pool = task.source, task.pool
    kept = shards.kept()
    skipped = {str(source.ids[task.wanted[at]]): why for at, why in sorted(shards.skipped().items())}
    if not len(kept):
        got = f"not one usable row: {next(iter(skipped.values()), 'none at all')}"
        shards.remove()
        raise DataError(f"data {options.data}", got=got)
    rows = task.wanted[kept]
    recorded = Recorded(
        rows=len(rows),
        labels=None if source.labels.numbers is None else source.labels.numbers[rows],
        sha256=source.data_sha256 or (digest.hex() if digest != NO_DIGEST else None),
        skipped=skipped,
        skipped_rows=len(skipped),
        outputs=shards.outputs,
    )
    seen = {name: evidence_of(shards.outputs(name)) for name in pool.names}
    meta = meta_of(pool, source, data=options.data, sha256=recorded.sha256, skipped=skipped, seen=seen)
    meta["members"] = row_dims_noted(meta["members"], lambda: _row_dims(task, int(kept[0])))
    if options.limit is not None:
        meta["limit"] = options.limit
    shards.write(
        RecordsFile(
            path=shards.output,
            ids=source.ids[rows],
            labels=recorded.labels,
            classes=pool.classes,
            cost=pool.cost,
            meta=meta,
        )
    )
    summary = summary_of(recorded, pool, source, output=shards.output, seen=seen)
    return summary | {"resumed_rows": shards.resumed}


def _row_dims(task: RecordingTask, position: int) -> list[int]:
    """Shape of a row that was recorded."""
    piece = next(iter(task.source.pieces(task.wanted, position, 1)))
    return list(piece.load().rows.shape[1:])
