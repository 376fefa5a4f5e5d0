"""Waits for room in the table of deferred rows, before a batch is asked about, but not for long.

The wait slows a server's queue down to what later stages can do. Where they do nothing, because a member hangs
say, rows that need them would take the sure ones along: after `MOST_WAIT_S` without room no batch waits any more,
until one finds room again, and requests whose rows have none are refused.
"""

import math
import time
from collections.abc import Callable, Sequence

from orchestrator.bls.requests import PendingRequest
from orchestrator.bls.scheduler import Scheduler
from orchestrator.probe import FULL_WORDS

MOST_WAIT_S = 1.0
# How often at most the log says that the table is full.
LOG_EVERY_S = 10.0


class Door:
    """Where batches wait; used from one thread only.

    Attributes:
        room: what the table takes.
        is_shut: whether batches have found no room lately.
        refused_rows: since it was shut.
    """

    def __init__(self, scheduler: Scheduler, log: Callable[[str], None]) -> None:
        self.room = scheduler.room
        self.is_shut = False
        self.refused_rows = 0
        self._scheduler = scheduler
        self._log = log
        self._shut_s = self._logged_s = -math.inf

    def has_room(self, batch: Sequence[PendingRequest], rows: int, size_bytes: int) -> bool:
        """Whether the table can take the rows of a batch, which waits for that as long as it may."""
        begun_s = self._shut_s if self.is_shut else time.monotonic()
        wait_s = begun_s + MOST_WAIT_S - time.monotonic()
        deadlines_ns = [one.deadline_ns for one in batch if one.deadline_ns is not None]
        if len(deadlines_ns) == len(batch):
            # Stage 0 needs time, too. The latest deadline counts: one near deadline must not have its neighbours
            # refused, and is missed by no more than this wait.
            wait_s = min(wait_s, (max(deadlines_ns) - time.monotonic_ns()) / 2e9)
        has_room = self._scheduler.wait_for_room(rows, size_bytes, max(wait_s, 0.0))
        if has_room and self.is_shut:
            self._open()
        elif not has_room and not self.is_shut:
            self._shut(begun_s)
        return has_room

    def refusal(self, rows: int) -> str:
        """Why a request is refused when so many rows are in the table."""
        limit = f"as many as limits.max_deferred_rows allows ({self.room.rows})"
        if self.room.size_bytes is not None:
            limit += f", or with as many bytes as limits.max_deferred_bytes does ({self.room.size_bytes})"
        return f"{rows} {FULL_WORDS}, about {limit}; try again in a moment"

    def _shut(self, now_s: float) -> None:
        self.is_shut, self.refused_rows, self._shut_s = True, 0, now_s
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            text = "is full: requests that later stages would be asked about are refused"
            self._log(f"committee: table of deferred rows {text}")

    def _open(self) -> None:
        self.is_shut = False
        if self._logged_s == self._shut_s:
            took_s = time.monotonic() - self._shut_s
            text = f"has room after {took_s:.1f} s; refused {self.refused_rows} rows"
            self._log(f"committee: table of deferred rows {text}")
