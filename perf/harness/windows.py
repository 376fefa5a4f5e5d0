"""One window of one cell: the load is sent, what it cost the server is read, and a journal keeps the figures.

A window is a dictionary, a line of the journal and later a row of a data frame:

- `key` of the cell; `round`, 1 is the first that counts; `attempt`, one more for each window that replaced an
  earlier one, and `why` it did: "reach" or "spread", empty for a first one.
- `requests` answered and `failed` (refused, or not answered at all) in `seconds`; `requests_per_s`, `rows_per_s`.
- `p50_ms`, `p95_ms`, `p99_ms`; the same of easy and of hard requests as `easy_p50_ms`, ...; None where not known.
- `reach`, the share of rows that got to each stage, None where the answers do not say; `reach_off`, its largest
  difference from the share that the rows were made for.
- `cpu_s_per_request` of the server's processes, `client_cpu_s_per_request` of whatever sent the load.
- `messages_per_request` between the server and the processes of a route that has some: each batch of requests and
  each call of a member is one there and one back, and a deferred request that leaves its batch is one more; None
  for other routes.
- `mean_batch`, rows per call by model; `resident_bytes` and `shm_bytes` at the peak, of the server and the route's
  own processes.
- `lag_p50_ms`, `lag_p99_ms`: how late requests left, None in a closed loop; `rate`, the requests/s that
  were due.
"""

import asyncio
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import DataError
from perf.harness.server_probe import Counts, PeakMemory, counted_between, cpu_s
from perf.harness.serving import Cell, InputFile, Served
from perf.load.analyzer import AnalyzerLoad, run_analyzer
from perf.load.closed import Window, closed_tasks, closed_threads
from perf.load.poisson import PoissonLoad, run_poisson, send_asked
from perf.routes.spec import AskAsync, AskSync, BenchRoute

WindowRecord = dict[str, Any]
# A window whose rows got to a stage in another share than they were made for is measured again.
REACH_TOLERANCE = 0.01
_IDLE_S = 1.0
_IDLE_WAIT_S = 60.0
# Of a client that answers an open loop with blocking calls; what more is due waits for one of them.
_MOST_THREADS = 256
_ALWAYS = {"key", "round", "attempt", "why"}


def measure(
    cell: Cell, served: Served, *, round_number: int, seconds: float, attempt: int = 0, why: str = ""
) -> WindowRecord:
    """Sends a cell's load for a while.

    Args:
        cell: its rate, where it has a share of a capacity, is known.
        served: the scenario.
        round_number: kept in the window; Poisson arrivals are drawn anew in each round.
        seconds: of the window.
        attempt: kept in the window.
        why: kept in the window.

    Raises:
        CommitteeError: the load failed.
    """
    route = served.repository.routes[cell.route]
    inputs = served.inputs.at(cell.deferral)
    client_s = _client_cpu_s()
    with PeakMemory(served.processes, served.models_of(route)) as memory:
        before, used_s = served.statistics.counts(), cpu_s(served.processes)
        window = _send(cell, route, served, inputs=inputs, seconds=seconds, seed=round_number)
        after, used_s = served.statistics.counts(), cpu_s(served.processes) - used_s
    counted = counted_between(before, after)
    if window.failed:
        _wait_until_idle(served)
    # Processor time was spent on all answers, those included that the window leaves out.
    entry = route.model or route.members[0]
    rows = counted[entry].rows if entry in counted else window.requests * cell.batch
    if not route.cascade:
        window = replace(window, deferred=None, exits=None)
    reach, off = reach_off(window, inputs.reach)
    lag = (None, None) if window.lag_ms is None else np.percentile(window.lag_ms, [50, 99]).tolist()
    return {
        "key": cell.key,
        "round": round_number,
        "attempt": attempt,
        "why": why,
        "requests": window.requests,
        "failed": window.failed,
        "seconds": window.seconds,
        "requests_per_s": window.requests_per_s,
        "rows_per_s": window.requests_per_s * cell.batch,
        **window.percentiles_ms(),
        "reach": reach,
        "reach_off": off,
        "cpu_s_per_request": used_s / rows * cell.batch,
        "client_cpu_s_per_request": (_client_cpu_s() - client_s) / rows * cell.batch,
        "messages_per_request": messages_per_request(route, counted, window),
        "mean_batch": {name: one.rows / one.calls for name, one in counted.items() if one.calls},
        "resident_bytes": memory.peak.resident_bytes,
        "shm_bytes": memory.peak.shm_bytes,
        "lag_p50_ms": lag[0],
        "lag_p99_ms": lag[1],
        "rate": cell.rate,
    }


def reach_off(window: Window, wanted: tuple[float, ...]) -> tuple[list[float] | None, float]:
    """Reach of a window, and its largest difference from the wanted one (0 where it is not known)."""
    reach = window.reach(len(wanted))
    return (None, 0.0) if reach is None else (list(reach), float(np.abs(np.subtract(reach, wanted)).max()))


def messages_per_request(route: BenchRoute, counted: Mapping[str, Counts], window: Window) -> float | None:
    """Messages between the server and a route's processes, over its requests, from what was counted of each model.

    None for a route without processes.
    """
    if not route.instances or route.model is None or route.model not in counted:
        return None
    own = counted[route.model]
    calls = sum(counted[member].requests for member in route.members if member in counted)
    late = float(window.deferred.mean()) if route.answers_late and window.deferred is not None else 0.0
    return 2 * (own.calls + calls) / own.requests + late


