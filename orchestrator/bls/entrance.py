"""What is known of the server's queue in front of the cascade, which cannot be seen from here."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.bls.requests import PendingRequest

# Stage 0 takes its usual time twice: once for the batch a request is in, once for whatever else delays its answer.
# With 1 a queue that stands is served just in time, and about half of it just too late.
TIMES_STAGE_0 = 2.0
_SMOOTHING = 0.2
# A queue that stands gives the next batch as soon as the last one is done, within a moment on a busy machine.
MOST_IDLE_NS = 20_000_000


class AdmissionControl:
    """Tells from the batches that come in whether more wait behind them, and who came too late.

    Used from one thread only.

    Args:
        limit_rows: rows a batch may have.
    """

    def __init__(self, limit_rows: int) -> None:
        self._limit_rows = limit_rows
        self._stage_0_ns: float | None = None
        self._is_warm = False
        self._done_ns: int | None = None

    def is_backlogged(self, batch: Sequence[PendingRequest], *, now_ns: int) -> bool:
        """Whether a batch came right after the last one and had no room for another request: more wait behind it.

        Of a lone request that fills a batch nothing is known: a pipeline may send one after another, without
        any queue.
        """
        if self._done_ns is None or now_ns - self._done_ns > MOST_IDLE_NS:
            return False
        counts = [one.count for one in batch]
        return len(counts) > 1 and sum(counts) + max(counts) > self._limit_rows

    def too_late(self, batch: Sequence[PendingRequest], *, stands: bool, now_ns: int) -> list[PendingRequest]:
        """Requests not worth asking stage 0 for: the time would be lost to those behind them.

        That is those whose deadline has passed; where a queue stands, also those stage 0 can hardly answer in
        time. Only a deadline that is a point in time says so; one that begins to count here never came late.

        Args:
            batch: as it came in.
            stands: what `is_backlogged` said of it.
            now_ns: on the monotonic clock.
        """
        least_ns = TIMES_STAGE_0 * (self._stage_0_ns or 0.0) if stands else 0.0
        return [one for one in batch if (left_ns := left_of(one, now_ns)) is not None and left_ns <= least_ns]

    def done(self, now_ns: int) -> None:
        """A batch is through stage 0, or all of it was refused."""
        self._done_ns = now_ns

    def took(self, took_ns: int) -> None:
        """Stage 0 took that long for a batch."""
        if not self._is_warm:
            # The first call opens sessions and allocates memory, and says nothing of those after it.
            self._is_warm = True
        elif self._stage_0_ns is None:
            self._stage_0_ns = took_ns
        else:
            self._stage_0_ns += _SMOOTHING * (took_ns - self._stage_0_ns)


def left_of(one: PendingRequest, now_ns: int) -> int | None:
    """Nanoseconds until the point in time by which a request is due, None without one; 0 or less: it is over."""
    left_us = one.policy.left_us
    return None if left_us is None else one.arrived_ns + left_us * 1000 - now_ns
