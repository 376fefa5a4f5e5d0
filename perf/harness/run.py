"""A run: scenarios one after another, each with a server of its own and a frame of its cells, then results."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator import __version__
from orchestrator.errors import CommitteeError
from orchestrator.spec.processor import core_count
from perf.harness.cells import Cell
from perf.harness.frame import TargetVerdict, cell_frame, frame_from_rows, json_rows, write_tables, written_frame
from perf.harness.machine import BenchMachine, bench_machine, code_hash, cores_in_use_now, write_json
from perf.harness.rounds import Rounds
from perf.harness.serving import BenchTools, Progress, Served, serving
from perf.harness.windows import Journal, WindowRecord, measure
from perf.load.analyzer import AnalyzerBinary, find_analyzer
from perf.routes.spec import Scenario

_WARM_S = 1.0
_BETWEEN_S = 1.0  # perf_analyzer starts and reads its input file


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a person may choose.

    Args:
        full: one factor at a time around the base load instead of the twelve cells of the quick run.
        scenarios: names, in order.
        output: folder for everything the run writes.
        seconds: of each window.
        rounds: windows per cell.
        budget_s: of the whole run; no window is taken a second time where that would pass it.
        seed: of the rows.
        resume: go on with the windows an interrupted run left.
        only: a pattern as the shell has them; cells whose "route/load" does not match are left out.
    """

    full: bool
    scenarios: tuple[str, ...]
    output: Path
    seconds: float
    rounds: int
    budget_s: float
    seed: int = 0
    resume: bool = False
    only: str = "*"

    @property
    def kind(self) -> str:
        """The kind of run: "quick" or "full"."""
        return "full" if self.full else "quick"


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a run begins with.

    Args:
        analyzer: that sends closed loops.
        cores_in_use: by other work, before the run.
        start_s: on the monotonic clock.
    """

    analyzer: AnalyzerBinary
    cores_in_use: float
    start_s: float


def begin(progress: Progress) -> RunContext:
    """Looks at the machine and finds perf_analyzer.

    Raises:
        ServingError: there is no perf_analyzer that starts.
    """
    cores_in_use, start_s = cores_in_use_now(), time.monotonic()
    progress("looking for perf_analyzer")
    return RunContext(analyzer=find_analyzer(), cores_in_use=cores_in_use, start_s=start_s)


@dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """What one scenario came to.

    Args:
        scenario: its members.
        triton: version the server gives.
        cells: frame of its measured cells.
        failures: cells that could not be measured, and why.
        predicted_speedup: as in BenchRepository.
    """

    scenario: Scenario
    triton: str
    cells: pd.DataFrame
    failures: Mapping[str, str]
    predicted_speedup: float | None


def run_scenario(
    tools: BenchTools,
    options: RunOptions,
    context: RunContext,
    *,
    progress: Progress,
) -> ScenarioResult | None:
    """Serves one scenario and measures its cells; None where none of them is wanted.

    Windows are on disk as they come.

    Raises:
        CommitteeError: the run cannot go on.
    """
    with serving(tools, options.output, analyzer=context.analyzer, seed=options.seed, progress=progress) as served:
        wanted = tools.cells(served.repository)
        cells = [cell for cell in wanted if fnmatch(f"{cell.route}/{cell.load}", options.only)]
        if not cells:
            return None
        journal = _journal(cells, served, options, tools.settings)
        _warm(cells, served, progress)

        def take(cell: Cell, *, round_number: int, attempt: int, why: str) -> WindowRecord:
            try:
                return measure(
                    cell, served, round_number=round_number, seconds=options.seconds, attempt=attempt, why=why
                )
            except CommitteeError as error:
                served.require_alive(cell.key, error)
                raise

        measured = Rounds(
            take,
            journal,
            rounds=options.rounds,
            end_s=context.start_s + options.budget_s,
            window_s=options.seconds + _BETWEEN_S,
            progress=progress,
        ).run(cells)
        return ScenarioResult(
            scenario=tools.scenario,
            triton=served.server.version,
            cells=cell_frame(measured.cells, journal, routes=served.repository.routes, cores=core_count()),
            failures=measured.failures,
            predicted_speedup=served.repository.predicted_speedup,
        )


def _journal(cells: list[Cell], served: Served, options: RunOptions, settings: Mapping[str, Any]) -> Journal:
    scenario = served.repository.scenario
    return Journal(
        options.output / f"{options.kind}-{scenario.name}.jsonl",
        {
            "committee": __version__,
            "code": code_hash(),
            "triton": served.server.version,
            "scenario": scenario.name,
            "members": scenario.members,
            "cells": [cell.key for cell in cells],
            "seconds": options.seconds,
            "rounds": options.rounds,
            "seed": options.seed,
            **settings,
        },
        resume=options.resume,
    )


def _warm(cells: list[Cell], served: Served, progress: Progress) -> None:
    """A short load on each route: first calls allocate memory and open sessions."""
    for route in dict.fromkeys(cell.route for cell in cells if cell.route in served.repository.routes):
        progress(f"warming up {route}")
        cell = Cell(scenario=served.repository.scenario.name, route=route, concurrency=4)
        try:
            measure(cell, served, round_number=0, seconds=_WARM_S)
        except CommitteeError as error:
            # The cells of the route will fail too, and be reported then.
            served.require_alive(cell.key, error)


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything a run leaves.

    Args:
        kind: "quick" or "full".
        command: that repeats it.
        machine: it ran on.
        seconds: of each window.
        rounds: windows per cell.
        minutes: the run took.
        scenarios: title by name; a title says so where the exit mix is imposed.
        cells: frame of every cell.
        targets: what was held against them.
        failures: cells that could not be measured, and why.
    """

    kind: str
    command: str
    machine: BenchMachine
    seconds: float
    rounds: int
    minutes: float
    scenarios: dict[str, str]
    cells: pd.DataFrame
    targets: Sequence[TargetVerdict] = ()
    failures: dict[str, str] = field(default_factory=dict)

    def targets_as_json(self) -> list[dict[str, Any]]:
        """As verdict.json holds them; those of a busy machine say so."""
        rows = [one.as_json() for one in self.targets]
        if self.machine.is_busy:
            for row in rows:
                row["note"] = "; ".join(["the machine was busy, do not trust this", *filter(None, [row["note"]])])
        return rows

    def as_json(self) -> dict[str, Any]:
        """As results.json holds it."""
        return {
            "kind": self.kind,
            "command": self.command,
            "machine": self.machine.as_json(),
            "seconds": self.seconds,
            "rounds": self.rounds,
            "minutes": round(self.minutes, 2),
            "scenarios": self.scenarios,
            "cells": json_rows(written_frame(self.cells)),
            "targets": self.targets_as_json(),
            "failures": self.failures,
        }

    def write(self, folder: Path) -> list[Path]:
        """Writes results.json, results.csv and verdict.json and returns their paths."""
        return [*write_tables(self.as_json(), self.cells, folder), self.write_verdict(folder / "verdict.json")]

    def write_verdict(self, path: Path) -> Path:
        """Writes target, needed, measured, met and note of each target as JSON and returns the path."""
        write_json(self.targets_as_json(), path)
        return path


def cells_of_all(measured: Sequence[ScenarioResult]) -> pd.DataFrame:
    """The cells of several scenarios in one frame."""
    return pd.concat([one.cells for one in measured], ignore_index=True) if measured else frame_from_rows([])


def results_from(
    measured: Sequence[ScenarioResult],
    options: RunOptions,
    context: RunContext,
    *,
    kind: str,
    command: str,
    targets: Sequence[TargetVerdict] = (),
    failures: Mapping[str, str] | None = None,
) -> Results:
    """What scenarios came to, as results of a run that ends now."""
    imposed = " (exit mix imposed on members that did not earn it)"
    return Results(
        kind=kind,
        command=command,
        machine=bench_machine(
            triton=measured[-1].triton,
            perf_analyzer=context.analyzer.version,
            cores_in_use=context.cores_in_use,
        ),
        seconds=options.seconds,
        rounds=options.rounds,
        minutes=(time.monotonic() - context.start_s) / 60,
        scenarios={
            one.scenario.name: one.scenario.title + (imposed if one.scenario.imposed else "") for one in measured
        },
        cells=cells_of_all(measured),
        targets=targets,
        failures={**(failures or {}), **{key: text for one in measured for key, text in one.failures.items()}},
    )
