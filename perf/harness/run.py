"""A run: scenarios one after another, each with a server of its own and a frame of its cells, then results.

Rounds are interleaved. Closed loops come first, because Poisson rates are shares of what they show. Each round
visits every cell once. A window with the wrong mix of rows is taken again at once; after the rounds, a cell whose
rounds lie too far apart gets its farthest round again, once, and is called unstable if that did not help.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator import __version__
from orchestrator.errors import ClientError, CommitteeError, DataError
from orchestrator.spec.processor import core_count
from perf.harness.frame import (
    TargetVerdict,
    cell_frame,
    frame_from_rows,
    is_unstable,
    json_rows,
    judged_by,
    write_tables,
    written_frame,
)
from perf.harness.machine import BenchMachine, bench_machine, code_hash, cores_in_use_now, write_json
from perf.harness.serving import BASE_DEFERRAL, BEST_RIVAL, BenchTools, Cell, Progress, Served, serving
from perf.harness.windows import REACH_TOLERANCE, Journal, WindowRecord, measure
from perf.load.analyzer import AnalyzerBinary, find_analyzer
from perf.routes.spec import RIVALS, Scenario

_BETWEEN_S = 1.0  # perf_analyzer starts and reads its input file
# Takes a window of a cell, given `round_number`, `attempt` and `why`.
TakeWindow = Callable[..., WindowRecord]


def capacity_of(route: str, cells: Iterable[Cell], journal: Journal) -> float | None:
    """The most requests/s a route reached with single rows of the base mix; None where it was not measured."""
    medians = [
        float(np.median([one["requests_per_s"] for one in records]))
        for cell in cells
        if (cell.route, cell.sender, cell.batch, cell.deferral) == (route, "closed", 1, BASE_DEFERRAL)
        and (records := journal.of(cell.key))
    ]
    return max(medians, default=None)


def with_rates(cells: Iterable[Cell], closed: Sequence[Cell], journal: Journal) -> list[Cell]:
    """Cells with their rates, and with the best rival where that was asked for.

    Cells whose rate follows from something that was not measured are left out.
    """
    found = {rival: rate for rival in RIVALS if (rate := capacity_of(rival, closed, journal))}
    best = max(found, key=lambda rival: found[rival], default=None)

    def named(route: str | None) -> str | None:
        return best if route == BEST_RIVAL else route

    resolved = []
    for cell in cells:
        route, of_route = named(cell.route), named(cell.of_route)
        capacity = capacity_of(of_route, closed, journal) if of_route is not None else None
        if route is not None and capacity is not None and cell.share is not None:
            resolved.append(replace(cell, route=route, of_route=of_route, rate=cell.share * capacity))
    return list({cell.key: cell for cell in resolved}.values())


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How often a cell is measured, and for how many seconds each time."""

    rounds: int
    seconds: float

    @property
    def taken_s(self) -> float:
        """What one window takes, about."""
        return self.seconds + _BETWEEN_S


