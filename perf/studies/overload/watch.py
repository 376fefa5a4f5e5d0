"""What the server counts of a cascade while it is under load: the wait in front of it, and shifts of its gear."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from orchestrator.bls.metrics import FLUSH_INTERVAL_S
from orchestrator.errors import ServerFaultError

# The runtime hands its counters to the server once in an interval; a reading later than that has them all.
SETTLE_S = 1.5 * FLUSH_INTERVAL_S
REST_TIMEOUT_S = 120.0
_TIMEOUT_S = 10.0
_LINE = re.compile(r"^(?P<name>[a-z_]+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Reading:
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


@dataclass(frozen=True, kw_only=True)
class Pressure:
    """What came in between two readings.

    Args:
        queue_ms: mean wait in front of the cascade; None where nothing was served.
        cheaper, dearer: shifts of the gear.
    """

    queue_ms: float | None
    cheaper: int
    dearer: int


def read(address: str, model: str) -> Reading:
    """The counters now.

    Args:
        address: host:port of the metrics endpoint.
        model: Triton name.

    Raises:
        ServerFaultError: the endpoint does not answer.
    """
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_S) as answer:
            return reading_from_text(answer.read().decode(), model)
    except (urllib.error.URLError, TimeoutError) as error:
        raise ServerFaultError(f"metrics of {address}", got=error) from error


def reading_from_text(text: str, model: str) -> Reading:
    """The counters of a model in what the metrics endpoint says; those it lacks are 0."""
    sums: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        labels = dict(_LABEL.findall(match["labels"])) if match else {}
        if match and labels.get("model") == model:
            key = (match["name"], labels.get("direction", ""))
            sums[key] = sums.get(key, 0.0) + float(match["value"])

    def count(name: str, direction: str = "") -> int:
        return int(sums.get((name, direction), 0.0))

    return Reading(
        served=count("nv_inference_request_success"),
        queue_us=count("nv_inference_queue_duration_us"),
        cheaper=count("committee_gear_shifts_total", "cheaper"),
        dearer=count("committee_gear_shifts_total", "dearer"),
        gear=count("committee_gear"),
    )


def at_rest(address: str, model: str, *, timeout_s: float = REST_TIMEOUT_S) -> Reading:
    """Waits until nothing is counted any more and the gear is the plan's own; returns the counters then.

    What one load leaves, a queue or a cheaper gear, must not be the next one's.

    Args:
        address: host:port of the metrics endpoint.
        model: Triton name.
        timeout_s: for how long.

    Raises:
        ServerFaultError: the endpoint does not answer, or there is no rest by then.
    """
    until_s = time.monotonic() + timeout_s
    last = read(address, model)
    while time.monotonic() < until_s:
        time.sleep(SETTLE_S)
        now = read(address, model)
        if now == last and now.gear == 0:
            return now
        last = now
    raise ServerFaultError(f"{model} after a load", got=last, expected=f"an idle server within {timeout_s:g} s")


def pressure_between(before: Reading, after: Reading) -> Pressure:
    """What came in between."""
    served = after.served - before.served
    return Pressure(
        queue_ms=(after.queue_us - before.queue_us) / 1000 / served if served else None,
        cheaper=after.cheaper - before.cheaper,
        dearer=after.dearer - before.dearer,
    )
