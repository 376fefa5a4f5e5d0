"""Which gear's thresholds decide about new rows: the wait of deferred rows shifts it, with hysteresis.

A row's wait from its deferral until a worker takes it measures the queue in the unit that clients feel, and needs
no estimate of a rate. The longest wait at any stage counts, because a quick stage tells nothing about another
stage's queue, and rows with a deadline, which are taken first, nothing about rows without one. The server's own
queue cannot be seen; while every batch comes full there is one, and the time since that began counts as a wait.
Two limits with a gap between them, each to be exceeded for a while, keep the gear from swinging. The caller gives
the times and holds its lock around every call.
"""

import numpy as np
import numpy.typing as npt

from orchestrator.spec.cascade import Gears

Times = npt.NDArray[np.int64]
# So long no requests must have come before the gear takes a step back, where hysteresis asks for less.
_LEAST_QUIET_NS = 1_000_000_000
_HIGH, _LOW = "high", "low"


class Gearbox:
    """The current gear, and what its next shift depends on; of a plan without gears it is always 0.

    Methods that may shift return 1 for a shift to the next cheaper gear, -1 for one back, 0 for none.
    """

    def __init__(self, gears: Gears | None) -> None:
        self._gears = gears
        self._last = 0 if gears is None else len(gears.cheaper)
        self._side: str | None = None
        self._since_ns = 0
        self._backlogged_since_ns: int | None = None  # batches have come full since then
        # By stage: when rows were taken last, and how long they had waited.
        self._taken: dict[int, tuple[int, int]] = {}
        self._inside = False  # a batch is at stage 0
        self._heard_ns = 0  # when the last event came
        self.gear = 0

    def taken(self, deferred_ns: Times, *, stage: int, waiting_ns: Times, now_ns: int) -> int:
        """A worker took rows for a stage that were deferred then; others that were still wait for any."""
        if self._gears is None:
            return 0
        self._taken[stage] = (now_ns, _age_ns(deferred_ns, now_ns))
        return self.observe_wait(_age_ns(waiting_ns, now_ns), now_ns)

    def table_is_empty(self, now_ns: int) -> int:
        """No row is deferred."""
        self._taken.clear()
        return self.observe_wait(0, now_ns)

    def batch_started(self, *, is_backlogged: bool, now_ns: int) -> int:
        """A batch came in from the server's queue, where more waited behind it if `is_backlogged`."""
        self._inside, self._heard_ns = True, now_ns
        if not is_backlogged:
            self._backlogged_since_ns = None
            return 0
        if self._backlogged_since_ns is None:
            self._backlogged_since_ns = now_ns
        # A young backlog must not reset the wait that deferred rows are feeling.
        backlogged_us = (now_ns - self._backlogged_since_ns) // 1000
        return self.observe_wait(0, now_ns) if self._gears and backlogged_us >= self._gears.raise_wait_us else 0

    def batch_finished(self, now_ns: int) -> None:
        """The batch is through stage 0, or was refused."""
        self._inside, self._heard_ns = False, now_ns

    def quiet(self, now_ns: int) -> int:
        """Takes the gear a step back where no row waits and no event has come for a while.

        Otherwise the gear of a burst would decide about the next request, however much later it comes.
        """
        if self._gears is None or self.gear == 0 or self._inside:
            return 0
        if now_ns - self._heard_ns < max(_LEAST_QUIET_NS, 1000 * self._gears.lower_after_us):
            return 0
        self._heard_ns, self._side, self._backlogged_since_ns = now_ns, None, None
        self._taken.clear()
        return self._shift(-1, now_ns)

    def observe_wait(self, wait_ns: int, now_ns: int) -> int:
        """Shifts where a row's longest wait so far, 0 where none waits, was beyond a limit for long enough."""
        gears = self._gears
        if gears is None:
            return 0
        self._heard_ns = now_ns
        front_ns = 0 if self._backlogged_since_ns is None else now_ns - self._backlogged_since_ns
        # With a queue, a stage takes rows about one such wait apart; so long the last wait stands for the stage.
        recent_ns = max((wait for at_ns, wait in self._taken.values() if now_ns - at_ns <= 2 * wait), default=0)
        wait_us = max(wait_ns, front_ns, recent_ns) // 1000
        side = _HIGH if wait_us >= gears.raise_wait_us else _LOW if wait_us <= gears.lower_wait_us else None
        if side != self._side:
            self._side, self._since_ns = side, now_ns
        held_us = (now_ns - self._since_ns) // 1000
        if side == _HIGH and self.gear < self._last and held_us >= gears.raise_after_us:
            return self._shift(1, now_ns)
        if side == _LOW and self.gear > 0 and held_us >= gears.lower_after_us:
            return self._shift(-1, now_ns)
        return 0

    def _shift(self, step: int, now_ns: int) -> int:
        # The next step has to earn its own time: what this one does is not observe_wait at once.
        self.gear += step
        self._since_ns = now_ns
        return step


def _age_ns(times_ns: Times, now_ns: int) -> int:
    return now_ns - int(times_ns.min()) if len(times_ns) else 0
