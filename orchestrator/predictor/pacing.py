"""How many rows go into one request: a fixed number, or the one at which most rows per second are answered."""

import math
from dataclasses import dataclass, field

FIRST_ROWS = 32
# A request above this is no faster, and holds what a server answers for long.
MOST_ROWS = 1024
MOST_BYTES = 4 << 20
# How long one size is watched, and in how many rounds of all requests in flight, before it is judged.
WINDOW_S, WINDOW_ROUNDS = 0.5, 3
# A larger size must be so many times as fast as the one before to be kept: less is noise.
WORTH = 1.05
# Requests that would take longer, with all those in flight before them, come near a time limit.
LONGEST_S = 5.0


@dataclass
class RequestRows:
    """Rows per request, doubled while that answers more rows per second; it goes a step back where it does not.

    Args:
        rows: per request, now.
        most: never more than this.
        in_flight: requests under way at once.
        is_fixed: whether the size stays as it is.
    """

    rows: int
    most: int
    in_flight: int
    is_fixed: bool = False
    _best_rows_per_s: float = 0.0
    _counted_rows: int = 0
    _counted_requests: int = 0
    _since_s: float = field(default=math.nan)

    def answered(self, rows: int, *, now_s: float) -> None:
        """Takes note that a request of so many rows was answered at a time of a monotonic clock."""
        # Requests of the size before, or of the end of a block, say nothing about this size.
        if self.is_fixed or rows != self.rows:
            return
        if math.isnan(self._since_s):
            # What was begun at the size before is out of the way by now.
            if self._counted_requests < self.in_flight:
                self._counted_requests += 1
                return
            self._since_s, self._counted_requests, self._counted_rows = now_s, 0, 0
            return
        self._counted_rows += rows
        self._counted_requests += 1
        spent_s = now_s - self._since_s
        if spent_s >= WINDOW_S and self._counted_requests >= WINDOW_ROUNDS * self.in_flight:
            self._judge(self._counted_rows / spent_s)

    def _judge(self, rows_per_s: float) -> None:
        self._since_s, self._counted_requests = math.nan, 0
        if rows_per_s < WORTH * self._best_rows_per_s:
            self.rows, self.is_fixed = self.rows // 2, True
        elif 2 * self.rows > self.most or 2 * self.rows * self.in_flight > LONGEST_S * rows_per_s:
            self.is_fixed = True
        else:
            self._best_rows_per_s, self.rows = rows_per_s, 2 * self.rows


def request_rows(fixed: int | None, *, limit: int, row_bytes: int | None, in_flight: int) -> RequestRows:
    """The size to begin with.

    Args:
        fixed: rows per request that the caller wants; None finds them.
        limit: most rows that the model takes in one request, 0 for no limit.
        row_bytes: bytes of one row, None where rows differ.
        in_flight: requests under way at once.
    """
    if fixed is not None:
        return RequestRows(rows=fixed, most=fixed, in_flight=in_flight, is_fixed=True)
    most = min(limit or MOST_ROWS, MOST_ROWS, max(1, MOST_BYTES // (row_bytes or 1)))
    return RequestRows(rows=min(FIRST_ROWS, most), most=most, in_flight=in_flight)
