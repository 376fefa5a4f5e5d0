"""Models of a server at several concurrencies, interleaved in rounds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.cli.pictures import picture_reader
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.load import LoadResult, closed_loop
from orchestrator.client.over_grpc import AsyncGrpcClient, GrpcClient
from orchestrator.errors import DataError
from orchestrator.rows.labels import MemberClasses
from orchestrator.rows.opening import row_source
from perf.studies.live.results import Cell

# Different rows in a pass at most; each is held in memory, and a photograph of 600 pixels takes a megabyte.
DIFFERENT_ROWS = 256


def routes_in(repository: Path) -> list[str]:
    """Models of a repository a client would call: all but the ensembles' averaging steps."""
    names = (path.parent.name for path in sorted(repository.glob("*/config.pbtxt")))
    return [name for name in names if not name.endswith("_mean")]


def rows_for(
    address: str | Endpoint, route: str, *, data: str, repository: Path, requests: int
) -> npt.NDArray[Any]:
    """Rows to send, a number of different ones over and over.

    Args:
        address: of the gRPC endpoint.
        route: a model; all others must take the same rows.
        data: as for `committee record`; labels are not looked at.
        repository: that says how pictures become rows.
        requests: rows to give.

    Raises:
        CommitteeError: the data cannot be read, or does not fit the model.
    """
    rows = different_rows(address, route, data=data, repository=repository, at_most=min(requests, DIFFERENT_ROWS))
    return rows[np.arange(requests) % len(rows)]


def different_rows(
    address: str | Endpoint, route: str, *, data: str, repository: Path, at_most: int
) -> npt.NDArray[Any]:
    """Rows of data, evenly taken from all of it.

    Args:
        address: of the gRPC endpoint.
        route: a model.
        data: as for `committee record`; labels are not looked at.
        repository: that says how pictures become rows.
        at_most: rows to give.

    Raises:
        CommitteeError: the data cannot be read, or does not fit the model.
    """
    with GrpcClient(address) as client:
        info = client.metadata(route)
    reader = picture_reader(repository, info)
    # Any number of classes is fine, since nobody asks which one a row is of.
    classes = MemberClasses(count=sys.maxsize, by_order=True)
    source = row_source(data, info, classes=classes, read_picture=reader)
    count = min(at_most, len(source.ids))
    wanted = np.arange(count) * len(source.ids) // count
    loaded = [piece.load() for piece in source.pieces(wanted, 0, count)]
    rows = np.concatenate([one.rows for one in loaded if len(one.positions)] or [np.zeros(0)])
    if not len(rows):
        raise DataError(f"data {data}", got="no row that can be read", expected="at least one")
    return rows


async def measure(
    address: str | Endpoint,
    routes: Sequence[str],
    *,
    rows: npt.NDArray[Any],
    concurrencies: Sequence[int],
    rounds: int,
    progress: Callable[[str], None],
) -> list[Cell]:
    """One cell per route and concurrency; each round visits every cell once, so drift hits all alike.

    Args:
        address: of the gRPC endpoint.
        routes: model names.
        rows: (n, *dims), one request each in every pass.
        concurrencies: requests in flight.
        rounds: timed passes per cell.
        progress: told before each pass.
    """
    passes: dict[tuple[str, int], list[LoadResult]] = {}
    async with AsyncGrpcClient(address) as client:
        for number in range(rounds + 1):
            for concurrency in concurrencies:
                for route in routes:
                    progress(f"round {number} of {rounds}: {route}, {concurrency} in flight")

                    async def ask(row: Any, name: str = route) -> object:
                        return await client.infer(name, row)

                    done = await closed_loop(ask, rows, concurrency=concurrency)
                    if number:  # round 0 warms up
                        passes.setdefault((route, concurrency), []).append(done)
    return [
        Cell(
            route=route,
            concurrency=concurrency,
            requests_per_s=tuple(one.requests_per_s for one in results),
            p50_ms=tuple(one.percentile_ms(50) for one in results),
            p99_ms=tuple(one.percentile_ms(99) for one in results),
        )
        for (route, concurrency), results in passes.items()
    ]
