"""`committee demo`: serve the digits, or text, and put every route side by side."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from orchestrator.cli.console import ADDRESS, Ca, Cert, Headers, Key, endpoint_from_options
from orchestrator.cli.demo_routes import (
    DemoCommittee,
    sentences_from_report,
    served_report,
    table_from_report,
    write_report,
)
from orchestrator.cli.demo_text import text_committee
from orchestrator.errors import InputError
from orchestrator.recording.job import records_of
from orchestrator.repository.index import plan_of
from orchestrator.rows.digits import digits_split

CASCADE, ENSEMBLE = "digits_cascade", "digits_ensemble"
_DIGITS_SPEED = (
    "Speed is left out: calling one of these tiny networks costs more than running it, so a cascade of them "
    "saves no time (docs/when.md)."
)
# What is served, and where what is made goes, of the digits and of text.
_REPOSITORIES = (Path("model_repository"), Path("perf/text/model_repository"))
_OUTPUTS = (Path("build/demo"), Path("build/demo_text"))
# Passes over the rows; the text members take milliseconds per row.
_ROUNDS = (3, 1)


def demo(
    text: Annotated[
        bool, typer.Option("--text", help="Plan, render and serve a committee of texts instead of the digits.")
    ] = False,
    repository: Annotated[
        Path | None,
        typer.Option(
            help=f"Model repository to serve, {_REPOSITORIES[0]}; with --url the one that is served there; with "
            f"--text the one of the members, {_REPOSITORIES[1]}.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help=f"gRPC endpoint of a Triton that serves it already, {ADDRESS} None starts one."),
    ] = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help=f"Folder for report.json and frontier.png, {_OUTPUTS[0]}; with --text also for what is served, "
            f"{_OUTPUTS[1]}.",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests in flight.")] = 16,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, max=50, help="Timed passes over the rows per route, 3; with --text 1.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the table.")] = False,
) -> None:
    """Serve the digits cascade, or a cascade of texts, ask every route every test row, and compare.

    Example: committee demo --text --concurrency 32
    """
    running = None
    if url is not None:
        if text:
            got, fix = "--text too, which serves what it has planned", "leave one of them out"
            raise InputError("--url", got=got, fix=fix)
        running = endpoint_from_options(url, ca=ca, cert=cert, key=key, header=header)
    repository, output = repository or _REPOSITORIES[text], output or _OUTPUTS[text]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    people = Console(stderr=True)
    with Progress(*columns, console=people, transient=True, disable=not people.is_terminal) as progress:
        tell: Callable[[str], None] = partial(_tell, progress, progress.add_task("replaying the plan offline"))
        committee = text_committee(repository, output, tell) if text else _digits(repository)
        settings = {"concurrency": concurrency, "rounds": rounds or _ROUNDS[text]}
        report = served_report(committee, running=running, settings=settings, progress=tell)
    write_report(report, output)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    console = Console()
    console.print(table_from_report(report))
    for sentence in sentences_from_report(report):
        console.print(sentence, soft_wrap=True)
    console.print(f"Written: {output / 'report.json'}, {output / 'frontier.png'}", soft_wrap=True)


def _tell(progress: Progress, task: TaskID, words: str) -> None:
    progress.update(task, description=words)


def _digits(repository: Path) -> DemoCommittee:
    rows = digits_split("test")
    members = sorted(path.parent.name for path in repository.glob("*/manifest.json"))
    return DemoCommittee(
        repository=repository,
        spec=plan_of(repository, CASCADE),
        ensemble=ENSEMBLE,
        records=records_of(repository, members, "digits:test"),
        rows=rows.images,
        labels=rows.labels,
        what="test digits",
        after=(_DIGITS_SPEED,),
    )
