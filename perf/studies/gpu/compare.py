"""Each cascade against its baseline alone: what was measured, and what arithmetic would have said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from perf.harness.cells import Cell
from perf.harness.frame import figure, find_cell, ratio
from perf.studies.gpu.families import ImposedCascade, NetworkFamily, speedup_of


@dataclass(frozen=True, kw_only=True)
class GpuLoads:
    """What is sent.

    Args:
        online: (requests in flight, rows of each) where latency counts.
        offline: the same where the server is to be saturated.
        alone: batch sizes of the networks by themselves.
    """

    online: tuple[int, int] = (1, 1)
    offline: tuple[int, int] = (8, 32)
    alone: tuple[int, ...] = (32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class CascadeSpeedup:
    """One cascade against the last of its members alone; a speed-up above 1 is the cascade's.

    Args:
        family, cascade: names.
        words: its members in order.
        baseline: the single network.
        reach: imposed share of rows that get to each stage.
        measured_reach: of the offline load.
        macs_speedup: by multiply-adds alone.
        alone_speedup: by what each network does alone in this process, without a server.
        online_speedup: ratio of mean latencies, single rows one after another.
        offline_speedup: ratio of rows/s, saturated.
        online_ms: p50 and p99 of the cascade and of the baseline.
        offline_rows_per_s: of the cascade and of the baseline.
        paper_speedup: the published figure for the family.
    """

    family: str
    cascade: str
    words: str
    baseline: str
    reach: tuple[float, ...]
    measured_reach: tuple[float, ...] | None
    macs_speedup: float
    alone_speedup: float | None
    online_speedup: float | None
    offline_speedup: float | None
    online_ms: Mapping[str, float | None]
    offline_rows_per_s: Mapping[str, float | None]
    paper_speedup: float | None

    def as_json(self) -> dict[str, Any]:
        """As results.json holds it; the mix is imposed and says so."""
        return {**asdict(self), "exit_mix": "imposed", "weights": "random"}


def cells_from(cascade: ImposedCascade, loads: GpuLoads) -> list[Cell]:
    """Every member alone and the committee, online and offline.

    Args:
        cascade: whose.
        loads: to send.
    """
    routes = (*(f"member_{number}" for number in range(len(cascade.members))), "committee")
    return [
        Cell(scenario=cascade.name, route=route, concurrency=flight, batch=batch, deferral=cascade.deferral)
        for flight, batch in (loads.online, loads.offline)
        for route in routes
    ]


def comparison_of(
    cascade: ImposedCascade,
    family: NetworkFamily,
    cells: pd.DataFrame,
    *,
    loads: GpuLoads,
    macs: Sequence[float],
    alone: Callable[[str], float | None],
) -> CascadeSpeedup:
    """A cascade held against its last member.

    Args:
        cascade: one of the family's.
        family: its family.
        cells: frame of all scenarios.
        loads: that were sent.
        macs: of a row at each stage.
        alone: short name -> rows/s of that network by itself, None where not measured.
    """
    last = f"member_{len(cascade.members) - 1}"
    found = {
        (name, route): find_cell(cells, scenario=cascade.name, route=route, concurrency=load[0], batch=load[1])
        for name, load in (("online", loads.online), ("offline", loads.offline))
        for route in ("committee", last)
    }
    rates = [alone(name) for name in cascade.members]
    seconds = [1 / rate for rate in rates if rate]
    ours, theirs = found["offline", "committee"], found["offline", last]
    return CascadeSpeedup(
        family=family.name,
        cascade=cascade.name,
        words=cascade.words,
        baseline=cascade.members[-1],
        reach=cascade.reach,
        measured_reach=None if ours is None else ours.reach,
        macs_speedup=speedup_of(macs, cascade.reach),
        alone_speedup=speedup_of(seconds, cascade.reach) if len(seconds) == len(rates) else None,
        # One request at a time: answers per second are the inverse of the mean latency.
        online_speedup=ratio(
            figure(found["online", "committee"], "rows_per_s"), figure(found["online", last], "rows_per_s")
        ),
        offline_speedup=ratio(figure(ours, "rows_per_s"), figure(theirs, "rows_per_s")),
        online_ms={
            f"{who}_{part}": figure(one, part)
            for who, one in (("cascade", found["online", "committee"]), ("baseline", found["online", last]))
            for part in ("p50_ms", "p99_ms")
        },
        offline_rows_per_s={"cascade": figure(ours, "rows_per_s"), "baseline": figure(theirs, "rows_per_s")},
        paper_speedup=family.paper_speedup,
    )
