"""Committee's own metrics: counted in memory, handed to the server once a second.

One call of the server's metrics API costs about 22 us and runs on the thread that dispatches member calls, so
nothing is reported per row or per request. Triton's own figures for the cascade are wrong under late answers.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision import StageOutcome
from orchestrator.spec import CascadeSpec, Derived, Member
from orchestrator.spec.answer import STATUS_BITS

FLUSH_INTERVAL_S = 1.0
# Latencies held between two flushes; beyond that they are sorted into their buckets at once.
MAX_UNSORTED = 100_000
LATENCY_BUCKETS_US = (250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000)

Key = tuple[str, tuple[tuple[str, str], ...]]
HELP = {
    "committee_rows_total": "Rows taken in.",
    "committee_exits_total": "Rows answered, by the stage that answered.",
    "committee_deferred_total": "Rows deferred, by the stage that was unsure.",
    "committee_status_total": "Rows answered with a status bit, by bit.",
    "committee_member_failures_total": "Rows a member failed on.",
    "committee_asked_again_total": "Member calls made again for part of a batch, to find the rows that break it.",
    "committee_values_total": "Values of tensors whose length varies that were sent to a model, padding included.",
    "committee_padding_values_total": "Those of these values that only fill rows up to their batch's longest.",
    "committee_table_full_rows_total": "Rows refused because the table of deferred rows was full.",
    "committee_failed_rows_total": "Rows whose request was answered with an error by the runtime.",
    "committee_cost_total": "Cost of every member asked, in the plan's cost unit.",
    "committee_gear": "Gear whose thresholds decide about arriving rows, 0 for the plan's own.",
    "committee_gear_shifts_total": "Shifts to a cheaper gear and back to a dearer one, by direction.",
    "committee_breaker_state": "Whether a stage asks its member: 0 yes, 1 no, 2 no, and a probe is out.",
    "committee_breaker_opened_total": "Times a breaker opened because most calls of a stage's member failed.",
    "committee_calls_given_up_total": "Calls of a stage's member without an answer at the time limit.",
    "committee_calls_out": "Calls of a stage's member given up that have not returned; each holds a thread.",
    "committee_in_process": "Whether a member runs in the cascade's process: 1 yes, 0 no, its model is called.",
    "committee_in_process_runs_total": "Runs of a member in the cascade's process.",
    "committee_in_process_rows_total": "Rows of these runs.",
    "committee_in_process_us_total": "Microseconds of these runs.",
    "committee_latency_us_bucket": "Requests answered within le microseconds.",
    "committee_latency_us_sum": "Microseconds from arrival to answer, summed over requests.",
    "committee_latency_us_count": "Requests answered.",
}
RUNS = ("committee_in_process_runs_total", "committee_in_process_rows_total", "committee_in_process_us_total")
PADDING = ("committee_values_total", "committee_padding_values_total")


class Counters:
    """Counts from any thread; `gauges` are shown as they are."""

    def __init__(self, spec: CascadeSpec) -> None:
        self._members = [member.name for member in spec.members]
        asked: tuple[Member | Derived, ...] = (*spec.members, *spec.derived)
        lengths = {name for name, one in spec.tensors.items() if one.length_axis is not None}
        padding = [one.name for one in asked if lengths & set(spec.tensors_of(one).values())]
        self._costs = list(spec.stage_costs)
        self._lock = threading.Lock()
        self._taken_ns: list[int] = []
        self.gauges: dict[Key, float] = {} if spec.gears is None else {_key("committee_gear"): 0.0}
        stages = range(len(spec.stages))
        # Spelled out once: making a key for every batch took longer than counting.
        self._rows_key, self._cost_key = _key("committee_rows_total"), _key("committee_cost_total")
        self._exit_keys = [_key("committee_exits_total", stage=stage) for stage in stages]
        self._deferred_keys = [_key("committee_deferred_total", stage=stage) for stage in stages[:-1]]
        of_members = ("committee_member_failures_total", "committee_asked_again_total")
        sums = (
            "committee_failed_rows_total",
            "committee_table_full_rows_total",
            "committee_latency_us_sum",
            "committee_latency_us_count",
        )
        shifts = () if spec.gears is None else ("cheaper", "dearer")
        # Every series exists from the start: a counter that appears late loses its first increase.
        keys = [
            *(self._rows_key, self._cost_key, *self._exit_keys, *self._deferred_keys),
            *(_key("committee_status_total", status=name) for name in STATUS_BITS.values()),
            *(_key(name, member=member) for name in of_members for member in (one.name for one in asked)),
            *(_key(name, member=member) for name in PADDING for member in padding),
            *(_key(name, member=one.name) for name in RUNS for one in spec.members_in_process),
            *(_key(name) for name in sums),
            *(_key("committee_gear_shifts_total", direction=direction) for direction in shifts),
            *(_key("committee_latency_us_bucket", le=le) for le in (*LATENCY_BUCKETS_US, "+Inf")),
        ]
        self._sums = dict.fromkeys(keys, 0.0)

    def _add(self, name: str, value: float, **labels: object) -> None:
        self._sums[_key(name, **labels)] += float(value)

    def asked(self, rows: int, stage: int, cost: float | None = None) -> None:
        """A stage's members are asked about rows, where a cost per row is given not all of them."""
        with self._lock:
            self._sums[self._cost_key] += rows * (self._costs[stage] if cost is None else cost)

    def arrived(self, rows: int) -> None:
        """Rows arrived."""
        with self._lock:
            self._sums[self._rows_key] += rows

    def answered_early(self, rows: int, statuses: npt.NDArray[np.int32] | None) -> None:
        """Requests of so many rows left at stage 0; statuses int32 (n,), None where all are 0."""
        with self._lock:
            self._sums[self._exit_keys[0]] += rows
            if statuses is not None:
                self._statuses(statuses)

    def asked_again(self, member: int, calls: int) -> None:
        """A member, by its plan index, was asked again so often to find the rows that break its batch."""
        with self._lock:
            self._add("committee_asked_again_total", calls, member=self._members[member])

    def underived(self, model: str, rows: int) -> None:
        """A deriving model failed for rows."""
        with self._lock:
            self._add("committee_member_failures_total", rows, member=model)

    def derived_again(self, model: str, calls: int) -> None:
        """A deriving model was asked again so often to find the rows that break its batch."""
        with self._lock:
            self._add("committee_asked_again_total", calls, member=model)

    def padded(self, model: str, values: int, filling: int) -> None:
        """A model was sent so many values of tensors whose length varies, some of which only fill rows up."""
        with self._lock:
            for name, count in zip(PADDING, (values, filling), strict=True):
                self._add(name, count, member=model)

    def is_in_process(self, member: str, *, is_here: bool) -> None:
        """A member that the plan wants run in this process is, or has its model called."""
        with self._lock:
            self.gauges[_key("committee_in_process", member=member)] = float(is_here)

    def ran_in_process(self, member: str, rows: int, taken_ns: int) -> None:
        """A member ran for rows in this process."""
        with self._lock:
            for name, count in zip(RUNS, (1, rows, taken_ns / 1000), strict=True):
                self._add(name, count, member=member)

    def refused(self, rows: int) -> None:
        """Rows whose request got an error."""
        with self._lock:
            self._add("committee_failed_rows_total", rows)

    def turned_away(self, rows: int) -> None:
        """Rows found the table full; their request is refused."""
        with self._lock:
            self._add("committee_table_full_rows_total", rows)

    def outcome(self, outcome: StageOutcome) -> None:
        """One batch was decided."""
        answers, stage = outcome.answers, outcome.stage
        with self._lock:
            if outcome.prefix_rows:
                # As if the rows had waited for this stage and its members had been asked.
                self._sums[self._cost_key] += outcome.prefix_rows * self._costs[stage]
                self._sums[self._deferred_keys[stage - 1]] += outcome.prefix_rows
            if len(answers):
                for exit_stage, count in enumerate(np.bincount(answers.exit_stage).tolist()):
                    self._sums[self._exit_keys[exit_stage]] += count
                if answers.status.any():
                    self._statuses(answers.status)
            if len(outcome.deferred):
                self._sums[self._deferred_keys[stage]] += len(outcome.deferred)
            if outcome.member_failures is not None:
                for member, rows in zip(self._members, outcome.member_failures, strict=True):
                    self._add("committee_member_failures_total", rows, member=member)

    def _statuses(self, statuses: npt.NDArray[np.int32]) -> None:
        for bit, name in STATUS_BITS.items():
            self._add("committee_status_total", int(((statuses & bit) != 0).sum()), status=name)

    def shifted(self, gear: int, step: int) -> None:
        """The gear changed by a step, to the one given."""
        with self._lock:
            self.gauges[_key("committee_gear")] = float(gear)
            self._add("committee_gear_shifts_total", abs(step), direction="cheaper" if step > 0 else "dearer")

    def breaker_is(self, state: int, stage: int, member: str) -> None:
        """The breaker of a stage's member is in a state of `BREAKER_STATES` now."""
        labels = {"stage": stage, "member": member}
        with self._lock:
            self.gauges[_key("committee_breaker_state", **labels)] = float(state)
            # Here as well, so that the series exists from the start.
            self._sums.setdefault(_key("committee_breaker_opened_total", **labels), 0.0)

    def breaker_opened(self, stage: int, member: str) -> None:
        """The breaker of a stage's member opened."""
        with self._lock:
            self._add("committee_breaker_opened_total", 1, stage=stage, member=member)

    def call_given_up(self, stage: int, member: str) -> None:
        """A call of a stage's member had no answer at the time limit."""
        with self._lock:
            self._add("committee_calls_given_up_total", 1, stage=stage, member=member)

    def lost_calls(self, calls: int, stage: int, member: str) -> None:
        """So many calls of a stage's member were given up and have not returned."""
        labels = {"stage": stage, "member": member}
        with self._lock:
            self.gauges[_key("committee_calls_out", **labels)] = float(calls)
            self._sums.setdefault(_key("committee_calls_given_up_total", **labels), 0.0)

    def latencies(self, taken_ns: Sequence[int]) -> None:
        """Requests were answered after so many nanoseconds; they are put into buckets off the path."""
        with self._lock:
            # Sorting into buckets takes longer than answering an easy request.
            self._taken_ns.extend(taken_ns)
            if len(self._taken_ns) > MAX_UNSORTED:
                self._sort_latencies()

    def _sort_latencies(self) -> None:
        taken_us = np.array(self._taken_ns, np.float64) / 1000
        self._taken_ns.clear()
        self._add("committee_latency_us_sum", taken_us.sum())
        self._add("committee_latency_us_count", len(taken_us))
        self._add("committee_latency_us_bucket", len(taken_us), le="+Inf")
        within = np.searchsorted(np.sort(taken_us), LATENCY_BUCKETS_US, side="right")
        for le, count in zip(LATENCY_BUCKETS_US, within.tolist(), strict=True):
            self._add("committee_latency_us_bucket", count, le=le)

    def drain(self) -> dict[Key, float]:
        """Everything counted since the last call."""
        with self._lock:
            self._sort_latencies()
            counted, self._sums = self._sums, dict.fromkeys(self._sums, 0.0)
        return counted


