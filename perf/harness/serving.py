"""One scenario being served: its cells, each one route under one load, its repository, its rows and its server."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orchestrator.errors import CommitteeError, DataError, ServingError
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from perf.harness.server_probe import ServerProcess, Statistics, server_processes
from perf.load.analyzer import AnalyzerBinary
from perf.load.inputs import next_prime, write_input_data
from perf.routes.recipes import RECIPES
from perf.routes.rendering import render_scenario
from perf.routes.scenario import bench_scenario
from perf.routes.spec import BenchRepository, BenchRoute, BenchRows, Scenario

BASE_CONCURRENCY = 16
BASE_DEFERRAL = 0.15
# Rates are shares of a route's capacity; this name stands for the rival that has most of it.
BEST_RIVAL = "best_rival"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One route under one load.

    Args:
        scenario: name of the members.
        route: "best_rival" until it is known which that is.
        sender: perf_analyzer keeping `concurrency` requests in flight ("closed"), our own client or
            perf_analyzer's asynchronous mode sending Poisson arrivals.
        concurrency: requests in flight, of a closed loop.
        share: of the capacity of `of_route`, the rate of Poisson arrivals; None for a closed loop.
        rate: requests per second, known once `of_route` was measured.
        batch: rows per request.
        deferral: share of rows that reach the last stage.
        earned: rows come as they are, and the plan alone decides how many reach it.
        long: measured in the longer windows of a run, because a tail is held against a target.
    """

    scenario: str
    route: str
    sender: Literal["closed", "poisson", "analyzer_poisson"] = "closed"
    concurrency: int | None = None
    share: float | None = None
    of_route: str | None = None
    rate: float | None = None
    batch: int = 1
    deferral: float = BASE_DEFERRAL
    earned: bool = False
    long: bool = False

    @property
    def load(self) -> str:
        """The load in short, without the route."""
        if self.sender == "closed":
            how = f"c{self.concurrency}"
        else:
            mark = "p" if self.sender == "poisson" else "pa-p"
            how = f"{mark}{100 * (self.share or 0):.0f}-{self.of_route}"
        mix = "earned" if self.earned else f"d{100 * self.deferral:.0f}"
        return f"{how}-b{self.batch}-{mix}"

    @property
    def key(self) -> str:
        """The name of the cell in results, the same in every run."""
        return f"{self.scenario}/{self.route}/{self.load}"

    @property
    def words(self) -> str:
        """The load for people."""
        if self.sender == "closed":
            how = f"{self.concurrency} in flight"
        else:
            rate = "" if self.rate is None else f" ({self.rate:.0f}/s)"
            by = ", perf_analyzer" if self.sender == "analyzer_poisson" else ""
            how = f"Poisson, {100 * (self.share or 0):.0f} % of {self.of_route}{rate}{by}"
        mix = "earned mix" if self.earned else f"{100 * self.deferral:.0f} % to the last stage"
        return f"{how}, batch {self.batch}, {mix}"


def reach_of(deferral: float, stages: int) -> tuple[float, ...]:
    """Share of rows that get to each stage: twice as many to the middle as to the last, 1.0 first."""
    if stages == 1:
        return (1.0,)
    return (1.0, *([min(1.0, 2 * deferral)] * (stages - 2)), deferral)


MOST_ROWS = 997
FEWEST_ROWS = 101
# A plan promises its speed-up for its whole pool; a draw of a thousand rows has an exit mix that promises up to a
# tenth more or less. This many are nearly all of the glyphs' 3,001 rows, and at 1 KiB each still a file of 4 MB.
EARNED_ROWS = 2903
# perf_analyzer reads the whole file before each window.
_MOST_INPUT_BYTES = 16 * 2**20

Progress = Callable[[str], None]
RowsFor = Callable[..., BenchRows]


@dataclass(frozen=True, kw_only=True)
class BenchTools:
    """What makes one scenario.

    Args:
        render: writes its repository into a folder.
        rows_for: makes its rows, as `BenchScenario.rows_for`.
        cells: what is measured on its repository.
        settings: what else a run that goes on must share.
        startup_timeout_s: longest wait for its models to be ready.
    """

    scenario: Scenario
    render: Callable[[Path], BenchRepository]
    rows_for: RowsFor
    cells: Callable[[BenchRepository], list[Cell]] = lambda _: []
    settings: Mapping[str, Any] = field(default_factory=dict)
    startup_timeout_s: float = 300.0


