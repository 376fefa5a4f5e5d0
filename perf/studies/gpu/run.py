"""A whole run: members, what each does alone, then one served scenario per cascade."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from orchestrator import __version__
from perf.harness.cells import Cell
from perf.harness.run import RunOptions, ScenarioResult, begin, cells_of_all, results_from, run_scenario
from perf.harness.windows import Journal
from perf.routes.spec import BenchRepository
from perf.studies.gpu.compare import CascadeSpeedup, GpuLoads, cells_from, comparison_of
from perf.studies.gpu.device import Device
from perf.studies.gpu.families import ImposedCascade, NetworkFamily
from perf.studies.gpu.members import GpuSetup, export_family, image_of, manifest_of, rows_at, tools_from
from perf.studies.gpu.pure import best_rows_per_s, measure_alone
from perf.studies.gpu.results import GpuResults, NetworkRates

Progress = Callable[[str], None]
# TensorRT builds an engine per network while the server starts; B7 alone can take a quarter of an hour.
_STARTUP_S = {"cuda": 900.0, "cpu": 300.0, "tensorrt": 7200.0}
_MOST_ALONE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """What a person may choose, and what follows from it.

    Args:
        families: to measure.
        loads: to send.
        setting: of the members.
        device: they run on.
        output: folder for everything the run writes.
        seconds: of each window.
        rounds: windows per cell.
        resume: go on with the records an interrupted run left.
        small: networks of a toy's size.
    """

    families: tuple[NetworkFamily, ...]
    loads: GpuLoads
    setting: GpuSetup
    device: Device
    output: Path
    seconds: float
    rounds: int
    resume: bool
    small: bool

    @property
    def bench(self) -> RunOptions:
        """The same for the bench's engine."""
        return RunOptions(
            full=True,
            scenarios=tuple(one.name for family in self.families for one in family.cascades),
            output=self.output,
            seconds=self.seconds,
            rounds=self.rounds,
            budget_s=math.inf,
            resume=self.resume,
        )

    @property
    def marks(self) -> dict[str, object]:
        """What a run that goes on must share."""
        return {
            "committee": __version__,
            "device": self.device.words,
            "precision": self.setting.precision,
            "loads": dataclasses.asdict(self.loads),
            "seconds": self.seconds,
            "rounds": self.rounds,
            "small": self.small,
        }


def run_gpu(options: GpuOptions, *, command: str, progress: Progress) -> GpuResults:
    """Measures everything and returns the results; records are on disk as they come.

    Args:
        options: of the run.
        command: what a person typed, for the results.
        progress: told what happens.

    Raises:
        CommitteeError: the run cannot go on.
    """
    context = begin(progress)
    failures: dict[str, str] = {}
    measured: list[ScenarioResult] = []
    alone, comparisons = [], []
    for family in options.families:
        exported = export_family(family, options.setting, progress=progress)
        journal, failed = _measure_alone(family, exported, options, progress=progress)
        failures |= failed
        alone += alone_of(family, options, journal)
        for cascade in family.cascades:
            tools = tools_from(cascade, family, options.setting, exported=exported, progress=progress)
            tools = dataclasses.replace(
                tools,
                cells=partial(_cells, cascade, options.loads),
                settings=options.marks,
                startup_timeout_s=_STARTUP_S[options.setting.provider],
            )
            if (result := run_scenario(tools, options.bench, context, progress=progress)) is not None:
                measured.append(result)
        comparisons += _comparisons(family, exported, options, cells_of_all(measured), journal)
    return GpuResults(
        device=options.device,
        precision=options.setting.precision,
        small=options.small,
        bench=results_from(measured, options.bench, context, kind="gpu", command=command, failures=failures),
        alone=alone,
        comparisons=comparisons,
    )


def _cells(cascade: ImposedCascade, loads: GpuLoads, _: BenchRepository) -> list[Cell]:
    return cells_from(cascade, loads)


def _measure_alone(
    family: NetworkFamily, exported: Path, options: GpuOptions, *, progress: Progress
) -> tuple[Journal, dict[str, str]]:
    """The journal of the networks alone, and what could not be measured."""
    journal = Journal(
        options.output / f"alone-{family.name}.jsonl",
        {**options.marks, "members": list(family.sources)},
        resume=options.resume,
    )
    image = image_of(family)
    failures = measure_alone(
        exported,
        [options.setting.served(name) for name in family.sources],
        batches=options.loads.alone,
        rounds=options.rounds,
        seconds=min(options.seconds, _MOST_ALONE_S),
        providers=options.setting.providers,
        rows_at=lambda numbers: rows_at(image, numbers),
        journal=journal,
        progress=progress,
    )
    return journal, failures


def alone_of(family: NetworkFamily, options: GpuOptions, journal: Journal) -> list[NetworkRates]:
    """What each network of a family did alone, by batch size."""
    found = []
    for name in family.sources:
        member = options.setting.served(name)
        rates = {
            batch: rate
            for batch in options.loads.alone
            if (rate := best_rows_per_s(journal, member, [batch])) is not None
        }
        found.append(NetworkRates(family=family.name, member=member, rows_per_s=rates))
    return found


def _comparisons(
    family: NetworkFamily, exported: Path, options: GpuOptions, cells: pd.DataFrame, journal: Journal
) -> list[CascadeSpeedup]:
    served, batches = options.setting.served, options.loads.alone
    return [
        comparison_of(
            cascade,
            family,
            cells,
            loads=options.loads,
            macs=[float(manifest_of(exported, served(name)).macs) for name in cascade.members],
            alone=lambda name: best_rows_per_s(journal, served(name), batches),
        )
        for cascade in family.cascades
    ]


def windows_of(families: Sequence[NetworkFamily], loads: GpuLoads) -> tuple[int, int]:
    """How many windows a round has: served ones, and those of networks alone."""
    served = sum(len(cells_from(cascade, loads)) for family in families for cascade in family.cascades)
    return served, sum(len(family.sources) * len(loads.alone) for family in families)
