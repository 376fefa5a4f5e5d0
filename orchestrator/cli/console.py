"""What commands share: printing (results to stdout, progress to stderr), and the options to reach a server."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from orchestrator.client.endpoint import (
    CA,
    CERT,
    HEADERS,
    KEY,
    Endpoint,
    endpoints_from_addresses,
    headers_from_lines,
)
from orchestrator.errors import InputError
from orchestrator.serving.options import is_loopback

# Wide enough that a table in a file or a pipe loses nothing; a terminal knows its own width.
PIPE_WIDTH = 200
# How often a log gets a line of progress.
LINE_S = 30.0


def stdout_console() -> Console:
    """For tables and sentences."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def new_table(title: str, columns: Sequence[str], *, left: str) -> Table:
    """An empty table whose numbers stand right, and the column `left` left."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, justify="left" if name == left else "right")
    return table


def print_json(value: object) -> None:
    """Prints one JSON document to stdout; numpy values become plain ones, NaN and infinity null."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """JSON values of a nest of mappings, sequences and numpy values."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, where that is a terminal; yields a function that adds finished steps."""
    console = Console(stderr=True)
    counted = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


@contextmanager
def row_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """As `progress`, with rows per second; elsewhere than on a terminal a line of it now and then."""
    console = Console(stderr=True)
    counted = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted)
    # What an earlier run did comes with the first call, before anything is asked.
    started_s = said_s = time.monotonic()
    done, before = 0, None
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, rate="")

        def advance(steps: int) -> None:
            nonlocal done, before, said_s
            done += steps
            before = done if before is None else before
            now_s = time.monotonic()
            rate = (done - before) / max(1e-9, now_s - started_s)
            bar.update(task, advance=steps, rate=f"{rate:,.0f} rows/s")
            if not console.is_terminal and now_s - said_s >= LINE_S:
                said_s = now_s
                left_s = round((total - done) / rate) if rate else None
                left = "" if left_s is None else f", {timedelta(seconds=left_s)} left"
                typer.echo(f"{description}: {done:,} of {total:,} rows, {rate:,.0f} rows/s{left}", err=True)

        yield advance


def listed_names(words: Sequence[str] | None, *, once: bool = True) -> tuple[str, ...]:
    """The names in the words of an option, each of which may hold several with commas between them."""
    names = [name.strip() for word in words or () for name in word.split(",") if name.strip()]
    return tuple(dict.fromkeys(names) if once else names)


# Columns of tables.
TextOption = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of text, for the model's input of text; for several such inputs INPUT=COLUMN,INPUT=COLUMN.",
    ),
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME,...",
        help="Columns of numbers, one for each number of a row, in the model's order; if not named, all that are "
        "neither ids nor labels.",
        show_default=False,
    ),
]
MissingOption = Annotated[
    bool,
    typer.Option(
        "--missing-as-nan",
        help="Empty cells and nulls of inputs of floating-point numbers are NaN, as members know missing values; "
        "a cascade takes them that was planned with --non-finite pass.",
    ),
]
DeriveOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME,...",
        help="Models that make tensors which members read, such as a tokenizer.",
        show_default=False,
    ),
]
GRPC_URL, HTTP_URL = "127.0.0.1:8001", "127.0.0.1:8000"
ADDRESS = "host:port in clear, or grpcs://host:port with TLS."
SEVERAL = "Several servers of the same models: again, or with commas between them."
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca", help=f"PEM file of authorities to trust instead of the system's, or {CA}.", show_default=False
    ),
]
Cert = Annotated[
    Path | None, typer.Option("--cert", help=f"PEM file of a client certificate, or {CERT}.", show_default=False)
]
Key = Annotated[
    Path | None, typer.Option("--key", help=f"PEM file of its private key, or {KEY}.", show_default=False)
]
Headers = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        metavar='"NAME: VALUE"',
        help=f"Sent with every request, such as Authorization; secret ones are better in {HEADERS}, a line each.",
        show_default=False,
    ),
]


def endpoint_from_options(url: str, **options: Any) -> Endpoint:
    """As `endpoints_from_options`, for a command that asks one server."""
    endpoints = endpoints_from_options([url], **options)
    if len(endpoints) > 1:
        raise InputError("--url", got=f"{len(endpoints)} servers", expected="one, here")
    return endpoints[0]


def endpoints_from_options(
    urls: Sequence[str], *, ca: Path | None, cert: Path | None, key: Path | None, header: list[str] | None
) -> tuple[Endpoint, ...]:
    """The servers that the options mean; says on stderr where headers would go in clear.

    Raises:
        InputError: an address, a file or a header cannot be used.
    """
    headers = headers_from_lines(header or [], what="--header")
    endpoints = endpoints_from_addresses(urls, ca=ca, cert=cert, key=key, headers=headers)
    for endpoint in endpoints:
        if headers and endpoint.tls is None and endpoint.port and not is_loopback(endpoint.host):
            typer.echo(f"note: {endpoint} has no TLS, anybody on the way can read the headers", err=True)
    return endpoints
