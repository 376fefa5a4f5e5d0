"""A whole run: members, what each does alone, one served scenario per cascade, and each cascade's speed-ups."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from perf.harness.frame import figure, find_cell, ratio
from perf.harness.run import (
    Results,
    RunContext,
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
class GpuResults:
    """Everything a run leaves.

    Args:
        served: cells of the cascades and their members.
        alone: as `rates_of` gives them, of every network.
        comparisons: as `speedup_from_cells` gives them, of every cascade.
    """

    device: Device
    precision: str
    small: bool
    served: Results
    alone: Sequence[Mapping[str, Any]]
    comparisons: Sequence[Mapping[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """As results.json holds it."""
        own = {name: getattr(self, name) for name in ("precision", "small", "alone", "comparisons")}
        document = {**self.served.as_json(), "device": asdict(self.device), **own}
        del document["targets"]
        return document


def run_gpu(families: Sequence[NetworkFamily], setup: GpuSetup, *, command: str, progress: Progress) -> GpuResults:
    """Measures everything; windows are on disk as they come.

    Raises:
        CommitteeError: the run cannot go on.
    """
    context = begin(progress)
    failures: dict[str, str] = {}
    measured: list[ScenarioResult] = []
    alone: list[dict[str, Any]] = []
    comparisons = []
    for family in families:
        exported = export_family(family, setup, progress=progress)
        journal, failed = _measure_alone(family, exported, setup, progress=progress)
        failures |= failed
        alone += rates_of(family, setup, journal)
        measured += _serve(family, exported, setup, context, progress=progress)
        cells = cells_of_all(measured)
        for cascade in family.cascades:
            members = [setup.served(name) for name in cascade.members]
            macs = [float(manifest_of(exported, name).macs) for name in members]
            rates = [best_rows_per_s(journal, name, setup.loads.alone) for name in members]
            found = speedup_from_cells(cascade, family, cells, loads=setup.loads, macs=macs, alone=rates)
            comparisons.append(found)
    return GpuResults(
        device=setup.device,
        precision=setup.precision,
        small=setup.small,
        served=results_from(measured, setup.harness, context, kind="gpu", command=command, failures=failures),
        alone=alone,
        comparisons=comparisons,
    )


def _measure_alone(
    family: NetworkFamily, exported: Path, setup: GpuSetup, *, progress: Progress
) -> tuple[Journal, dict[str, str]]:
    """Windows of a family's networks by themselves, and what could not be measured."""
    path, settings = setup.folder / f"alone-{family.name}.jsonl", setup.journal_settings
    journal = Journal(path, {**settings, "members": list(family.sources)}, resume=setup.resume)
    failures = measure_alone(
        exported,
        [setup.served(name) for name in family.sources],
        batches=setup.loads.alone,
        rounds=setup.rounds,
        seconds=min(setup.seconds, _MOST_ALONE_S),
        providers=setup.providers,
        rows_at=partial(rows_at, image_of(family)),
        journal=journal,
        progress=progress,
    )
    return journal, failures


def rates_of(family: NetworkFamily, setup: GpuSetup, journal: Journal) -> list[dict[str, Any]]:
    """`rows_per_s` of each network by itself: batch size -> median, without sizes that could not be run."""
    found = []
    for member in map(setup.served, family.sources):
        rates = {batch: best_rows_per_s(journal, member, [batch]) for batch in setup.loads.alone}
        known = {batch: rate for batch, rate in rates.items() if rate is not None}
        found.append({"family": family.name, "member": member, "rows_per_s": known})
    return found


def _serve(
    family: NetworkFamily, exported: Path, setup: GpuSetup, context: RunContext, *, progress: Progress
) -> list[ScenarioResult]:
    """Serves each cascade of a family, with its members, and measures its cells."""
    found = []
    for cascade in family.cascades:
        tools = dataclasses.replace(
            tools_from(cascade, family, setup, exported=exported, progress=progress),
            cells=partial(cells_from, cascade, setup.loads),
            settings=setup.journal_settings,
            startup_timeout_s=_STARTUP_S[setup.device.provider],
        )
        found.append(run_scenario(tools, setup.harness, context, progress=progress))
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
) -> dict[str, Any]:
    """A cascade against the last of its members alone, the baseline; in ratios above 1 the cascade is faster.

    Args:
        cascade: one of the family's.
        family: whose published figure stands beside it.
        cells: frame of all measured cells.
        loads: that were sent.
        macs: multiply-adds of a row, by stage.
        alone: rows/s of the network by itself, by stage; None where not measured.

    Returns:
        `reach`, the imposed share of rows that reach each stage, and the `measured_reach` under the offline load;
        ratios: `macs_speedup` of multiply-adds, `alone_speedup` by what each network does in this process without
        a server, `online_speedup` of mean latencies of single rows, `offline_speedup` of rows/s, the server
        saturated; `online_ms` and `offline_rows_per_s` of cascade and baseline.
    """
    routes = {"cascade": "committee", "baseline": f"member_{len(cascade.members) - 1}"}
    online, offline = (
        {
            who: find_cell(cells, scenario=cascade.name, route=route, concurrency=flight, batch=batch)
            for who, route in routes.items()
        }
        for flight, batch in (loads.online, loads.offline)
    )
    seconds = [1 / rate for rate in alone if rate]
    return {
        "family": family.name,
        "cascade": cascade.name,
        "words": cascade.words,
        "baseline": cascade.members[-1],
        "reach": cascade.reach,
        "measured_reach": None if offline["cascade"] is None else offline["cascade"].reach,
        "macs_speedup": speedup_of(macs, cascade.reach),
        "alone_speedup": speedup_of(seconds, cascade.reach) if len(seconds) == len(alone) else None,
        # One request at a time: answers per second are the inverse of the mean latency.
        "online_speedup": ratio(*(figure(one, "rows_per_s") for one in online.values())),
        "offline_speedup": ratio(*(figure(one, "rows_per_s") for one in offline.values())),
        "online_ms": {
            f"{who}_{part}": figure(one, part) for who, one in online.items() for part in ("p50_ms", "p99_ms")
        },
        "offline_rows_per_s": {who: figure(one, "rows_per_s") for who, one in offline.items()},
        "paper_speedup": family.paper_speedup,
        "exit_mix": "imposed",
        "weights": "random",
    }
