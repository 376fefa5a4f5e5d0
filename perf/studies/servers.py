"""`python -m perf servers`: three servers of one cascade under load, while one of them has a fault.

A closed loop of requests goes through one client. The answers of the pass without a fault are what those of the
others are held to, so that a row lost, answered twice or answered for another one would show.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from export.commands.console import END, text_with_block
from orchestrator.client.over_grpc import AsyncGrpcClient, in_order
from orchestrator.files import write_file
from orchestrator.rows.digits import digits_split
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from perf.harness.machine import write_json
from perf.harness.report import console_table, markdown_table, progress_shown, show

BEGIN = "<!-- begin: python -m perf servers -->"
MODEL = "digits_cascade"
SERVERS, IN_FLIGHT, ROWS_PER_REQUEST = 3, 16, 4
FAULTS = ("none", "silent (SIGSTOP)", "stopped gracefully", "killed (SIGKILL)")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of requests over the servers.

    Args:
        fault: of the first server, from a third of the requests on.
        requests: sent.
        lost: of them, without an answer.
        other: with other answers than in the pass without a fault.
        answered: by each server; their sum is the number of answers, so none came twice.
        moved: requests that a server failed, or held in silence, and that a neighbour answered.
        median_ms: wait for an answer.
        longest_ms: likewise.
    """

    fault: str
    requests: int
    lost: int
    other: int
    answered: tuple[int, ...]
    moved: tuple[int, ...]
    median_ms: float
    longest_ms: float


@contextmanager
def three_servers(repository: Path) -> Iterator[list[EmbeddedServer]]:
    """Embedded servers of one repository on free ports."""
    options = ServeOptions(repository=repository, http_port=0, grpc_port=0, metrics_port=0)
    servers: list[EmbeddedServer] = []
    try:
        for _ in range(SERVERS):
            servers.append(_started(options))
        yield servers
    finally:
        for server in servers:
            server.kill()


def _started(options: ServeOptions) -> EmbeddedServer:
    server = EmbeddedServer(options)
    server.start()
    return server


def passes(
    servers: list[EmbeddedServer], *, requests: int, tell: Callable[[str], None] = lambda _: None
) -> list[Pass]:
    """A pass for each fault of the first server, which is another one after it has stopped."""
    images = digits_split("test").images
    places = np.arange(requests * ROWS_PER_REQUEST).reshape(requests, -1) % len(images)
    found, expected = list[Pass](), np.empty(0, np.int64)
    for fault in FAULTS:
        tell(fault)
        first = servers[0]
        pid = first.pid
        begin: Callable[[], Any] = {
            FAULTS[0]: lambda: None,
            FAULTS[1]: lambda: os.kill(pid, signal.SIGSTOP),  # noqa: B023 - called within this turn
            FAULTS[2]: first.stop,
            FAULTS[3]: lambda: os.kill(pid, signal.SIGKILL),  # noqa: B023
        }[fault]
        addresses = [server.grpc_address for server in servers]
        try:
            labels, waits_s, client = asyncio.run(_pass(addresses, images, places, begin))
        finally:
            if fault == FAULTS[1]:
                os.kill(pid, signal.SIGCONT)
        if fault == FAULTS[0]:
            expected = labels
        if fault == FAULTS[2]:
            servers[0] = _started(first.options)
        has_answer = (labels >= 0).all(axis=1)
        found.append(
            Pass(
                fault=fault,
                requests=requests,
                lost=int((~has_answer).sum()),
                other=int((labels != expected)[has_answer].any(axis=1).sum()),
                # Its metadata and configuration were asked for as well.
                answered=tuple(one.answered for one in client.servers),
                moved=tuple(one.failed for one in client.servers),
                median_ms=1000 * float(np.median(waits_s)),
                longest_ms=1000 * float(waits_s.max()),
            )
        )
    return found


async def _pass(
    addresses: Sequence[str],
    images: npt.NDArray[Any],
    places: npt.NDArray[np.int64],
    begin: Callable[[], Any],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], AsyncGrpcClient]:
    """Labels of all requests, -1 where one has no answer, and how long each waited."""
    labels, waits_s = np.full(places.shape, -1), np.zeros(len(places))
    faults = []

    async with AsyncGrpcClient(addresses, timeout_s=60.0) as client:
        await client.metadata(MODEL)
        for server in client.servers:
            server.answered = server.failed = 0

        async def ask(number: int) -> None:
            if number == len(places) // 3:
                faults.append(asyncio.ensure_future(asyncio.to_thread(begin)))
            start_s = time.monotonic()
            answers = await client.infer(MODEL, images[places[number]])
            labels[number], waits_s[number] = answers.label, time.monotonic() - start_s

        await in_order([partial(ask, number) for number in range(len(places))], in_flight=IN_FLIGHT)
        await asyncio.gather(*faults)
    return labels, waits_s, client


def table_of(found: Sequence[Pass]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, the same for the terminal and the page."""
    head = [
        "first server",
        "requests",
        "lost",
        "other answer",
        "share of each",
        "moved",
        "median ms",
        "longest ms",
    ]
    rows = [
        [
            one.fault,
            f"{one.requests:,}",
            str(one.lost),
            str(one.other),
            " / ".join(f"{100 * count / sum(one.answered):.0f} %" for count in one.answered),
            str(sum(one.moved)),
            f"{one.median_ms:.1f}",
            f"{one.longest_ms:,.0f}",
        ]
        for one in found
    ]
    return head, rows


def servers(
    requests: Annotated[int, typer.Option(min=300, help="In each pass.")] = 6000,
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")] = Path("model_repository"),
    output: Annotated[Path, typer.Option(help="Folder for servers.json.")] = Path("build/servers"),
    page: Annotated[Path, typer.Option(help="Page that gets the table.")] = Path("docs/serving.md"),
    as_json: Annotated[bool, typer.Option("--json", help="Print servers.json.")] = False,
) -> None:
    """Ask three servers of the digits cascade through one client while one is silent, stops or is killed.

    Example: python -m perf servers --requests 3000
    """
    with progress_shown() as tell, three_servers(repository) as running:
        found = passes(running, requests=requests, tell=tell)
    head, rows = table_of(found)
    documents = [asdict(one) for one in found]
    write_json(documents, output / "servers.json")
    block = "\n".join([BEGIN, *markdown_table(head, rows), END])
    write_file(page, text_with_block(page.read_text(encoding="utf-8"), BEGIN, block, subject=page.name))
    title = f"{SERVERS} servers, {IN_FLIGHT} requests in flight, {ROWS_PER_REQUEST} rows each"
    show(documents, console_table(title, head[:1], head[1:], rows), as_json=as_json, written=[page])
