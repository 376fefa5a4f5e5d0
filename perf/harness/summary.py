"""Cells over their rounds: medians, spread, flags, and what the bound says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perf.harness.bound import Bound, bound_of
from perf.harness.cells import Cell
from perf.harness.record import Journal, Record
from perf.harness.rounds import is_unstable, spread_of
from perf.routes.spec import BenchRoute


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One cell; every figure is the median over its rounds unless it says otherwise.

    Args:
        cell: which.
        title: of the route, for people.
        rounds: windows that count.
        repeated: windows that were taken again.
        unstable: the rounds lie too far apart.
        reach_is_off: some window answered another mix of rows than it should have.
        spread: (max - min) / median of what stability is judged by.
        requests_per_s, rows_per_s: answered per second.
        latency_ms: percentiles by name, None where not known.
        reach: share of rows that got to each stage, None for routes without stages.
        cpu_s_per_request: of the server.
        client_cpu_s_per_request: of whoever sent the load.
        mean_batch: rows per call by model.
        resident_bytes, shm_bytes: the largest of the rounds.
        lag_ms: p50 and p99 of how late requests left, None in a closed loop.
        failed: requests, over all rounds.
        bound: None where nothing is known of it.
    """

    cell: Cell
    title: str
    rounds: int
    repeated: int
    unstable: bool
    reach_is_off: bool
    spread: float
    requests_per_s: float
    rows_per_s: float
    latency_ms: Mapping[str, float | None]
    reach: tuple[float, ...] | None
    cpu_s_per_request: float
    client_cpu_s_per_request: float
    mean_batch: Mapping[str, float]
    resident_bytes: int
    shm_bytes: int
    lag_ms: tuple[float, float] | None
    failed: int
    bound: Bound | None

    @property
    def efficiency(self) -> float | None:
        """Measured over bound."""
        return None if self.bound is None else self.requests_per_s / self.bound.requests_per_s


def flags_of(one: Summary) -> list[str]:
    """What is wrong with a cell, in words."""
    found = {
        "unstable": one.unstable,
        "exit mix off by over 1 point": one.reach_is_off,
        f"{one.failed} requests failed": bool(one.failed),
    }
    return [text for text, applies in found.items() if applies]


def summaries_of(
    cells: Sequence[Cell], journal: Journal, *, routes: Mapping[str, BenchRoute], cores: int
) -> list[Summary]:
    """One summary per cell of one scenario.

    Args:
        cells: measured ones.
        journal: their records.
        routes: of the scenario, by name.
        cores: of this machine.
    """
    capacity = capacities(cells, journal, routes)
    return [_summary(cell, journal, routes[cell.route], capacity, cores) for cell in cells]


def capacities(cells: Iterable[Cell], journal: Journal, routes: Mapping[str, BenchRoute]) -> dict[str, float]:
    """Rows/s of each member asked alone, by Triton name: the best of its closed loops."""
    found: dict[str, float] = {}
    for cell in cells:
        if cell.route.startswith("member_") and cell.sender == "closed":
            rate = _median(one.rows_per_s for one in journal.of(cell.key))
            name = routes[cell.route].members[0]
            found[name] = max(rate, found.get(name, 0.0))
    return found


def _summary(
    cell: Cell, journal: Journal, route: BenchRoute, capacity: Mapping[str, float], cores: int
) -> Summary:
    records = journal.of(cell.key)
    reach = _medians([one.reach for one in records])
    cpu_s = _median(one.cpu_s_per_request for one in records)
    bound = None
    if route.members and cell.sender == "closed":
        shares = reach if route.cascade and reach else (1.0,) * len(route.members)
        bound = bound_of(
            route.members,
            shares[: len(route.members)],
            capacity_rows_per_s=capacity,
            batch=cell.batch,
            cores=cores,
            cpu_s_per_request=cpu_s,
        )
    return Summary(
        cell=cell,
        title=route.title,
        rounds=len(records),
        repeated=sum(one.key == cell.key and one.attempt > 0 for one in journal.records),
        unstable=is_unstable(records, cell),
        reach_is_off=any(one.reach_is_off for one in records),
        spread=spread_of(records, cell),
        requests_per_s=_median(one.requests_per_s for one in records),
        rows_per_s=_median(one.rows_per_s for one in records),
        latency_ms=_latency(records),
        reach=reach,
        cpu_s_per_request=cpu_s,
        client_cpu_s_per_request=_median(one.client_cpu_s_per_request for one in records),
        mean_batch=_by_name([one.mean_batch for one in records]),
        resident_bytes=max(one.resident_bytes for one in records),
        shm_bytes=max(one.shm_bytes for one in records),
        lag_ms=_pair(_medians([one.lag_ms for one in records])),
        failed=sum(one.failed for one in records),
        bound=bound,
    )


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _medians(values: Sequence[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    known = [value for value in values if value is not None]
    return tuple(float(one) for one in np.median(np.array(known), axis=0)) if known else None


def _pair(values: tuple[float, ...] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _latency(records: Sequence[Record]) -> dict[str, float | None]:
    names = list(dict.fromkeys(name for one in records for name in one.latency_ms))
    known: dict[str, list[Any]] = {name: [one.latency_ms.get(name) for one in records] for name in names}
    return {
        name: _median(value for value in values if value is not None)
        if any(value is not None for value in values)
        else None
        for name, values in known.items()
    }


def _by_name(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for one in values for name in one))
    return {name: _median(one[name] for one in values if name in one) for name in names}
