"""One recording from start to end: what is asked, what is kept when it stops, what the file says of itself."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer

from orchestrator.cli.batch_rows import ColumnNames
from orchestrator.cli.class_map import class_map_from_path
from orchestrator.cli.console import progress
from orchestrator.cli.record_kinds import evidence_of, kind_notes, kind_of
from orchestrator.cli.record_members import Pool
from orchestrator.cli.record_run import Task, record_into, wanted_rows
from orchestrator.cli.sources import Source, source_from_text
from orchestrator.cli.sources_labels import Classes
from orchestrator.errors import CommitteeError, DataError, SpecError
from orchestrator.planner.records import named, sha256_of_rows
from orchestrator.planner.shards import NO_DIGEST, RESTART, Shards
from orchestrator.spec.output_kind import ScoreEvidence
from orchestrator.spec.processor import DOT_PRODUCT_FLAGS, lacks_flags, processor_flags

# Members no better than this many times guessing, on so many rows, have labels of another order or no training.
NEAR_CHANCE, CHANCE_ROWS = 2.0, 50
# Rows that are named one by one in the records' meta; there may be a million.
SKIPPED_LISTED = 1000


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
    columns: ColumnNames = field(default_factory=ColumnNames)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C but with its own exit code."""


def source_of(
    pool: Pool,
    data: str,
    *,
    by_order: bool = False,
    class_map: Path | None = None,
    columns: ColumnNames | None = None,
) -> Source:
    """The source that the pool is to be asked about.

    Args:
        pool: the members.
        data: as written on the command line.
        by_order: take sorted class names for the classes in order.
        class_map: file that says what the data calls each class.
        columns: which columns or arrays of the data are what; None for the usual names.

    Raises:
        CommitteeError: it cannot be used, or not with these members.
    """
    names = pool.class_names()
    mapped = None if class_map is None else class_map_from_path(class_map, count=pool.classes, known=names)
    classes = Classes(count=pool.classes, names=names, by_order=by_order, mapped=mapped)
    reader = pool.picture_reader()
    return source_from_text(data, pool.info, classes=classes, read_picture=reader, columns=columns)


def record_job(pool: Pool, wishes: Wishes) -> dict[str, Any]:
    """Records, or goes on with recording, and says what is in the file.

    Raises:
        CommitteeError: anything about the data, the members or the disk; what is settled is kept.
        Exit: it was interrupted.
    """
    source = source_of(
        pool, wishes.data, by_order=wishes.by_order, class_map=wishes.class_map, columns=wishes.columns
    )
    wanted = wanted_rows(len(source.ids), wishes.limit)
    _check_disk(wishes.output, pool, rows=len(wanted))
    task = Task(source=source, pool=pool, wanted=wanted, skip_bad=wishes.skip_bad)
    header = _header(task, wishes)
    shards = Shards(wishes.output, header, members=pool.names, restart=wishes.restart)
    with contextlib.closing(shards), _ended_well(shards, len(wanted)):
        digest = _settled(shards, task)
        summary = _finished(shards, task, wishes, digest=digest)
        shards.remove()
    return summary


def _header(task: Task, wishes: Wishes) -> dict[str, Any]:
    """What a run must share with the one it goes on with."""
    source, pool = task.source, task.pool
    return {
        "format": 1,
        "data": wishes.data,
        "data_identity": source.identity,
        "labels": None if source.labels is None else sha256_of_rows(source.labels),
        "rows": len(source.ids),
        "limit": wishes.limit,
        "members": pool.about(),
        "member_order": list(pool.names),
        "cost": dict(pool.cost),
        "asked": pool.asked,
        "piece_rows": pool.piece_rows(),
    }


def _settled(shards: Shards, task: Task) -> bytes:
    """Records what is missing; gives the hash of what was read."""
    total = len(task.wanted)
    if shards.resumed:
        typer.echo(f"going on after {shards.resumed} of {total} rows kept in {shards.folder}", err=True)
    with progress(f"asking {len(task.pool.names)} members", total) as advance:
        advance(shards.resumed)
        return record_into(shards, task, advance=advance)


@contextlib.contextmanager
def _ended_well(shards: Shards, total: int) -> Iterator[None]:
    """Makes SIGTERM an exception like Ctrl-C, and says what is kept when the block ends early."""
    try:
        with _terminable():
            yield
    except KeyboardInterrupt as stopped:
        typer.echo(f"stopped: {_kept(shards, total) or 'no row was settled yet'}", err=True)
        code = signal.SIGTERM if isinstance(stopped, _Terminated) else signal.SIGINT
        raise typer.Exit(128 + code) from None
    except SpecError:
        raise
    except CommitteeError as error:
        # What only --restart can mend is not kept.
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

    def stop(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
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
            f"record --output {output}",
            got=f"{free / 1e9:.2f} GB free",
            expected=f"{need / 1e9:.2f} GB for {rows} rows, {pool.classes} classes, {len(pool.names)} members",
            fix="make room, or record fewer rows with --limit",
        )