class Rounds:
    """Runs cells to the end.

    Args:
        take: takes a window.
        journal: where windows go; a round that it holds already is not measured again.
        windows: of a cell.
        end_s: by the clock; no window is taken a second time where that would end a run later.

    Attributes:
        failures: what went wrong with the cells that could not be measured, by key.
    """

    def __init__(
        self,
        take: TakeWindow,
        journal: Journal,
        *,
        windows: Callable[[Cell], Windows],
        end_s: float,
        progress: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._take_window, self._journal, self._windows = take, journal, windows
        self._end_s, self._progress, self._clock = end_s, progress, clock
        self.failures: dict[str, str] = {}
        # What the windows that every cell must have will still take.
        self._left_s = 0.0

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Measures every cell in every round; gives those that could be measured, their rates and routes known.

        Raises:
            ServingError: the server ended.
        """
        closed = [cell for cell in cells if cell.share is None]
        others = [cell for cell in cells if cell.share is not None]
        self._left_s = sum(one.rounds * one.taken_s for one in map(self._windows, cells))
        self._all_rounds(closed)
        opened = with_rates(others, closed, self._journal)
        for cell in others:
            if not with_rates([cell], closed, self._journal):
                self.failures[cell.key] = f"its rate is a share of what {cell.of_route} can do: not measured"
        self._all_rounds(opened)
        return [cell for cell in (*closed, *opened) if self._journal.of(cell.key)]

    def _all_rounds(self, cells: Sequence[Cell]) -> None:
        rounds = {cell.key: self._windows(cell).rounds for cell in cells}
        for number in range(1, max(rounds.values(), default=0) + 1):
            there = [cell for cell in cells if number <= rounds[cell.key]]
            # Forwards, then backwards: drift and heat hit all cells alike, and no cell always follows another.
            for cell in there if number % 2 else there[::-1]:
                self._visit(cell, number)
        for cell in cells:
            self._settle(cell)

    def _visit(self, cell: Cell, number: int) -> None:
        if any(record["round"] == number for record in self._journal.of(cell.key)):
            self._left_s -= self._windows(cell).taken_s
            return
        record = self._take(cell, number, attempt=0, why="")
        self._left_s -= self._windows(cell).taken_s
        if record is not None and record["reach_off"] > REACH_TOLERANCE and self._has_time(cell):
            self._take(cell, number, attempt=1, why="reach")

    def _settle(self, cell: Cell) -> None:
        records = self._journal.of(cell.key)
        again = any(one["key"] == cell.key and one["why"] == "spread" for one in self._journal.records)
        if again or not is_unstable(records, cell) or not self._has_time(cell):
            return
        values = np.array(judged_by(records, cell))
        farthest = records[int(np.argmax(np.abs(values - np.median(values))))]
        self._take(cell, farthest["round"], attempt=farthest["attempt"] + 1, why="spread")

    def _take(self, cell: Cell, number: int, *, attempt: int, why: str) -> WindowRecord | None:
        if cell.key in self.failures:
            return None
        # A load that fails may be sent once more; a baseline that fails again must not cost the others their hour.
        for text in (self._words(cell, number, why), self._words(cell, number, "it failed")):
            self._progress(text)
            try:
                record = self._take_window(cell, round_number=number, attempt=attempt, why=why)
            except (ClientError, DataError) as error:
                failure = str(error)
                continue
            self._journal.add(record)
            return record
        self.failures[cell.key] = failure
        return None

    def _has_time(self, cell: Cell) -> bool:
        """Whether a further window of a cell leaves time for those that every cell must have."""
        return self._clock() + self._left_s + self._windows(cell).taken_s <= self._end_s

    def _words(self, cell: Cell, number: int, why: str) -> str:
        again = f", again ({why})" if why else ""
        left = f"about {max(1, round(self._left_s / 60))} min left"
        return f"round {number} of {self._windows(cell).rounds}: {cell.route}, {cell.words}{again}; {left}"


_WARM_S = 1.0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a person may choose.

    Args:
        full: one factor at a time around the base load instead of the cells of the quick run.
        output: folder for everything the run writes.
        seconds: of each window.
        rounds: windows per cell.
        long_seconds: of each window of a cell that is measured for its tail; None for `seconds`.
        long_rounds: windows of such a cell; None for `rounds`.
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
    long_seconds: float | None = None
    long_rounds: int | None = None
    seed: int = 0
    resume: bool = False
    only: str = "*"

    def windows(self, cell: Cell) -> Windows:
        """The windows of a cell."""
        own = Windows(rounds=self.rounds, seconds=self.seconds)
        if not cell.long:
            return own
        return Windows(rounds=self.long_rounds or own.rounds, seconds=self.long_seconds or own.seconds)

    @property
    def kind(self) -> str:
        """The kind of run: "quick" or "full"."""
        return "full" if self.full else "quick"


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a run begins with: what sends closed loops, processors that other work keeps busy, and the time."""

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
    """What one scenario came to: the server's version, the frame of its cells, why others were not measured."""

    scenario: Scenario
    triton: str
    cells: pd.DataFrame
    failures: Mapping[str, str]
    predicted_speedup: float | None


def run_scenario(
    tools: BenchTools, options: RunOptions, context: RunContext, *, progress: Progress
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

        def take(cell: Cell, **about: Any) -> WindowRecord:
            try:
                return measure(cell, served, seconds=options.windows(cell).seconds, **about)
            except CommitteeError as error:
                served.require_alive(cell.key, error)
                raise

        end_s = context.start_s + options.budget_s
        rounds = Rounds(take, journal, windows=options.windows, end_s=end_s, progress=progress)
        measured = rounds.run(cells)
        return ScenarioResult(
            scenario=tools.scenario,
            triton=served.server.version,
            cells=cell_frame(measured, journal, routes=served.repository.routes, cores=core_count()),
            failures=rounds.failures,
            predicted_speedup=served.repository.predicted_speedup,
        )


def _journal(cells: list[Cell], served: Served, options: RunOptions, settings: Mapping[str, Any]) -> Journal:
    scenario = served.repository.scenario
    shared = {
        "committee": __version__,
        "code": code_hash(),
        "triton": served.server.version,
        "scenario": scenario.name,
        "members": scenario.members,
        "cells": [cell.key for cell in cells],
        **{name: getattr(options, name) for name in ("seconds", "rounds", "long_seconds", "long_rounds", "seed")},
        **settings,
    }
    return Journal(options.output / f"{options.kind}-{scenario.name}.jsonl", shared, resume=options.resume)


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
        command: that repeats it.
        scenarios: title by name; a title says so where the exit mix is imposed.
        cells: frame of every cell.
        failures: cells that could not be measured, and why.
    """

    kind: str
    command: str
    machine: BenchMachine
    seconds: float
    rounds: int
    long_seconds: float | None = None
    long_rounds: int | None = None
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
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "machine": asdict(self.machine),
            "minutes": round(self.minutes, 2),
            "cells": json_rows(written_frame(self.cells)),
            "targets": self.targets_as_json(),
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
            triton=measured[-1].triton, perf_analyzer=context.analyzer.version, cores_in_use=context.cores_in_use
        ),
        seconds=options.seconds,
        rounds=options.rounds,
        long_seconds=options.long_seconds,
        long_rounds=options.long_rounds,
        minutes=(time.monotonic() - context.start_s) / 60,
        scenarios={
            one.scenario.name: one.scenario.title + (imposed if one.scenario.imposed else "") for one in measured
        },
        cells=cells_of_all(measured),
        targets=targets,
        failures={**(failures or {}), **{key: text for one in measured for key, text in one.failures.items()}},
    )
