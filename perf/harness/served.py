"""One scenario being served: its repository, its routes, its rows, and a server with all of it loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from orchestrator.errors import DataError
from orchestrator.serving.process import EmbeddedServer
from perf.harness.cells import reach_of
from perf.harness.server_probe import ServerProcess, Statistics, server_processes
from perf.load.analyzer_binary import AnalyzerBinary
from perf.load.inputs import next_prime, write_input_data
from perf.routes.spec import BenchRepository, BenchRoute, BenchRows, Scenario

MOST_ROWS = 997
FEWEST_ROWS = 101
# What an earned plan promises is of its whole pool, and draws of a thousand rows promise up to a tenth more or
# less. This many are nearly all of the glyphs' 3,001 rows, and of 1 KiB each still a file of 4 MB.
EARNED_ROWS = 2903
# perf_analyzer reads the whole file before each window.
_MOST_INPUT_BYTES = 16 * 2**20

RowsFor = Callable[..., BenchRows]


def rows_in_file(row_bytes: int, *, most: int = MOST_ROWS) -> int:
    """How many rows an input file holds: a prime, fewer where rows are large."""
    fitting = min(most, max(FEWEST_ROWS, _MOST_INPUT_BYTES // max(row_bytes, 1)))
    return next_prime(int(fitting))


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """Rows of one deferral.

    Args:
        rows: what they are and where they exit.
        path: the same for perf_analyzer.
        reach: share of rows that get to each stage.
    """

    rows: BenchRows
    path: Path
    reach: tuple[float, ...]


class Inputs:
    """Makes the rows of a scenario, once per deferral.

    Args:
        scenario: whose rows.
        rows_for: makes them.
        folder: for the files.
        input_name: of the tensor.
        seed: of the rows.
    """

    def __init__(self, scenario: Scenario, rows_for: RowsFor, *, folder: Path, input_name: str, seed: int) -> None:
        self._scenario = scenario
        self._rows_for = rows_for
        self._folder = folder
        self._input_name = input_name
        self._seed = seed
        self._made: dict[float, InputFile] = {}

    def at(self, deferral: float) -> InputFile:
        """The rows of which a share reaches the last stage; of an earned mix, always the same ones.

        Raises:
            DataError: the rows that were made do not have that share.
        """
        if deferral not in self._made:
            self._made[deferral] = self._make(deferral)
        return self._made[deferral]

    def _make(self, deferral: float) -> InputFile:
        stages = len(self._scenario.members)
        wanted = None if self._scenario.earned else reach_of(deferral, stages)
        few = self._rows_for(self._scenario, reach=wanted, rows=FEWEST_ROWS, seed=self._seed)
        count = rows_in_file(few.rows[0].nbytes, most=MOST_ROWS if wanted is not None else EARNED_ROWS)
        rows = few
        if count != FEWEST_ROWS:
            rows = self._rows_for(self._scenario, reach=wanted, rows=count, seed=self._seed)
        reach = rows.reach(stages)
        # Whole rows cannot hit every share.
        if wanted is not None and max(
            abs(one - other) for one, other in zip(reach, wanted, strict=True)
        ) > 1 / len(rows.rows):
            raise DataError(
                f"rows of {self._scenario.name}",
                got=f"reach {[round(one, 3) for one in reach]}",
                expected=[round(one, 3) for one in wanted],
            )
        mix = "earned" if wanted is None else f"d{100 * deferral:.0f}"
        path = self._folder / f"{self._scenario.name}-{mix}.json"
        write_input_data(path, rows.rows, input_name=self._input_name)
        return InputFile(rows=rows, path=path.resolve(), reach=reach)


@dataclass(frozen=True, kw_only=True)
class Served:
    """Everything a window needs.

    Args:
        repository: what is served.
        server: ready.
        statistics: of the server.
        analyzer: sends closed loops.
        inputs: rows by deferral.
    """

    repository: BenchRepository
    server: EmbeddedServer
    statistics: Statistics
    analyzer: AnalyzerBinary
    inputs: Inputs
    processes: list[ServerProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.processes.extend(server_processes(self.server.pid))

    @property
    def address(self) -> str:
        """host:port of the gRPC endpoint."""
        return self.server.grpc_address

    def models_of(self, route: BenchRoute) -> tuple[str, ...]:
        """Every Triton model that works for a route."""
        own = () if route.model is None else self.statistics.models_behind(route.model)
        return tuple(dict.fromkeys((*own, *route.members)))


def interleaved(count: int, round_number: int) -> Sequence[int]:
    """The order of the cells in a round: forwards, then backwards.

    Drift and heat hit all cells alike, and no cell always follows the same neighbour.
    """
    order = np.arange(count)
    return [int(index) for index in (order if round_number % 2 else order[::-1])]


def seconds_left(done: int, total: int, elapsed_s: float) -> float:
    """What is still to come at the pace so far; NaN before anything is done."""
    return elapsed_s / done * (total - done) if done else math.nan
