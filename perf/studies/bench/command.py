"""`python -m perf run` and `python -m perf leak`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from orchestrator.commandline import interrupted_from
from perf.harness.report import report_from_results, table_from_summaries, table_from_verdicts
from perf.harness.results import Results, write_results, write_verdicts
from perf.harness.run import Progress as Tell
from perf.harness.run import RunOptions, run_bench, serving
from perf.harness.scenarios import default_scenarios, tools_of
from perf.load.analyzer_binary import find_analyzer
from perf.routes.table import routes_of
from perf.studies.bench.leak_file import REQUESTS, ROUTE, SCENARIO
from perf.studies.bench.plots import draw_plots
from perf.studies.leak import measure_leak, model_of

OUTPUT = Path("build/bench")
REPORT = Path("perf/RESULTS.md")
QUICK_S, FULL_S = 10.0, 18.0
QUICK_BUDGET_S, FULL_BUDGET_S = 570.0, 4800.0
FILE_WIDTH = 140  # of tables that go to a file or a pipe


def run(
    full: Annotated[bool, typer.Option("--full", help="One factor at a time, under 90 minutes.")] = False,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Members to measure on: three_cnn, efficientnet, glyphs or digits.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for results, records and plots.")] = OUTPUT,
    report: Annotated[
        Path | None,
        typer.Option(help="Report to write; perf/RESULTS.md, of a partial run RESULTS.md in --output."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Windows per cell.")] = 3,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=600, help="Of each window; 10, with --full 18.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows.")] = 0,
    only: Annotated[str, typer.Option(help="Cells to measure, a pattern such as 'committee/c16*'.")] = "*",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Measure every route on the same members, interleaved, and hold them against the targets.

    Example: python -m perf run --full --resume
    """
    options = RunOptions(
        full=full,
        scenarios=tuple(dict.fromkeys(scenario or default_scenarios(full=full))),
        output=output,
        seconds=seconds if seconds is not None else (FULL_S if full else QUICK_S),
        rounds=rounds,
        budget_s=FULL_BUDGET_S if full else QUICK_BUDGET_S,
        seed=seed,
        resume=resume,
        only=only,
    )
    command = _command(options, report=report)
    try:
        with progress_shown() as tell:
            results = run_bench(options, command=command, progress=tell)
    except KeyboardInterrupt as error:
        raise interrupted_from(error, f"interrupted; {command} --resume goes on where it was") from error
    written = [*write_results(results, output), *write_report(results, report or _report_path(options))]
    if as_json:
        typer.echo(json.dumps(results.as_json(), indent=2))
    else:
        _show(results, written)
    if results.failures:
        raise typer.Exit(1)


def leak(
    requests: Annotated[int, typer.Option(min=1000, help="To send.")] = REQUESTS,
    scenario: Annotated[str, typer.Option(help="Members to measure on.")] = SCENARIO,
    route: Annotated[str, typer.Option(help="Route to ask.")] = ROUTE,
    output: Annotated[Path, typer.Option(help="Folder for leak.json.")] = OUTPUT,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Of each load.")] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print leak.json.")] = False,
) -> None:
    """Send many requests and see whether the server's memory grows after a warm-up.

    Example: python -m perf leak --requests 50000
    """
    tools = tools_of(scenario)
    model_of(routes_of(tools.scenario), route)  # before anything is started
    with (
        progress_shown() as tell,
        serving(tools, output, analyzer=find_analyzer(), seed=0, progress=tell) as served,
    ):
        found = measure_leak(served, route=route, requests=requests, window_s=seconds, progress=tell)
    path = output / "leak.json"
    found.write(path)
    if as_json:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    typer.echo(
        f"{found.requests:,} requests to {found.model}, {found.warm_requests:,} of them warm-up: resident memory "
        f"{found.resident_percent:+.2f} % ({found.warm.resident_bytes / 2**20:.1f} to "
        f"{found.end.resident_bytes / 2**20:.1f} MiB), shared memory {found.shm_percent:+.2f} % "
        f"({found.warm.shm_bytes / 2**20:.1f} to {found.end.shm_bytes / 2**20:.1f} MiB), its own process "
        f"{found.own_percent:+.2f} %"
    )
    typer.echo(f"Written: {path}")


def write_report(results: Results, path: Path) -> list[Path]:
    """Writes the report, verdict.json beside it for the README, and its plots in a folder; returns their paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plots = [
        picture
        for name in results.scenarios
        for picture in draw_plots(results.summaries, path.parent / "plots", scenario=name)
    ]
    text = report_from_results(results, pictures=[f"plots/{one.name}" for one in plots])
    path.write_text(text, encoding="utf-8")
    verdict = path.with_name("verdict.json")
    write_verdicts(results, verdict)
    return [path, verdict, *plots]


def _show(results: Results, written: list[Path]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    if results.machine.is_busy:
        used = results.machine.cores_in_use
        console.print(
            f"The machine was busy when the run began ({used:.1f} processors in use); do not trust the figures."
        )
    console.print(table_from_summaries(results.summaries))
    console.print(table_from_verdicts(results.verdicts))
    for key, text in results.failures.items():
        console.print(f"not measured: {key}: {text}", soft_wrap=True, markup=False)
    console.print(f"Written: {', '.join(str(path) for path in written)}", soft_wrap=True)


def _report_path(options: RunOptions) -> Path:
    """A run that leaves something out must not replace the report of one that did not."""
    usual = (default_scenarios(full=options.full), FULL_S if options.full else QUICK_S, 3, "*")
    whole = (options.scenarios, options.seconds, options.rounds, options.only) == usual
    return REPORT if whole else options.output / REPORT.name


def _command(options: RunOptions, *, report: Path | None = None) -> str:
    """What repeats the run."""
    words = ["python", "-m", "perf", "run", *(["--full"] if options.full else [])]
    if options.scenarios != default_scenarios(full=options.full):
        words += [word for name in options.scenarios for word in ("--scenario", name)]
    if options.seconds != (FULL_S if options.full else QUICK_S):
        words += ["--seconds", f"{options.seconds:g}"]
    words += [] if options.rounds == 3 else ["--rounds", str(options.rounds)]
    words += [] if options.only == "*" else ["--only", options.only]
    words += [] if options.output == OUTPUT else ["--output", str(options.output)]
    words += [] if report is None else ["--report", str(report)]
    return shlex.join([*words, *(["--seed", str(options.seed)] if options.seed else [])])


@contextmanager
def progress_shown() -> Iterator[Tell]:
    """A line on standard error that says what happens; yields what is told."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # Redrawn seldom: what the spinner costs is taken from the load.
    console = Console(stderr=True)
    shown = {"transient": True, "refresh_per_second": 2, "disable": not console.is_terminal}
    with Progress(*columns, console=console, **shown) as progress:
        task = progress.add_task("starting")
        yield lambda text: progress.update(task, description=text)
