"""A whole run: members, what each does alone, one served scenario per cascade, and each cascade's speed-ups."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator import __version__
from perf.harness.frame import figure, find_cell, ratio
from perf.harness.run import (
    Results,
    RunContext,
    RunOptions,
    ScenarioResult,
    begin,
    cells_of_all,
    results_from,
    run_scenario,
)
from perf.harness.serving import Cell
from perf.harness.windows import Journal
from perf.routes.spec import BenchRepository
from perf.studies.gpu.device import Device, Progress, best_rows_per_s, measure_alone
from perf.studies.gpu.members import (
    GpuLoads,
    GpuSetup,
    ImposedCascade,
    NetworkFamily,
    export_family,
    image_of,
    manifest_of,
    rows_at,
    speedup_of,
    tools_from,
)

# TensorRT builds an engine per network while the server starts; B7 alone can take a quarter of an hour.
_STARTUP_S = {"cuda": 900.0, "cpu": 300.0, "tensorrt": 7200.0}
_MOST_ALONE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """Options of a run.

    Args:
        setup: device, precision and folder of the members; results go to the folder too.
        seconds: length of a window.
        rounds: windows per cell.
        resume: go on with the windows an interrupted run left.
        small: whether the networks are the small ones.
    """

    families: tuple[NetworkFamily, ...]
    loads: GpuLoads
    setup: GpuSetup
    seconds: float
    rounds: int
    resume: bool
    small: bool

    @property
    def harness(self) -> RunOptions:
        """The options of the harness."""
        return RunOptions(
            full=True,
            scenarios=tuple(one.name for family in self.families for one in family.cascades),
            output=self.setup.folder,
            seconds=self.seconds,
            rounds=self.rounds,
            budget_s=math.inf,
            resume=self.resume,
        )

    @property
    def journal_settings(self) -> dict[str, object]:
        """Settings that a run must share with the windows it goes on with."""
        return {
            "committee": __version__,
            "device": self.setup.device.words,
            "precision": self.setup.precision,
            "loads": asdict(self.loads),
            "seconds": self.seconds,
            "rounds": self.rounds,
            "small": self.small,
        }


@dataclass(frozen=True, kw_only=True)
class NetworkRates:
    """Rows/s of one network by itself: batch size -> median over rounds, without sizes that could not be run."""

    family: str
    member: str
    rows_per_s: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class CascadeSpeedup:
    """One cascade against the last of its members alone; above 1 the cascade is faster.

    Args:
        words: members in stage order.
        baseline: the single network.
        reach: imposed share of rows that reach each stage.
        measured_reach: the share measured under the offline load.
        macs_speedup: ratio of multiply-adds.
        alone_speedup: ratio by what each network does alone in this process, without a server.
        online_speedup: ratio of mean latencies, single rows one after another.
        offline_speedup: ratio of rows/s, the server saturated.
        online_ms: p50 and p99 of the cascade and of the baseline.
        offline_rows_per_s: rows/s of the cascade and of the baseline.
        paper_speedup: published figure for the family.
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


@dataclass(frozen=True, kw_only=True)
class GpuResults:
    """Everything a run leaves.

    Args:
        served: cells of the cascades and their members.
        alone: the networks by themselves.
        comparisons: each cascade against its baseline.
    """

    device: Device
    precision: str
    small: bool
    served: Results
    alone: Sequence[NetworkRates]
    comparisons: Sequence[CascadeSpeedup]

    def as_json(self) -> dict[str, Any]:
        """As results.json holds it."""
        document = self.served.as_json()
        del document["targets"]
        return {
            **document,
            "device": self.device.as_json(),
            "precision": self.precision,
            "small": self.small,
            "alone": [asdict(one) for one in self.alone],
            "comparisons": [
                {**asdict(one), "exit_mix": "imposed", "weights": "random"} for one in self.comparisons
            ],
        }


def run_gpu(options: GpuOptions, *, command: str, progress: Progress) -> GpuResults:
    """Measures everything; windows are on disk as they come.

    Raises:
        CommitteeError: the run cannot go on.
    """
    context, setup = begin(progress), options.setup
    failures: dict[str, str] = {}
    measured: list[ScenarioResult] = []
    alone, comparisons = [], []
    for family in options.families:
        exported = export_family(family, setup, progress=progress)
        journal, failed = _measure_alone(family, exported, options, progress=progress)
        failures |= failed
        alone += rates_of(family, options, journal)
        measured += _serve(family, exported, options, context, progress=progress)
        cells = cells_of_all(measured)
        for cascade in family.cascades:
            members = [setup.served(name) for name in cascade.members]
            macs = [float(manifest_of(exported, name).macs) for name in members]
            rates = [best_rows_per_s(journal, name, options.loads.alone) for name in members]
            found = speedup_from_cells(cascade, family, cells, loads=options.loads, macs=macs, alone=rates)
            comparisons.append(found)
    return GpuResults(
        device=setup.device,
        precision=setup.precision,
        small=options.small,
        served=results_from(measured, options.harness, context, kind="gpu", command=command, failures=failures),
        alone=alone,
        comparisons=comparisons,
    )