def _key(name: str, **labels: object) -> Key:
    return name, tuple((label, str(text)) for label, text in labels.items())


class MetricsFlusher:
    """Hands the counters to the server from a thread of its own; `model` is a label of every series."""

    def __init__(self, pb_utils: Any, counters: Counters, *, model: str) -> None:
        self._pb = pb_utils
        self._counters = counters
        self._model = model
        self._families: dict[str, Any] = {}
        self._metrics: dict[Key, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="committee-metrics", daemon=True)

    def start(self) -> None:
        """Registers every series and starts the thread; a server without metrics still serves."""
        try:
            self.flush()
        except Exception as error:  # whatever the server raises where metrics are switched off
            self._pb.Logger.log_warn(f"committee: no metrics: {error}")
        else:
            self._thread.start()

    def stop(self) -> None:
        """Flushes once more and ends the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
            self.flush()

    def flush(self) -> None:
        """Hands over what was counted since the last time."""
        for key, value in self._counters.drain().items():
            metric = self._metric(key, self._pb.MetricFamily.COUNTER)
            if value:  # most counters stand still, and every call of the server's API costs
                metric.increment(value)
        for key, value in self._counters.gauges.items():
            self._metric(key, self._pb.MetricFamily.GAUGE).set(value)

    def _metric(self, key: Key, kind: Any) -> Any:
        if key not in self._metrics:
            name, labels = key
            # Families must outlive their metrics, so both are kept for the life of the model.
            if name not in self._families:
                self._families[name] = self._pb.MetricFamily(name=name, description=HELP[name], kind=kind)
            self._metrics[key] = self._families[name].Metric(labels={"model": self._model, **dict(labels)})
        return self._metrics[key]

    def _loop(self) -> None:
        while not self._stop.wait(FLUSH_INTERVAL_S):
            try:
                self.flush()
            except Exception as error:  # the next flush may go well
                self._pb.Logger.log_warn(f"committee: metrics: {type(error).__name__}: {error}")
