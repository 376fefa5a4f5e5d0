"""A whole run: scenarios one after another, each with a server of its own, then results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.errors import CommitteeError, InputError, ServingError
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec.processor import core_count
from perf.harness.cells import Cell
from perf.harness.machine import bench_machine, code_hash, cores_in_use_now
from perf.harness.measure import measure
from perf.harness.record import Journal, Record
from perf.harness.results import Results
from perf.harness.rounds import Measure, Rounds
from perf.harness.scenarios import BenchTools, cells_of, tools_of
from perf.harness.served import Inputs, Served
from perf.harness.server_probe import Statistics
from perf.harness.summary import Summary, summaries_of
from perf.load.analyzer_binary import AnalyzerBinary, find_analyzer
from perf.studies.bench.leak_file import growth_from
from perf.studies.bench.targets import TargetVerdict, verdicts

Progress = Callable[[str], None]
_WARM_S = 1.0
_BETWEEN_S = 1.0  # perf_analyzer starting, its file being read


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
        resume: go on with the records an interrupted run left.
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


@dataclass
class Found:
    """What scenarios add up to; `run_scenario` fills it."""

    triton: str = ""
    titles: dict[str, str] = field(default_factory=dict)
    summaries: list[Summary] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)
    predicted_speedup: float | None = None


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


def results_from(
    found: Found,
    options: RunOptions,
    begun: RunContext,
    *,
    kind: str,
    command: str,
    verdicts: Sequence[TargetVerdict],
) -> Results:
    """What scenarios added up to, as results of a run that ends now.

    Args:
        found: of all scenarios.
        options: of the run.
        begun: how it began.
        kind: of run.
        command: what a person typed.
        verdicts: on targets.
    """
    return Results(
        kind=kind,
        command=command,
        machine=bench_machine(
            triton=found.triton, perf_analyzer=begun.analyzer.version, cores_in_use=begun.cores_in_use
        ),
        seconds=options.seconds,
        rounds=options.rounds,
        minutes=(time.monotonic() - begun.start_s) / 60,
        scenarios=found.titles,
        summaries=found.summaries,
        verdicts=verdicts,
        failures=found.failures,
    )


def run_bench(options: RunOptions, *, command: str, progress: Progress) -> Results:
    """Measures everything and returns the results; records are on disk as they come.

    Args:
        options: of the run.
        command: what a person typed, for the results.
        progress: told what happens.

    Raises:
        CommitteeError: the run cannot go on.
    """
    scenarios = [tools_of(name) for name in options.scenarios]
    begun, found = begin(progress), Found()
    for tools in scenarios:
        run_scenario(
            tools,
            options,
            analyzer=begun.analyzer,
            found=found,
            end_s=begun.start_s + options.budget_s,
            progress=progress,
        )
    if not found.titles:
        raise InputError("--only", got=repr(options.only), expected="a pattern of cells, such as 'committee/c16*'")
    judged = verdicts(
        found.summaries,
        members=found.members.get("three_cnn", 3),
        predicted_speedup=found.predicted_speedup,
        leak=growth_from(options.output / "leak.json"),
    )
    return results_from(found, options, begun, kind=options.kind, command=command, verdicts=judged)


def run_scenario(
    tools: BenchTools,
    options: RunOptions,
    *,
    analyzer: AnalyzerBinary,
    found: Found,
    end_s: float,
    progress: Progress,
) -> None:
    """Serves one scenario, measures its cells and adds what was found.

    Args:
        tools: of the scenario.
        options: of the run.
        analyzer: that sends closed loops.
        found: is added to.
        end_s: by the monotonic clock; no window is taken a second time where that would end a run later.
        progress: told what happens.

    Raises:
        CommitteeError: the run cannot go on.
    """
    scenario = tools.scenario
    with serving(tools, options.output, analyzer=analyzer, seed=options.seed, progress=progress) as served:
        cells = [
            cell
            for cell in (tools.cells or partial(cells_of, full=options.full))(served.repository)
            if fnmatch(f"{cell.route}/{cell.load}", options.only)
        ]
        if not cells:
            return
        journal = _journal(cells, served, options, tools.settings)
        _warm(cells, served, progress)
        outcome = Rounds(
            _measure_in(served, options.seconds),
            journal,
            rounds=options.rounds,
            end_s=end_s,
            window_s=options.seconds + _BETWEEN_S,
            progress=progress,
        ).run(cells)
        found.summaries += summaries_of(
            outcome.cells, journal, routes=served.repository.routes, cores=core_count()
        )
        found.triton = served.server.version
        found.predicted_speedup = served.repository.predicted_speedup or found.predicted_speedup
    found.failures |= outcome.failures
    imposed = " (exit mix imposed on members that did not earn it)" if scenario.imposed else ""
    found.titles[scenario.name] = scenario.title + imposed
    found.members[scenario.name] = len(scenario.members)


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


def _measure_in(served: Served, seconds: float) -> Measure:
    def take(cell: Cell, *, round_number: int, attempt: int, why: str) -> Record:
        try:
            return measure(cell, served, round_number=round_number, seconds=seconds, attempt=attempt, why=why)
        except CommitteeError as error:
            _require_alive(served, cell, error)
            raise

    return take


@contextmanager
def serving(
    tools: BenchTools, output: Path, *, analyzer: AnalyzerBinary, seed: int, progress: Progress
) -> Iterator[Served]:
    """A scenario's repository, rendered and served while the block runs.

    Args:
        tools: of the scenario.
        output: folder; the repository and input files go into sub-folders.
        analyzer: that sends closed loops.
        seed: of the rows.
        progress: told what happens.

    Raises:
        CommitteeError: it cannot be rendered or served.
    """
    scenario = tools.scenario
    progress(f"rendering the routes of {scenario.name}")
    repository = tools.render(output / "repositories" / scenario.name)
    options = ServeOptions(
        repository=repository.folder,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        startup_timeout_s=tools.startup_timeout_s,
    )
    with EmbeddedServer(options, progress=progress) as server:
        statistics = Statistics(server.grpc_address)
        try:
            yield Served(
                repository=repository,
                server=server,
                statistics=statistics,
                analyzer=analyzer,
                inputs=Inputs(
                    scenario, tools.rows_for, folder=output / "inputs", input_name=repository.input_name, seed=seed
                ),
            )
        finally:
            statistics.close()


def _warm(cells: list[Cell], served: Served, progress: Progress) -> None:
    """A short load on each route: first calls allocate memory and open sessions."""
    for route in dict.fromkeys(cell.route for cell in cells if cell.route in served.repository.routes):
        progress(f"warming up {route}")
        cell = Cell(scenario=served.repository.scenario.name, route=route, concurrency=4)
        try:
            measure(cell, served, round_number=0, seconds=_WARM_S)
        except CommitteeError as error:
            # Its own cells will fail and be reported as failed.
            _require_alive(served, cell, error)


def _require_alive(served: Served, cell: Cell, error: CommitteeError) -> None:
    if served.server.wait(0) is not None:
        raise ServingError(
            f"embedded Triton ended during {cell.key}", got=error, fix=f"its log is {served.server.log_path}"
        ) from error
