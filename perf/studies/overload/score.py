"""Scores of a load: requests answered in time, rows answered rightly, and what the server counted meanwhile."""

import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.bls.metrics import FLUSH_INTERVAL_S
from orchestrator.errors import ServerFaultError
from orchestrator.spec.answer import DEADLINE, GEARED
from perf.load.poisson import WARM_S, OpenLoop, outputs_from_bytes

FIGURES = (
    "in_time", "answered", "accuracy", "good", "p50_ms", "p99_ms", "cut", "geared", "lag_p99_ms", "queue_ms",
)  # fmt: skip
# The runtime hands its counters to the server once in an interval; a reading later than that has them all.
SETTLE_S = 1.5 * FLUSH_INTERVAL_S
REST_TIMEOUT_S = 120.0
_TIMEOUT_S = 10.0
_OUTPUTS = ("label", "exit_stage", "status")


@dataclass(frozen=True, kw_only=True)
class SentRequests:
    """n requests that were due after the warm-up.

    Args:
        latency_ms: float64 (n,), from due to answered; NaN where no answer came.
        lag_ms: float64 (n,), from due to sent: what our own client is behind.
        right: int64 (n,), rows answered with their label; 0 where no answer came.
        answered: bool (n,), an answer came, in time or not.
        exits: int64 (s,), rows by the stage that answered.
        status: bits that were set -> rows.
        batch: rows per request.
    """

    latency_ms: npt.NDArray[np.float64] = field(repr=False)
    lag_ms: npt.NDArray[np.float64] = field(repr=False)
    right: npt.NDArray[np.int64] = field(repr=False)
    answered: npt.NDArray[np.bool_] = field(repr=False)
    exits: npt.NDArray[np.int64]
    status: Mapping[int, int]
    batch: int


def sent_from_open_loop(done: OpenLoop, *, labels: npt.NDArray[np.int64], batch: int) -> SentRequests:
    """The requests that were due after the warm-up, their answers compared with the labels.

    Args:
        done: everything sent; answers are bytes or a `FailedRequest`.
        labels: int64 (n,), of the rows that were sent round and round.
        batch: rows per request.
    """
    counted = np.flatnonzero(done.due_s >= WARM_S)
    answered = np.array([isinstance(done.answers[index], bytes) for index in counted], np.bool_)
    right = np.zeros(len(counted), np.int64)
    stages, bits = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for place in np.flatnonzero(answered):
        index = int(counted[place])
        said = outputs_from_bytes(done.answers[index], _OUTPUTS)
        wanted = labels[(index * batch + np.arange(batch)) % len(labels)]
        right[place] = int((said["label"].ravel() == wanted).sum())
        stages.append(said["exit_stage"].ravel().astype(np.int64))
        bits.append(said["status"].ravel().astype(np.int64))
    status, count = np.unique(np.concatenate(bits), return_counts=True)
    return SentRequests(
        latency_ms=np.where(answered, done.latency_ms[counted], np.nan),
        lag_ms=done.lag_ms[counted],
        right=right,
        answered=answered,
        exits=np.bincount(np.concatenate(stages)),
        status=dict(zip(status.tolist(), count.tolist(), strict=True)),
        batch=batch,
    )


def score_of(sent: SentRequests, *, deadline_ms: float) -> dict[str, Any]:
    """One round of one variant as overload.json has it; shares are of what was sent, from 0 to 1.

    Returns:
        `in_time`: requests answered within the deadline; `answered`: at all; `accuracy`: of the rows of answered
        requests, those that are right; `good`: rows answered in time and right; `p50_ms` and `p99_ms` of answered
        requests, from the moment they were due, None where there are none; `cut` and `geared`: of answered rows,
        those that had to be answered at their deadline, and those a cheaper gear let out; `exits`: of answered
        rows, by stage; `status`: answered rows by the bits they carry, 0 for none; `lag_p99_ms`: how late our own
        client sent, which makes the figures worthless where it is large.
    """
    in_time = sent.answered & (np.nan_to_num(sent.latency_ms, nan=np.inf) <= deadline_ms)
    rows = max(1, int(sent.answered.sum()) * sent.batch)
    latencies = sent.latency_ms[sent.answered]
    return {
        "in_time": float(in_time.mean()),
        "answered": float(sent.answered.mean()),
        "accuracy": float(sent.right.sum() / rows),
        "good": float(sent.right[in_time].sum() / (len(sent.answered) * sent.batch)),
        "p50_ms": _percentile(latencies, 50),
        "p99_ms": _percentile(latencies, 99),
        "cut": _with_bit(sent, DEADLINE) / rows,
        "geared": _with_bit(sent, GEARED) / rows,
        "exits": (sent.exits / rows).tolist(),
        "status": dict(sent.status),
        "lag_p99_ms": _percentile(sent.lag_ms[~np.isnan(sent.lag_ms)], 99),
    }


