"""Every route of the digits repository at several concurrencies, interleaved in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.client.load import LoadResult, closed_loop
from orchestrator.client.over_grpc import AsyncGrpcClient
from orchestrator.local.digits import digits_split
from perf.results import Cell


def routes_in(repository: Path) -> list[str]:
    """Models of a repository a client would call: all but the ensembles' averaging steps."""
    names = (path.parent.name for path in sorted(repository.glob("*/config.pbtxt")))
    return [name for name in names if not name.endswith("_mean")]


async def measure(
    address: str,
    routes: Sequence[str],
    *,
    concurrencies: Sequence[int],
    rounds: int,
    requests: int,
    progress: Callable[[str], None],
) -> list[Cell]:
    """One cell per route and concurrency; each round visits every cell once, so drift hits all alike.

    Args:
        address: of the gRPC endpoint.
        routes: model names.
        concurrencies: requests in flight.
        rounds: timed passes per cell.
        requests: per pass; digits of the test split, over and over.
        progress: told before each pass.
    """
    images = digits_split("test").images
    rows = images[np.arange(requests) % len(images)]
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
