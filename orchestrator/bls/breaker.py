"""Breakers: a member that fails most of its calls is left alone and probed once a second until it answers.

Every member has one, and so has the fused prefix. A stage with `on_failure` "error" needs all of its members, so
that one open breaker refuses its rows at once; with "answer" the others are asked, and where none is left the
stages before answer. A member whose breaker is open is asked by probes alone, and by the watch over its version.
Rows that it was not asked about do not pay for it.

A call counts as failed where the member answered none of its rows, also when asked again in pieces, or where it
was given up at the time limit. Until it returns such a call holds a thread, so that `MOST_LOST` of them open a
breaker.
Rows that no member could take must not open it for everybody. Therefore a member is asked about a row that it has
answered before, or a plain one as long as there is none, where the failure does not speak of the member itself; if
it answers, the rows may be at fault.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from orchestrator.bls.metrics import Counters
from orchestrator.bls.rows import AnyRows, Rows, plain_row
from orchestrator.spec import CascadeSpec

# A breaker looks back so far, ...
WINDOW_S = 10.0
# ... decides nothing from fewer calls, ...
LEAST_CALLS = 10
# ... and opens where at least this share of them failed.
FAILED_SHARE = 0.5
# So many calls of all members that were given up may be out before any member that loses one more is left alone.
MOST_LOST = 8
# Pause before each probe of a member that is not asked otherwise, whether the last one has come back or not, ...
PROBE_S = 1.0
# ... until so many are out, and then twice as long as before with each: they may never come back, and each holds a
# thread. A day without an answer holds 21.
PROBES_AT_ONCE = 4

BREAKER_STATES = ("closed", "open", "probing")
CLOSED, OPEN, PROBING = range(len(BREAKER_STATES))
# event -> state of a breaker before it -> state after it. Calls are made while it is closed; while it probes, a
# probe is out.
BREAKER_TRANSITIONS = {
    "trip": {CLOSED: OPEN},
    "probe": {OPEN: PROBING},
    "fail": {PROBING: OPEN},
    "recover": {PROBING: CLOSED},
}


class Breaker:
    """The state of one breaker and the calls it looks back on; the caller gives the times and holds a lock."""

    def __init__(self) -> None:
        self.state = CLOSED
        self._calls_s: deque[float] = deque()
        self._failed_s: deque[float] = deque()  # those that failed

    @property
    def counts(self) -> tuple[int, int]:
        """Failed calls in the window, and all."""
        return len(self._failed_s), len(self._calls_s)

    def note(self, *, is_failed: bool, now_s: float) -> bool:
        """Takes note of the end of a call; returns whether to trip, which only a failed call causes."""
        if self.state != CLOSED:
            return False  # the call began before the breaker opened, and tells nothing new
        self._calls_s.append(now_s)
        while self._calls_s[0] <= now_s - WINDOW_S:
            self._calls_s.popleft()
        if not is_failed:  # on the path of every call, so that it does no more
            return False
        self._failed_s.append(now_s)
        while self._failed_s[0] <= now_s - WINDOW_S:
            self._failed_s.popleft()
        failed, calls = self.counts
        return calls >= LEAST_CALLS and failed >= FAILED_SHARE * calls

    def probed(self, *, is_failed: bool) -> None:
        """Takes note of the end of a probe; after a good one the window is empty."""
        self.move("fail" if is_failed else "recover")
        if not is_failed:
            self._calls_s.clear()
            self._failed_s.clear()

    def move(self, event: str) -> None:
        """Changes the state as the table has it; KeyError where it has no such transition."""
        self.state = BREAKER_TRANSITIONS[event][self.state]


@dataclass(slots=True)
class Opening:
    """A time of a breaker that is not closed."""

    began_s: float
    failure: str  # of the newest call or probe that failed
    probe_s: float  # when the next probe is due
    probes_out: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def pause_s(self) -> float:
        """Until the next probe."""
        return PROBE_S * 2.0 ** max(0, self.probes_out - PROBES_AT_ONCE)


@dataclass(eq=False)
class Breakers:
    """The breakers of a cascade's members, by plan index, then of its fused prefix and its deriving models."""

    spec: CascadeSpec
    metrics: Counters
    log: Callable[[str], None]  # writes one line to the server's log
    # asks a model about a row (1, *dims); why it failed, None if it did not
    ask: Callable[[str, AnyRows], str | None]

    def __post_init__(self) -> None:
        models = [(stage, one.name) for stage, part in enumerate(self.spec.stages) for one in part.members]
        self.prefix = len(models)  # the index of the prefix
        models += [] if self.spec.fused_prefix is None else [(0, self.spec.fused_prefix.name)]
        self.derived = len(models)  # the index of the first deriving model
        needed = [{one.name for one in self.spec.derived_for(stage)} for stage in range(len(self.spec.stages))]
        for one in self.spec.derived:
            # At the stage where it is asked first; one that no member needs is never asked.
            models.append((next((stage for stage, names in enumerate(needed) if one.name in names), 0), one.name))
        self._models = models
        self._all = [Breaker() for _ in models]
        self._lock = threading.Lock()
        self._open: dict[int, Opening] = {}  # by index, those that are not closed
        self._known: dict[int, AnyRows] = {}  # by index, a row (1, *dims) that the model has answered
        self._row: dict[int, AnyRows] = {}  # the newest row that it has not, for probes where none is known
        self._lost = [0] * len(models)  # calls given up that have not returned
        for place in range(len(models)):
            self._show(place)
            self.metrics.lost_calls(0, *models[place])

    def is_closed(self, place: int) -> bool:
        """Whether a model may be asked."""
        return place not in self._open

    def refusals(self, stage: int, places: list[int], rows: AnyRows) -> dict[int, str]:
        """Which of a stage's members, by index, must not be asked about rows (n, *dims), and why."""
        if not self._open:
            return {}
        with self._lock:
            shut = [place for place in places if place in self._open]
            for place in shut:
                # Newer rows take the place of one that may have been bad.
                self._row[place] = rows[:1].copy()
            texts = {place: self._refusal(place) for place in shut}
        if shut and self.spec.stages[stage].on_failure == "error":
            return dict.fromkeys(places, texts[shut[0]])
        return texts

    def note(self, place: int, rows: AnyRows, output: Rows | None, *, failure: str = "", is_certain: bool) -> None:
        """Takes note of the end of a call.

        Args:
            place: the model's index.
            rows: (n, *dims), asked about.
            output: (n, k), NaN in rows without an answer; None where no row has one.
            failure: why there is none.
            is_certain: whether it speaks of the model, and not of what it was asked.
        """
        # Text instead of numbers is found out behind the breakers, and no such row is worth keeping.
        if output is not None and place not in self._known and output.dtype.kind in "fiu":
            self._keep(place, rows, output)
        with self._lock:
            now_s = time.monotonic()
            if self._all[place].note(is_failed=output is None and is_certain, now_s=now_s):
                self._trip(place, rows, failure, now_s)

    def answers_another_row(self, place: int) -> bool:
        """Asks a model about a row that it has answered, or a plain one; no where its breaker is not closed."""
        row = self._known[place] if place in self._known else plain_row(self.spec)
        return self.is_closed(place) and self.ask(self._models[place][1], row) is None

    def give_up(self, place: int, rows: AnyRows) -> str:
        """Takes note that a call about rows (n, *dims) was given up at the time limit; returns why it failed."""
        limit_ms = self.spec.limits.member_timeout_ms
        failure = f"no answer within {limit_ms} ms"
        with self._lock:
            self._lost[place] += 1
            self.metrics.call_given_up(*self._models[place])
            self.metrics.lost_calls(self._lost[place], *self._models[place])
            now_s = time.monotonic()
            trips = self._all[place].note(is_failed=True, now_s=now_s)
            is_full = sum(self._lost) >= MOST_LOST and self.is_closed(place)
            out = self._lost[place]
            self._say(place, f"call given up: no answer about {len(rows)} rows within {limit_ms} ms; {out} out")
            if trips or is_full:
                self._trip(place, rows, failure, now_s)
        return failure

    def returned(self, place: int) -> None:
        """Takes note that a call has returned which was given up."""
        with self._lock:
            self._lost[place] -= 1
            self.metrics.lost_calls(self._lost[place], *self._models[place])
            self._say(place, f"call that was given up has returned; {self._lost[place]} out")

    def stop(self) -> None:
        """Ends the probes, but for calls that are out."""
        with self._lock:
            for opening in self._open.values():
                opening.is_over.set()

    def _keep(self, place: int, rows: AnyRows, output: Rows) -> None:
        good = np.isfinite(output).all(axis=1).nonzero()[0]
        if len(good):
            self._known[place] = rows[good[0] : good[0] + 1].copy()

    def _trip(self, place: int, rows: AnyRows, failure: str, now_s: float) -> None:
        opening = Opening(now_s, failure, now_s + PROBE_S)
        if not self._start(self._probe_often, place, opening):
            return  # no thread to be had: without probes it would never close, so the next call tries again
        self._all[place].move("trip")
        failed, calls = self._all[place].counts
        self._open[place] = opening
        self._row[place] = rows[:1].copy()
        self.metrics.breaker_opened(*self._models[place])
        self._show(place)
        self._say(
            place, f"breaker open: {failed} of {calls} calls in {WINDOW_S:g} s failed, the last with: {failure}"
        )

    def _start(self, target: Callable[[int, Opening], None], place: int, opening: Opening) -> bool:
        name = f"committee-probe-{self._models[place][1]}"
        try:
            threading.Thread(target=target, args=(place, opening), name=name, daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _probe_often(self, place: int, opening: Opening) -> None:
        """Starts a probe once a second until one is answered, each in a thread of its own: it may hang."""
        while not opening.is_over.wait(opening.pause_s):
            with self._lock:
                opening.probes_out += self._start(self._probe, place, opening)
                opening.probe_s = time.monotonic() + opening.pause_s
                if opening.probes_out and self._all[place].state == OPEN:
                    self._all[place].move("probe")
                    self._show(place)

    def _probe(self, place: int, opening: Opening) -> None:
        """Asks the model about a row, and closes its breaker if that is answered."""
        row = self._known.get(place, self._row[place])
        failure = self.ask(self._models[place][1], row)
        with self._lock:
            opening.probes_out -= 1
            if self._open.get(place) is not opening:
                return  # another probe has closed it
            if failure is not None:
                opening.failure = failure
                if opening.probes_out:
                    return
            self._all[place].probed(is_failed=failure is not None)
            self._show(place)
            if failure is not None:
                return
            self._known[place] = row
            del self._open[place]
            opening.is_over.set()
        self._say(place, f"breaker closed after {time.monotonic() - opening.began_s:.1f} s: a probe was answered")

    def _refusal(self, place: int) -> str:
        stage, name = self._models[place]
        opening = self._open[place]
        left_s = opening.probe_s - time.monotonic()
        when = f"in {left_s:.1f} s" if left_s > 0 else "now"
        text = f"stage {stage} member {name}: not asked, most of its calls fail: {opening.failure}"
        return f"{text}; probed next {when}"

    def _show(self, place: int) -> None:
        self.metrics.breaker_is(self._all[place].state, *self._models[place])

    def _say(self, place: int, text: str) -> None:
        stage, name = self._models[place]
        self.log(f"committee: stage {stage} member {name}: {text}")
