"""How long a worker lets rows gather in front of a stage whose members are busy anyway.

Rows that are taken while a call runs wait at the member, not in the table: they make a batch without those that
are deferred meanwhile, and more urgent ones can no longer go first. So the next batch is taken only when a running
call has had most of its time, early enough that the member need not wait for it.
"""

from collections.abc import Sequence

# Share of the time that a call is expected to take after which the next batch is taken. A call is then taken
# before the one ahead of it ends, and expected to last that much longer: with 0.8 a quarter of a run is to spare.
SHARE = 0.8
# Of a new figure in what is expected; a call that hangs counts as one that took twice as long as expected.
_WEIGHT, _MOST = 0.2, 2.0


class Gathering:
    """What the calls of one stage have taken lately, and whether the next one should wait; under its owner's lock.

    Args:
        instances: calls that the stage's members run at once.
    """

    def __init__(self, instances: int) -> None:
        self._instances = instances
        # Means over calls, None before the first: of a call, and of a row of one.
        self._call_ns: float | None = None
        self._row_ns: float | None = None

    def wait_ns(self, running: Sequence[tuple[int, int]], now_ns: int) -> int:
        """Nanoseconds until the next batch should be taken; 0 or less for at once.

        Args:
            running: calls that were taken and have not returned: when, on the monotonic clock, and how many rows.
            now_ns: on that clock.
        """
        if len(running) < self._instances or self._call_ns is None or self._row_ns is None:
            return 0
        # A call of more rows than usual may take longer or, where a call costs the same for any, may not.
        ends = [taken + SHARE * min(self._call_ns, rows * self._row_ns) for taken, rows in running]
        return int(min(ends)) - now_ns

    def returned(self, taken_ns: int, rows: int, now_ns: int) -> None:
        """A call has returned, or was given up."""
        self._call_ns = _mean(self._call_ns, now_ns - taken_ns)
        self._row_ns = _mean(self._row_ns, (now_ns - taken_ns) / rows)


def _mean(mean: float | None, figure: float) -> float:
    return figure if mean is None else mean + _WEIGHT * (min(figure, _MOST * mean) - mean)
