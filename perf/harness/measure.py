"""Measures one cell once: sends its load and reads what it cost the server meanwhile."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from perf.harness.cells import Cell
from perf.harness.record import Record, reach_off
from perf.harness.served import InputFile, Served
from perf.harness.server_probe import PeakMemory, counted_between, cpu_s
from perf.load.analyzer import AnalyzerLoad, run_analyzer
from perf.load.closed import closed_tasks, closed_threads
from perf.load.open import PoissonLoad, run_poisson, send_asked
from perf.load.window import Window
from perf.routes.spec import BenchRoute

_IDLE_S = 1.0
_IDLE_WAIT_S = 60.0


def measure(
    cell: Cell, served: Served, *, round_number: int, seconds: float, attempt: int = 0, why: str = ""
) -> Record:
    """Sends a cell's load for a while.

    Args:
        cell: which; a rate, where it has a share of one, is known.
        served: the scenario.
        round_number: kept in the record; Poisson arrivals are drawn anew in each round.
        seconds: of the window.
        attempt: kept in the record.
        why: kept in the record.

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
    # All that was answered, the parts the window leaves out included, is what the processor time was spent on.
    entry = route.model or route.members[0]
    rows = counted[entry].rows if entry in counted else window.requests * cell.batch
    if not route.cascade:
        window = replace(window, deferred=None, exits=None)
    reach, off = reach_off(window, inputs.reach)
    return Record(
        key=cell.key,
        round=round_number,
        attempt=attempt,
        why=why,
        requests=window.requests,
        failed=window.failed,
        seconds=window.seconds,
        requests_per_s=window.requests_per_s,
        rows_per_s=window.requests_per_s * cell.batch,
        latency_ms=window.percentiles_ms(),
        reach=reach,
        reach_off=off,
        cpu_s_per_request=used_s / rows * cell.batch,
        client_cpu_s_per_request=(_client_cpu_s() - client_s) / rows * cell.batch,
        mean_batch={name: one.rows / one.calls for name, one in counted.items() if one.calls},
        resident_bytes=memory.peak.resident_bytes,
        shm_bytes=memory.peak.shm_bytes,
        lag_ms=None if window.lag_ms is None else _pair(window.lag_ms),
        rate=cell.rate,
    )


def _send(
    cell: Cell, route: BenchRoute, served: Served, *, inputs: InputFile, seconds: float, seed: int
) -> Window:
    if route.client is not None:
        return _send_by_client(cell, route, served, inputs=inputs, seconds=seconds, seed=seed)
    assert route.model is not None, "a route has a model or a client"
    if cell.sender == "poisson":
        load = PoissonLoad(
            model=route.model,
            address=served.address,
            rate=_rate(cell),
            seconds=seconds,
            seed=seed,
            batch=cell.batch,
            drain_s=seconds,
        )
        return run_poisson(load, inputs.rows.rows, input_name=served.repository.input_name)
    return run_analyzer(
        served.analyzer,
        AnalyzerLoad(
            model=route.model,
            address=served.address,
            input_data=inputs.path,
            concurrency=cell.concurrency or 1,
            rate=_rate(cell) if cell.sender == "analyzer_poisson" else None,
            batch=cell.batch,
            seconds=seconds,
        ),
    )


def _send_by_client(
    cell: Cell, route: BenchRoute, served: Served, *, inputs: InputFile, seconds: float, seed: int
) -> Window:
    rows, repository = inputs.rows.rows, served.repository
    if route.client == "asyncio" and cell.sender != "analyzer_poisson":
        return asyncio.run(_send_by_asyncio(cell, served, inputs=inputs, seconds=seconds, seed=seed))
    if route.client != "sync" or cell.sender != "closed":
        raise DataError(f"cell {cell.key}", got="a load its client cannot send", expected="a closed loop")
    assert repository.sync_client is not None, "a repository with such a route brings its client"
    with repository.sync_client(served.address) as ask:
        return closed_threads(ask, rows, concurrency=cell.concurrency or 1, batch=cell.batch, seconds=seconds)


async def _send_by_asyncio(cell: Cell, served: Served, *, inputs: InputFile, seconds: float, seed: int) -> Window:
    rows, repository = inputs.rows.rows, served.repository
    assert repository.asyncio_client is not None, "a repository with such a route brings its client"
    async with repository.asyncio_client(served.address) as ask:
        if cell.sender == "poisson":
            return await send_asked(ask, rows, rate=_rate(cell), seconds=seconds, seed=seed, batch=cell.batch)
        return await closed_tasks(ask, rows, concurrency=cell.concurrency or 1, batch=cell.batch, seconds=seconds)


def _wait_until_idle(served: Served) -> None:
    """What an overloaded route still has in its queue must not be the next window's load."""
    end_s = time.monotonic() + _IDLE_WAIT_S
    last = served.statistics.counts()
    while time.monotonic() < end_s:
        time.sleep(_IDLE_S)
        now = served.statistics.counts()
        if now == last:
            return
        last = now


def _rate(cell: Cell) -> float:
    assert cell.rate is not None, "rates are resolved before they are sent"
    return cell.rate


def _pair(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [50, 99])
    return float(low), float(high)


def _client_cpu_s() -> float:
    """Processor seconds of this process and of perf_analyzers that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