def tools_of(name: str) -> BenchTools:
    """A scenario by name.

    Raises:
        DataError: there is none of that name.
    """
    if name not in RECIPES:
        raise DataError("`scenario`", got=repr(name), expected=f"one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    # Members are made when the repository is rendered, not when a scenario is looked up.
    return BenchTools(
        scenario=recipe.scenario,
        render=lambda folder: render_scenario(bench_scenario(recipe), folder),
        rows_for=lambda **asked: bench_scenario(recipe).rows_for(**asked),
    )


def rows_in_file(row_bytes: int, *, most: int = MOST_ROWS) -> int:
    """How many rows an input file holds: a prime, fewer where rows are large."""
    fitting = min(most, max(FEWEST_ROWS, _MOST_INPUT_BYTES // max(row_bytes, 1)))
    return next_prime(int(fitting))


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """Rows of one deferral, the file of them that perf_analyzer reads, and the share that gets to each stage."""

    rows: BenchRows
    path: Path
    reach: tuple[float, ...]


class Inputs:
    """Makes the rows of a scenario, once per deferral, and writes them as tensors of a name into a folder."""

    def __init__(self, scenario: Scenario, rows_for: RowsFor, *, folder: Path, input_name: str, seed: int) -> None:
        self._scenario, self._rows_for, self._seed = scenario, rows_for, seed
        self._folder, self._input_name = folder, input_name
        self._files: dict[float, InputFile] = {}

    def at(self, deferral: float) -> InputFile:
        """The rows of which a share reaches the last stage; of an earned mix, always the same ones.

        Raises:
            DataError: the rows that were made do not have that share.
        """
        if deferral not in self._files:
            self._files[deferral] = self._write(deferral)
        return self._files[deferral]

    def _write(self, deferral: float) -> InputFile:
        stages = len(self._scenario.members)
        wanted = None if self._scenario.earned else reach_of(deferral, stages)
        rows = self._rows_for(reach=wanted, rows=FEWEST_ROWS, seed=self._seed)
        count = rows_in_file(rows.rows[0].nbytes, most=MOST_ROWS if wanted is not None else EARNED_ROWS)
        if count != FEWEST_ROWS:
            rows = self._rows_for(reach=wanted, rows=count, seed=self._seed)
        reach = rows.reach(stages)
        # A number of whole rows cannot have every share.
        if wanted is not None and np.abs(np.subtract(reach, wanted)).max() > 1 / len(rows.rows):
            got, expected = ([round(one, 3) for one in shares] for shares in (reach, wanted))
            raise DataError(f"rows of {self._scenario.name}", got=f"reach {got}", expected=expected)
        mix = "earned" if wanted is None else f"d{100 * deferral:.0f}"
        path = self._folder / f"{self._scenario.name}-{mix}.json"
        write_input_data(path, {self._input_name: rows.rows})
        return InputFile(rows=rows, path=path.resolve(), reach=reach)


@dataclass(frozen=True, kw_only=True)
class Served:
    """Everything a window needs: a server that is ready, its processes, rows, and what sends closed loops."""

    repository: BenchRepository
    server: EmbeddedServer
    statistics: Statistics
    analyzer: AnalyzerBinary
    inputs: Inputs
    processes: list[ServerProcess]

    @property
    def address(self) -> str:
        """host:port of the gRPC endpoint."""
        return self.server.grpc_address

    def models_of(self, route: BenchRoute) -> tuple[str, ...]:
        """Every Triton model that works for a route."""
        own = () if route.model is None else self.statistics.models_behind(route.model)
        return tuple(dict.fromkeys((*own, *route.members)))

    def require_alive(self, what: str, error: CommitteeError) -> None:
        """Raises ServingError from an error where the server has ended, so that nothing more is measured on it."""
        if self.server.wait(0) is not None:
            raise ServingError(
                f"embedded Triton ended during {what}", got=error, fix=f"its log is {self.server.log_path}"
            ) from error


@contextmanager
def serving(
    tools: BenchTools, output: Path, *, analyzer: AnalyzerBinary, seed: int, progress: Progress
) -> Iterator[Served]:
    """A scenario's repository, rendered and served while the block runs.

    Raises:
        CommitteeError: it cannot be rendered or served.
    """
    scenario = tools.scenario
    progress(f"rendering the routes of {scenario.name}")
    repository = tools.render(output / "repositories" / scenario.name)
    folder, name = output / "inputs", repository.input_name
    with (
        embedded(repository.folder, startup_timeout_s=tools.startup_timeout_s, progress=progress) as server,
        closing(Statistics(server.grpc_address)) as statistics,
    ):
        yield Served(
            repository=repository,
            server=server,
            statistics=statistics,
            analyzer=analyzer,
            inputs=Inputs(scenario, tools.rows_for, folder=folder, input_name=name, seed=seed),
            processes=server_processes(server.pid),
        )


def embedded(repository: Path, *, startup_timeout_s: float = 300.0, progress: Progress) -> EmbeddedServer:
    """A server of a repository, on free ports."""
    options = ServeOptions(
        repository=repository, http_port=0, grpc_port=0, metrics_port=0, startup_timeout_s=startup_timeout_s
    )
    return EmbeddedServer(options, progress=progress)
