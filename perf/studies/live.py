"""`python -m perf live`: any models of a server at several concurrencies, without baselines, bounds or targets."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import typer
from rich.table import Table

from orchestrator.cli.console import (
    ADDRESS,
    Ca,
    Cert,
    ColumnsOption,
    Headers,
    Key,
    TextOption,
    endpoint_from_options,
    listed_names,
)
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.over_grpc import AsyncGrpcClient, closed_loop
from orchestrator.errors import InputError, RepositoryError
from orchestrator.pbtxt import CONFIG
from orchestrator.rows.blocks import ColumnNames
from perf.harness.machine import machine_here, write_json
from perf.harness.report import console_table, progress_shown, show
from perf.harness.serving import embedded
from perf.load.inputs import different_rows

CONCURRENCIES = (1, 4, 16, 64)
# Different rows in a pass at most; each is held in memory, and a photograph of 600 pixels takes a megabyte.
DIFFERENT_ROWS = 256
_FIGURES = ["requests_per_s", "p50_ms", "p99_ms"]


def live(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")] = Path("model_repository"),
    model: Annotated[
        list[str] | None, typer.Option(help="Models to measure, once for each; all if none.", show_default=False)
    ] = None,
    data: Annotated[str, typer.Option(help="What to send, as for `python -m perf inputs`.")] = "digits:test",
    text: TextOption = None,
    columns: ColumnsOption = None,
    url: Annotated[
        str | None, typer.Option(help=f"gRPC endpoint of a Triton, {ADDRESS} None starts the embedded one.")
    ] = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    output: Annotated[Path, typer.Option(help="Folder for results.json.")] = Path("build/live"),
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Timed passes per cell.")] = 3,
    requests: Annotated[int, typer.Option(min=10, help="Requests per pass.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure models at 1, 4, 16 and 64 requests in flight, on a server that runs or one started here.

    Examples:
        python -m perf live --rounds 5
        python -m perf live --url 127.0.0.1:8001 --model digits_cascade --model digits_large
    """
    server = None
    if url is not None:
        server = endpoint_from_options(url, ca=ca, cert=cert, key=key, header=header)
    with progress_shown() as tell, _server(repository, server) as (address, version):
        tell("reading rows")
        routes = model or routes_in(repository)
        if not routes:
            raise RepositoryError(f"model repository {repository}", got="no models", fix="name them with --model")
        at_most = min(requests, DIFFERENT_ROWS)
        named = ColumnNames(text=text, columns=listed_names(columns))
        tensors = different_rows(
            address, routes[0], data=data, repository=repository, at_most=at_most, columns=named
        )
        if len(tensors) > 1:
            expected = "a model of one; see `python -m perf inputs` and perf_analyzer"
            raise InputError(f"model {routes[0]}", got=f"{len(tensors)} inputs", expected=expected)
        rows = next(iter(tensors.values()))
        rows = rows[np.arange(requests) % len(rows)]
        passes = asyncio.run(measure(address, routes, rows=rows, rounds=rounds, progress=tell))
    document = document_from_passes(passes, triton_version=version)
    write_json(document, output / "results.json")
    show(document, table_from_passes(passes), as_json=as_json, written=[output / "results.json"])


@contextmanager
def _server(repository: Path, running: Endpoint | None) -> Iterator[tuple[str | Endpoint, str]]:
    """Address and version of the server that is asked."""
    if running is not None:
        yield running, f"at {running}"
        return
    with embedded(repository, startup_timeout_s=120.0, progress=lambda _: None) as server:
        yield server.grpc_address, server.version


def routes_in(repository: Path) -> list[str]:
    """Models of a repository a client would call: all but the ensembles' averaging steps."""
    names = (path.parent.name for path in sorted(repository.glob(f"*/{CONFIG}")))
    return [name for name in names if not name.endswith("_mean")]


async def measure(
    address: str | Endpoint,
    routes: Sequence[str],
    *,
    rows: npt.NDArray[Any],
    rounds: int,
    progress: Callable[[str], None],
) -> pd.DataFrame:
    """One row per timed pass; each round visits every model and concurrency once, so drift hits all alike.

    Args:
        address: of the gRPC endpoint.
        routes: model names.
        rows: (n, *dims), one request each in every pass.
        rounds: timed passes per model and concurrency.
        progress: told before each pass.
    """
    passes = []
    async with AsyncGrpcClient(address) as client:
        for number, concurrency, route in product(range(rounds + 1), CONCURRENCIES, routes):
            progress(f"round {number} of {rounds}: {route}, {concurrency} in flight")
            done = await closed_loop(partial(client.infer, route), rows, concurrency=concurrency)
            if number:  # round 0 warms up
                figures = (done.requests_per_s, done.percentile_ms(50), done.percentile_ms(99))
                passes.append((route, concurrency, *figures))
    return pd.DataFrame(passes, columns=["route", "concurrency", *_FIGURES])


def spread_of(figures: pd.Series) -> float:
    """(max - min) / median over the rounds: how far to trust the median."""
    return float((figures.max() - figures.min()) / figures.median())


def document_from_passes(passes: pd.DataFrame, *, triton_version: str) -> dict[str, Any]:
    """What is written to results.json: every round's figures by model and concurrency."""
    cells = [
        {
            "route": route,
            "concurrency": int(concurrency),
            **{name: cell[name].tolist() for name in _FIGURES},
            "spread": spread_of(cell.requests_per_s),
        }
        for (route, concurrency), cell in passes.groupby(["route", "concurrency"], sort=False)
    ]
    return {"machine": machine_here(), "triton_version": triton_version, "cells": cells}


def table_from_passes(passes: pd.DataFrame) -> Table:
    """Medians, one line per model and concurrency."""
    rows = [
        (
            route,
            str(concurrency),
            f"{cell.requests_per_s.median():.0f}",
            f"{100 * spread_of(cell.requests_per_s):.0f} %",
            f"{cell.p50_ms.median():.2f}",
            f"{cell.p99_ms.median():.2f}",
        )
        for (route, concurrency), cell in passes.groupby(["route", "concurrency"], sort=False)
    ]
    title = "medians over rounds; spread is (max - min) / median of req/s"
    return console_table(title, ["route"], ("in flight", "req/s", "spread", "p50 ms", "p99 ms"), rows)