def _send(
    cell: Cell, route: BenchRoute, served: Served, *, inputs: InputFile, seconds: float, seed: int
) -> Window:
    if route.client is not None:
        return _send_by_client(cell, route, served, inputs=inputs, seconds=seconds, seed=seed)
    assert route.model is not None, "a route has a model or a client"
    load: dict[str, Any] = {
        "model": route.model,
        "address": served.address,
        "batch": cell.batch,
        "seconds": seconds,
    }
    if cell.sender == "poisson":
        poisson = PoissonLoad(**load, rate=_rate(cell), seed=seed, drain_s=seconds)
        return run_poisson(poisson, inputs.rows.rows, input_name=served.repository.input_name)
    rate = _rate(cell) if cell.sender == "analyzer_poisson" else None
    closed = AnalyzerLoad(**load, input_data=inputs.path, concurrency=cell.concurrency or 1, rate=rate)
    return run_analyzer(served.analyzer, closed)


def _send_by_client(
    cell: Cell, route: BenchRoute, served: Served, *, inputs: InputFile, seconds: float, seed: int
) -> Window:
    rows, repository = inputs.rows.rows, served.repository
    closed: dict[str, Any] = {"concurrency": cell.concurrency or 1, "batch": cell.batch, "seconds": seconds}

    async def poisson(ask: AskAsync) -> Window:
        return await send_asked(ask, rows, rate=_rate(cell), seconds=seconds, seed=seed, batch=cell.batch)

    async def by_asyncio() -> Window:
        assert repository.asyncio_client is not None, "a repository with such a route brings its client"
        async with repository.asyncio_client(served.address) as ask:
            return await (poisson(ask) if cell.sender == "poisson" else closed_tasks(ask, rows, **closed))

    async def poisson_by_threads(ask: AskSync) -> Window:
        with ThreadPoolExecutor(_MOST_THREADS) as threads:
            loop = asyncio.get_running_loop()
            return await poisson(lambda part: loop.run_in_executor(threads, ask, part))

    if cell.sender == "analyzer_poisson":
        raise DataError(f"cell {cell.key}", got="a load its client cannot send", expected="another sender")
    if route.client == "asyncio":
        return asyncio.run(by_asyncio())
    assert repository.sync_client is not None, "a repository with such a route brings its client"
    with repository.sync_client(served.address) as ask:
        if cell.sender == "poisson":
            return asyncio.run(poisson_by_threads(ask))
        return closed_threads(ask, rows, **closed)


def _wait_until_idle(served: Served) -> None:
    """Waits until the server counts nothing more: an overloaded route's queue must not load the next window."""
    end_s = time.monotonic() + _IDLE_WAIT_S
    last, now = None, served.statistics.counts()
    while now != last and time.monotonic() < end_s:
        time.sleep(_IDLE_S)
        last, now = now, served.statistics.counts()


def _rate(cell: Cell) -> float:
    assert cell.rate is not None, "rates are resolved before they are sent"
    return cell.rate


def _client_cpu_s() -> float:
    """Processor seconds of this process and of perf_analyzers that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


class Journal:
    """The windows of a run in a file, one per line, so that an interrupted run can go on.

    The first line has the settings of the run. With `resume`, what the file holds already is kept.

    Raises:
        DataError: the file is of another run, or cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self._path = path
        self._settings = json.loads(json.dumps(dict(settings)))
        self.records: list[WindowRecord] = []
        if resume and path.is_file():
            self.records = self._read()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._settings) + "\n", encoding="utf-8")

    def add(self, record: WindowRecord) -> None:
        """Keeps a window."""
        self.records.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def of(self, key: str) -> list[WindowRecord]:
        """The windows of a cell that count: the last attempt of each round, in the order of the rounds."""
        ours = (record for record in self.records if record["key"] == key)
        by_round = {one["round"]: one for one in sorted(ours, key=lambda one: (one["round"], one["attempt"]))}
        return list(by_round.values())

    def _read(self) -> list[WindowRecord]:
        try:
            text = self._path.read_text(encoding="utf-8")
            # An interrupted run may have been cut off within its last line.
            whole = text[: text.rfind("\n") + 1]
            settings, *records = (json.loads(line) for line in whole.splitlines())
            if not isinstance(settings, dict):
                raise ValueError(f"its first line is {json.dumps(settings)[:40]}")
            for record in records:
                if missing := _ALWAYS - record.keys():
                    raise ValueError(f"a window without {', '.join(sorted(missing))}")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"journal {self._path}", got=error, fix="start afresh without `resume`") from error
        names = sorted({*settings, *self._settings})
        if differing := [name for name in names if settings.get(name) != self._settings.get(name)]:
            got = f"another run's (differs in {', '.join(differing)})"
            fix = "start afresh without `resume`"
            raise DataError(f"journal {self._path}", got=got, expected="this run's", fix=fix)
        if whole != text:
            # The next window must not be written onto the rest of a line.
            os.truncate(self._path, len(whole.encode()))
        return records