def _finished(shards: Shards, task: Task, wishes: Wishes, *, digest: bytes) -> dict[str, Any]:
    """Writes the records file and says what is in it."""
    source, pool = task.source, task.pool
    kept = shards.kept()
    skipped = {str(source.ids[task.wanted[at]]): why for at, why in sorted(shards.skipped().items())}
    if not len(kept):
        got = f"not one usable row: {next(iter(skipped.values()), 'none at all')}"
        shards.remove()
        raise DataError(f"data {wishes.data}", got=got)
    rows = task.wanted[kept]
    labels = None if source.labels is None else source.labels[rows]
    sha256 = source.data_sha256 or (digest.hex() if digest != NO_DIGEST else None)
    seen = {name: evidence_of(shards.outputs(name)) for name in pool.names}
    meta = meta_of(pool, source, data=wishes.data, sha256=sha256, skipped=skipped, seen=seen)
    if wishes.limit is not None:
        meta["limit"] = wishes.limit
    shards.write(ids=source.ids[rows], labels=labels, classes=pool.classes, cost=pool.cost, meta=meta)
    members = {
        name: {
            "cost": pool.cost[name],
            "accuracy": None if labels is None else _accuracy(shards, name, labels),
            "random_weights": about["random_weights"],
            "sha256": about["sha256"],
        }
        for name, about in pool.about().items()
    }
    return {
        "output": str(wishes.output),
        "rows": len(rows),
        "classes": pool.classes,
        "labelled": labels is not None,
        "members": members,
        "asked": pool.asked,
        "data_sha256": sha256,
        "resumed_rows": shards.resumed,
        "skipped_rows": len(skipped),
        "skipped": dict(list(skipped.items())[:SKIPPED_LISTED]),
        "notes": [
            *source.notes,
            *pool.version_notes(),
            *_notes(pool, skipped),
            *kind_notes(seen, pool.kinds),
            *_near_chance(members, len(rows), pool.classes),
        ],
    }


def _accuracy(shards: Shards, name: str, labels: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    right, at = 0, 0
    for scores in shards.outputs(name):
        right += int((scores.argmax(axis=1) == labels[at : at + len(scores)]).sum())
        at += len(scores)
    return right / len(labels)


def _near_chance(members: dict[str, dict[str, Any]], rows: int, classes: int) -> list[str]:
    """What to say where the labels seem to be in another order than the members' classes."""
    known = [one["accuracy"] for one in members.values() if not one["random_weights"]]
    if None in known or not known or rows < CHANCE_ROWS or max(known) > NEAR_CHANCE / classes:
        return []
    return [
        f"the best member has accuracy {max(known):.4f}, and guessing {1 / classes:.4f}: "
        "are the labels in the order of the members' classes?"
    ]


def _notes(pool: Pool, skipped: dict[str, str]) -> list[str]:
    random = [name for name, manifest in pool.manifests.items() if manifest.random_weights]
    unknown = [name for name in pool.names if name not in pool.manifests]
    notes = []
    if random:
        notes.append(f"random weights in {', '.join(random)}: for cost and speed work, not for accuracy")
    if unknown:
        notes.append(f"no manifest of {', '.join(unknown)}: no hash")
    here = processor_flags()
    differing = [name for name, one in pool.manifests.items() if lacks_flags(one.processor_flags, here)]
    if differing and pool.made_with:
        notes.append(
            f"{', '.join(differing)} answers here otherwise than it was exported, for this processor has none of "
            f"{', '.join(DOT_PRODUCT_FLAGS)}: record it where it will be served, or quantise it to seven bits"
        )
    if skipped:
        notes.append(f"{len(skipped)} rows skipped, listed in meta: {named(list(skipped))}")
    return notes


def meta_of(
    pool: Pool,
    source: Source,
    *,
    data: str,
    sha256: str | None,
    skipped: dict[str, str],
    seen: dict[str, ScoreEvidence],
) -> dict[str, Any]:
    """What records say of themselves: JSON values that are the same whenever the same is recorded.

    Raises:
        DataError: a member's scores are not of the kind that is said of it.
    """
    members = {
        name: {**one, "output_kind": kind_of(name, seen[name], pool.kinds)} for name, one in pool.about().items()
    }
    meta: dict[str, Any] = {
        "data": data,
        "data_sha256": sha256,
        "members": members,
        "asked": pool.asked,
        "labels_by": source.labels_by,
        "skipped_rows": len(skipped),
        "skipped": dict(list(skipped.items())[:SKIPPED_LISTED]),
    }
    if pool.made_with:
        meta["recorded_with"] = dict(pool.made_with)
    if data.startswith("digits:"):
        meta["split"] = data.partition(":")[2]
    if (names := pool.class_names()) is not None:
        meta["class_names"] = list(names)
    return meta