def _percentile(values: npt.NDArray[np.float64], percent: int) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def _with_bit(sent: SentRequests, bit: int) -> int:
    return sum(count for bits, count in sent.status.items() if bits & bit)


def medians(rounds: pd.DataFrame) -> dict[str, Any]:
    """Each figure as its median over rounds, with the smallest and the largest; shifts of all rounds together.

    The rounds have a row each, with columns as `score_of` and `CounterReading.since` give them.
    """
    found: dict[str, Any] = {}
    for name in FIGURES:
        values = rounds[name].dropna().astype(float)
        found[name] = values.agg(["median", "min", "max"]).to_dict() if len(values) else None
    found["shifts"] = [sum(shifts[way] for shifts in rounds["shifts"]) for way in range(2)]
    # Rounds in which no row got to the last stages have fewer.
    found["exits"] = pd.DataFrame(rounds["exits"].tolist()).fillna(0.0).median().tolist()
    return found


@dataclass(frozen=True, kw_only=True)
class CounterReading:
    """Counters of one model so far.

    Args:
        served: requests answered without an error.
        queue_us: microseconds they waited until the cascade was called with them, summed.
        cheaper, dearer: shifts of the gear.
        gear: the one new rows are judged by.
    """

    served: int
    queue_us: int
    cheaper: int
    dearer: int
    gear: int = 0

    def since(self, before: "CounterReading") -> dict[str, Any]:
        """`queue_ms`, the mean wait of what was served or None, and `shifts`, to a cheaper gear and back."""
        served = self.served - before.served
        queue_ms = (self.queue_us - before.queue_us) / 1000 / served if served else None
        return {"queue_ms": queue_ms, "shifts": [self.cheaper - before.cheaper, self.dearer - before.dearer]}


def read_counters(address: str, model: str) -> CounterReading:
    """The counters now.

    Raises:
        ServerFaultError: the endpoint does not answer.
    """
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_S) as answer:
            return counters_from_text(answer.read().decode(), model)
    except (urllib.error.URLError, TimeoutError) as error:
        raise ServerFaultError(f"metrics of {address}", got=error) from error


def counters_from_text(text: str, model: str) -> CounterReading:
    """The counters of a model in what the metrics endpoint says; those it lacks are 0."""
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("model") == model:
                # The parser gives counters the ending _total, which Triton leaves out of some.
                name, direction = sample.name.removesuffix("_total"), sample.labels.get("direction", "")
                sums[f"{name} {direction}".strip()] += int(sample.value)
    return CounterReading(
        served=sums["nv_inference_request_success"],
        queue_us=sums["nv_inference_queue_duration_us"],
        cheaper=sums["committee_gear_shifts cheaper"],
        dearer=sums["committee_gear_shifts dearer"],
        gear=sums["committee_gear"],
    )


def counters_at_rest(address: str, model: str, *, timeout_s: float = REST_TIMEOUT_S) -> CounterReading:
    """Waits until nothing is counted any more and the gear is the plan's own; returns the counters then.

    What one load leaves, a queue or a cheaper gear, must not be the next one's.

    Raises:
        ServerFaultError: the endpoint does not answer, or there is no rest by then.
    """
    until_s = time.monotonic() + timeout_s
    last = read_counters(address, model)
    while time.monotonic() < until_s:
        time.sleep(SETTLE_S)
        now = read_counters(address, model)
        if now == last and now.gear == 0:
            return now
        last = now
    raise ServerFaultError(f"{model} after a load", got=last, expected=f"an idle server within {timeout_s:g} s")