def _measure_alone(
    family: NetworkFamily, exported: Path, options: GpuOptions, *, progress: Progress
) -> tuple[Journal, dict[str, str]]:
    """Windows of a family's networks by themselves, and what could not be measured."""
    journal = Journal(
        options.setup.folder / f"alone-{family.name}.jsonl",
        {**options.journal_settings, "members": list(family.sources)},
        resume=options.resume,
    )
    image = image_of(family)
    failures = measure_alone(
        exported,
        [options.setup.served(name) for name in family.sources],
        batches=options.loads.alone,
        rounds=options.rounds,
        seconds=min(options.seconds, _MOST_ALONE_S),
        providers=options.setup.providers,
        rows_at=lambda numbers: rows_at(image, numbers),
        journal=journal,
        progress=progress,
    )
    return journal, failures


def rates_of(family: NetworkFamily, options: GpuOptions, journal: Journal) -> list[NetworkRates]:
    """Rows/s of each network of a family by itself."""
    found = []
    for member in map(options.setup.served, family.sources):
        rates = {batch: best_rows_per_s(journal, member, [batch]) for batch in options.loads.alone}
        known = {batch: rate for batch, rate in rates.items() if rate is not None}
        found.append(NetworkRates(family=family.name, member=member, rows_per_s=known))
    return found


def _serve(
    family: NetworkFamily, exported: Path, options: GpuOptions, context: RunContext, *, progress: Progress
) -> list[ScenarioResult]:
    """Serves each cascade of a family, with its members, and measures its cells."""
    found = []
    for cascade in family.cascades:
        tools = dataclasses.replace(
            tools_from(cascade, family, options.setup, exported=exported, progress=progress),
            cells=partial(cells_from, cascade, options.loads),
            settings=options.journal_settings,
            startup_timeout_s=_STARTUP_S[options.setup.device.provider],
        )
        found.append(run_scenario(tools, options.harness, context, progress=progress))
    return [one for one in found if one is not None]


def cells_from(cascade: ImposedCascade, loads: GpuLoads, _: BenchRepository | None = None) -> list[Cell]:
    """Cells of every member alone and of the committee, online and offline."""
    routes = (*(f"member_{number}" for number in range(len(cascade.members))), "committee")
    return [
        Cell(scenario=cascade.name, route=route, concurrency=flight, batch=batch, deferral=cascade.deferral)
        for flight, batch in (loads.online, loads.offline)
        for route in routes
    ]


def speedup_from_cells(
    cascade: ImposedCascade,
    family: NetworkFamily,
    cells: pd.DataFrame,
    *,
    loads: GpuLoads,
    macs: Sequence[float],
    alone: Sequence[float | None],
) -> CascadeSpeedup:
    """A cascade against its last member, from the frame of all measured cells.

    By stage, `macs` are multiply-adds of a row, `alone` rows/s of the network by itself, None if not measured.
    """

    def cell(route: str, load: tuple[int, int]) -> pd.Series | None:
        return find_cell(cells, scenario=cascade.name, route=route, concurrency=load[0], batch=load[1])

    last = f"member_{len(cascade.members) - 1}"
    online = {"cascade": cell("committee", loads.online), "baseline": cell(last, loads.online)}
    offline = {"cascade": cell("committee", loads.offline), "baseline": cell(last, loads.offline)}
    rates = {who: figure(one, "rows_per_s") for who, one in offline.items()}
    seconds = [1 / rate for rate in alone if rate]
    return CascadeSpeedup(
        family=family.name,
        cascade=cascade.name,
        words=cascade.words,
        baseline=cascade.members[-1],
        reach=cascade.reach,
        measured_reach=None if offline["cascade"] is None else offline["cascade"].reach,
        macs_speedup=speedup_of(macs, cascade.reach),
        alone_speedup=speedup_of(seconds, cascade.reach) if len(seconds) == len(alone) else None,
        # One request at a time: answers per second are the inverse of the mean latency.
        online_speedup=ratio(*(figure(online[who], "rows_per_s") for who in ("cascade", "baseline"))),
        offline_speedup=ratio(rates["cascade"], rates["baseline"]),
        online_ms={
            f"{who}_{part}": figure(one, part) for who, one in online.items() for part in ("p50_ms", "p99_ms")
        },
        offline_rows_per_s=rates,
        paper_speedup=family.paper_speedup,
    )
