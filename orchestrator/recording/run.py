"""Asking members about rows: pieces in threads, results in order, in bounded memory."""

import contextlib
import dataclasses
import hashlib
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few
from orchestrator.planner.records import unusable_rows
from orchestrator.progress import Advance
from orchestrator.recording.pool import RecordingPool
from orchestrator.recording.scores import check_piece
from orchestrator.recording.shards import NO_DIGEST, Shard, Shards
from orchestrator.rows.blocks import Indices, RowBlock, RowPiece, RowSource

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
        source: of the rows.
        pool: the members.
        wanted: int64 (n,), indices of rows of the source, ascending.
        skip_bad: leave out rows that cannot be read or answered, instead of stopping at them.
    """

    source: RowSource
    pool: RecordingPool
    wanted: Indices
    skip_bad: bool = False


@dataclass(frozen=True, kw_only=True)
class RecordedPiece:
    """One piece with the members' outputs.

    Args:
        first, stop: positions, stop excluded.
        kept: int64 (n,), those with outputs.
        outputs: member name -> float32 (n, k).
        skipped: position -> why it has none.
        digests: of the kept rows, where the source is hashed while it is read.
    """

    first: int
    stop: int
    kept: Indices
    outputs: dict[str, Scores]
    skipped: dict[int, str]
    digests: tuple[bytes, ...]


def wanted_rows(rows: int, limit: int | None) -> Indices:
    """Indices of all rows, or of `limit` spread evenly over them: a folder is sorted by class."""
    if limit is None or limit >= rows:
        return np.arange(rows)
    return np.arange(limit) * rows // limit


def answered_pieces(task: RecordingTask, *, start: int = 0) -> Generator[RecordedPiece, None, None]:
    """Asks about every position from `start` on, and gives the answers in order.

    Raises:
        DataError: a row cannot be read, or a member has no finite scores for it, and bad rows are not skipped.
        MemberError, ClientError: a member failed.
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
    refused = {int(one.id): one.reason for one in loaded.refused}
    skipped |= refused
    if refused and not task.skip_bad:
        position, reason = next(iter(refused.items()))
        raise DataError(
            f"data {task.source.name}",
            got=f"row {_id(task, position)} that cannot be read ({reason})",
            fix="mend it, or leave such rows out with `skip_bad`",
        )
    outputs = {name: _asked(task.pool, name, loaded) for name in task.pool.names}
    for name, scores in outputs.items():
        bad = unusable_rows(scores)
        if len(bad) and not task.skip_bad:
            ids = [_id(task, position) for position in loaded.ids[bad].tolist()]
            raise DataError(
                f"member {name}",
                got=f"NaN, infinity or no finite score for rows {first_few(ids)}",
                expected="finite scores",
                fix="leave the member out, or such rows with `skip_bad`",
            )
        skipped |= {int(position): f"member {name}: no finite scores" for position in loaded.ids[bad]}
    good = ~np.isin(loaded.ids, list(skipped))
    return RecordedPiece(
        first=piece.first,
        stop=piece.stop,
        kept=loaded.ids[good],
        outputs={name: scores[good] for name, scores in outputs.items()},
        skipped=skipped,
        digests=tuple(one for one, kept in zip(loaded.digests, good, strict=False) if kept),
    )


def _labelled(task: RecordingTask, loaded: RowBlock) -> tuple[RowBlock, dict[int, str]]:
    """The rows that have a label, and why the others are left out; all rows where the source has no labels."""
    labels = task.source.labels.numbers
    if labels is None:
        return loaded, {}
    has_label = labels[task.wanted[loaded.ids]] >= 0
    if has_label.all():
        return loaded, {}
    kept = dataclasses.replace(loaded.picked(np.flatnonzero(has_label)), refused=loaded.refused)
    return kept, {int(position): "no label" for position in loaded.ids[~has_label]}


def _asked(pool: RecordingPool, name: str, loaded: RowBlock) -> Scores:
    if not len(loaded.ids):
        return np.zeros((0, pool.classes), np.float32)
    scores = pool.ask(name, loaded.rows)
    if scores.shape != (len(loaded.ids), pool.classes):
        expected = [len(loaded.ids), pool.classes]
        raise DataError(f"member {name}", got=f"scores of shape {list(scores.shape)}", expected=expected)
    check_piece(name, scores, pool.kinds)
    return scores


def _id(task: RecordingTask, position: int) -> object:
    return task.source.ids[task.wanted[position]].item()


def record_into(shards: Shards, task: RecordingTask, *, advance: Advance) -> bytes:
    """Asks about the rows that are not in the shards yet, and adds them; finished pieces are kept however it ends.

    Returns:
        the hash of all data read, where the source is hashed while it is read.
    """
    buffer = _Buffer(shards=shards)
    try:
        # Closed here and not by the garbage collector, since its threads may still ask.
        with contextlib.closing(answered_pieces(task, start=shards.done)) as pieces:
            for answered in pieces:
                buffer.add(answered)
                advance(answered.stop - answered.first)
    finally:
        buffer.flush()
    return buffer.digest


@dataclass
class _Buffer:
    """Finished pieces that are not in a shard yet."""

    shards: Shards
    pieces: list[RecordedPiece] = field(default_factory=list)
    held_bytes: int = 0
    digest: bytes = NO_DIGEST
    begun: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.digest = self.shards.digest()

    def add(self, answered: RecordedPiece) -> None:
        for one in answered.digests:
            self.digest = hashlib.sha256(self.digest + one).digest()
        self.pieces.append(answered)
        self.held_bytes += sum(scores.nbytes for scores in answered.outputs.values())
        now = time.monotonic()
        due_s = max(SHARD_S, SHARD_SHARE * (now - self.begun))
        if self.held_bytes >= SHARD_BYTES or now - self.since >= due_s:
            self.flush()

    def flush(self) -> None:
        pieces, self.pieces, self.held_bytes = self.pieces, [], 0
        self.since = time.monotonic()
        if not pieces:
            return
        self.shards.add(
            Shard(
                first=pieces[0].first,
                stop=pieces[-1].stop,
                kept=np.concatenate([piece.kept for piece in pieces]),
                outputs={
                    name: np.concatenate([piece.outputs[name] for piece in pieces]) for name in pieces[0].outputs
                },
                skipped={position: why for piece in pieces for position, why in piece.skipped.items()},
                digest=self.digest,
            )
        )
