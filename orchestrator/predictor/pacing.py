"""How many rows go into one request: a fixed number, or the one at which most rows per second are answered."""

import math
from dataclasses import dataclass, field

FIRST_ROWS = 32
# A request above this is no faster, and holds what a server answers for long.
MOST_ROWS = 1024
MOST_BYTES = 4 << 20
# How long one size is watched, and in how many rounds of all requests in flight, before it is judged.
WINDOW_S, WINDOW_ROUNDS = 0.5, 3
# A larger size must be so many times as fast as a smaller one to be taken: less is noise.
WORTH = 1.05
# Below this share of the best rate so far no larger size is tried; a little less may be a disturbance.
HOPELESS = 0.9
# Requests that would take longer, with all those in flight before them, come near a time limit.
LONGEST_S = 5.0


@dataclass
class RequestRows:
    """Rows per request: doubled until that answers fewer rows per second, then the size that answered most.

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
    _rates: dict[int, float] = field(default_factory=dict)  # rows per request -> rows per second
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
        self._rates[self.rows] = rows_per_s
        best = max(self._rates.values())
        larger = 2 * self.rows
        if rows_per_s >= HOPELESS * best and larger <= self.most and larger * self.in_flight <= LONGEST_S * best:
            self.rows = larger
        else:
            self.rows = min(size for size, rate in self._rates.items() if WORTH * rate >= best)
            self.is_fixed = True


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
