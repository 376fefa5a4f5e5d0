"""`python -m perf run`: which cells it measures, and how; every route on the same members."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.errors import InputError
from perf.harness.report import command_line, progress_shown, show, table_from_cells, table_from_targets
from perf.harness.run import Results, RunOptions, begin, cells_of_all, results_from, run_scenario
from perf.harness.serving import BASE_CONCURRENCY, CONCATENATE, CONCATENATE_FORMS, Cell, tools_of
from perf.routes.recipes import RECIPES
from perf.routes.spec import IN_PROCESS, BenchRepository
from perf.studies.bench.report import verdicts, write_report
from perf.studies.leak import growth_from

EARNED_CONCURRENCY = 64
MAX_QUICK_CELLS = 12
MAX_FULL_CELLS = 60
# Held against their largest member only: the exit mix is imposed, or the plan is what is being tested.
LARGEST_ONLY = ("efficientnet", "glyphs")


def default_scenarios(*, full: bool) -> tuple[str, ...]:
    """Those a run measures unless told otherwise."""
    wanted = ("three_cnn", *LARGEST_ONLY) if full else ("three_cnn",)
    return tuple(name for name in wanted if name in RECIPES)


def cells_of(repository: BenchRepository, *, full: bool) -> list[Cell]:
    """The cells of a scenario whose routes its repository holds."""
    scenario = repository.scenario
    members = len(scenario.members)
    if scenario.name in LARGEST_ONLY:
        return largest_cells(scenario.name, members=members, routes=repository.routes, earned=scenario.earned)
    return (full_cells if full else quick_cells)(scenario.name, members=members, routes=repository.routes)


def quick_cells(scenario: str, *, members: int, routes: Collection[str]) -> list[Cell]:
    """At most twelve cells that decide most of the targets."""
    closed = [
        *((route, 64) for route in (*(f"member_{index}" for index in range(members)), "tutorial", "committee")),
        *((route, 16) for route in ("tutorial", "committee")),
        *((route, 1) for route in ("pass_through", "committee")),
    ]
    cells = [Cell(scenario=scenario, route=route, concurrency=number) for route, number in closed]
    cells += [
        Cell(scenario=scenario, route="committee", concurrency=64, deferral=1.0),
        *_poisson(scenario, ("tutorial", "committee"), share=0.8, of="tutorial"),
        # Cut off by the limit of twelve unless baselines are missing.
        *_poisson(scenario, ("committee",), share=0.8),
    ]
    return _there(cells, routes)[:MAX_QUICK_CELLS]


def full_cells(scenario: str, *, members: int, routes: Collection[str]) -> list[Cell]:
    """One factor at a time around 16 in flight, batch 1, 15 % to the last stage."""
    alone = tuple(f"member_{index}" for index in range(members))
    largest = alone[-1]
    baselines = ("pass_through", "tutorial", *CONCATENATE_FORMS)
    clients = ("client_sync", "client_asyncio")

    def closed(names: Iterable[str], concurrency: int = BASE_CONCURRENCY, **changes: float) -> list[Cell]:
        base = [Cell(scenario=scenario, route=name, concurrency=concurrency) for name in names]
        return [replace(cell, **changes) for cell in base]  # type: ignore[arg-type]  # numbers of either kind

    cells = [
        *closed([*alone, *baselines, "tutorial_4", *clients, "ensemble", "onefile", "committee", IN_PROCESS]),
        *closed([largest, "largest_2", *baselines[1:], "tutorial_4", "committee", IN_PROCESS], 64),
        *closed([largest, "pass_through", "tutorial", "committee", IN_PROCESS], 1),
        *closed(["tutorial", "committee"], 4),
        *closed([*alone, "tutorial", CONCATENATE_FORMS[1], "onefile", "committee"], batch=8),
        *closed(["pass_through", "tutorial", "committee"], deferral=0.0),
        *closed(["tutorial", "committee"], deferral=0.05),
        *closed(["tutorial", "committee"], deferral=0.3),
        *closed(["tutorial", CONCATENATE_FORMS[1], "committee"], deferral=1.0),
        *closed(["committee"], 64, deferral=1.0),
        *_poisson(scenario, ("tutorial", "committee"), share=0.5, of="tutorial"),
        *_poisson(scenario, ("tutorial", "committee"), share=0.8, of="tutorial"),
        *_poisson(scenario, ("tutorial", "committee"), share=0.95, of="tutorial"),
        *_poisson(scenario, (CONCATENATE, "committee"), share=0.8, of=CONCATENATE),
        *(cell for share in (0.5, 0.8, 0.95) for cell in _poisson(scenario, ("committee",), share=share)),
        Cell(
            scenario=scenario, route="committee", sender="analyzer_poisson", share=0.8, of_route="tutorial"
        ),
    ]  # fmt: skip
    return _there(cells, routes)


def largest_cells(scenario: str, *, members: int, routes: Collection[str], earned: bool = False) -> list[Cell]:
    """The few cells of a scenario that is only held against its largest member."""
    # Most requests of 32 rows have one that reaches a late stage, and wait for it. With 16 requests in flight the
    # first stage ran short of rows (batches of 55 where 64 fit) while the largest member alone had enough; with 64
    # both are full, and 128 changed nothing.
    batch, concurrency = (32, EARNED_CONCURRENCY) if earned else (1, BASE_CONCURRENCY)
    load: dict[str, Any] = {"concurrency": concurrency, "batch": batch, "earned": earned}
    names = (f"member_{members - 1}", "committee")
    return _there([Cell(scenario=scenario, route=name, **load) for name in names], routes)


def _poisson(scenario: str, names: Iterable[str], *, share: float, of: str = "committee") -> list[Cell]:
    return [Cell(scenario=scenario, route=name, sender="poisson", share=share, of_route=of) for name in names]


def _there(cells: Iterable[Cell], routes: Collection[str]) -> list[Cell]:
    """The cells whose routes exist, each once."""

    def exists(name: str | None) -> bool:
        forms = CONCATENATE_FORMS if name == CONCATENATE else (name,)
        return name is None or any(form in routes for form in forms)

    return list({cell.key: cell for cell in cells if exists(cell.route) and exists(cell.of_route)}.values())


OUTPUT = Path("build/bench")
REPORT = Path("perf/RESULTS.md")
QUICK_S, FULL_S = 10.0, 18.0
QUICK_BUDGET_S, FULL_BUDGET_S = 570.0, 4800.0


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
    with progress_shown(f"{command} --resume") as tell:
        results = run_bench(options, command=command, progress=tell)
    written = [*results.write(output), *write_report(results, report or _report_path(options))]
    busy = f"The machine was busy when the run began ({results.machine.cores_in_use:.1f} processors in use); "
    show(
        results.as_json(),
        *([busy + "do not trust the figures."] if results.machine.is_busy else []),
        table_from_cells(results.cells),
        table_from_targets(results.targets),
        as_json=as_json,
        failures=results.failures,
        written=written,
    )
    if results.failures:
        raise typer.Exit(1)


def run_bench(options: RunOptions, *, command: str, progress: Callable[[str], None]) -> Results:
    """Measures everything and returns the results; windows are on disk as they come.

    Raises:
        CommitteeError: the run cannot go on.
    """
    cells = partial(cells_of, full=options.full)
    scenarios = [replace(tools_of(name), cells=cells) for name in options.scenarios]
    context = begin(progress)
    results = [run_scenario(tools, options, context, progress=progress) for tools in scenarios]
    measured = [one for one in results if one is not None]
    if not measured:
        raise InputError("`only`", got=repr(options.only), expected="a pattern of cells, such as 'committee/c16*'")
    members = {one.scenario.name: len(one.scenario.members) for one in measured}
    predicted = [one.predicted_speedup for one in measured if one.predicted_speedup is not None]
    judged = verdicts(
        cells_of_all(measured),
        members=members.get("three_cnn", 3),
        predicted_speedup=predicted[-1] if predicted else None,
        leak=growth_from(options.output / "leak.json"),
    )
    return results_from(measured, options, context, kind=options.kind, command=command, targets=judged)


def _report_path(options: RunOptions) -> Path:
    """A run that leaves something out must not replace the report of one that did not."""
    usual = (default_scenarios(full=options.full), FULL_S if options.full else QUICK_S, 3, "*")
    whole = (options.scenarios, options.seconds, options.rounds, options.only) == usual
    return REPORT if whole else options.output / REPORT.name


def _command(options: RunOptions, *, report: Path | None = None) -> str:
    """What repeats the run."""
    return command_line(
        "python -m perf run",
        ("--full", options.full, False),
        ("--scenario", options.scenarios, default_scenarios(full=options.full)),
        ("--seconds", options.seconds, FULL_S if options.full else QUICK_S),
        ("--rounds", options.rounds, 3),
        ("--only", options.only, "*"),
        ("--output", options.output, OUTPUT),
        ("--report", report, None),
        ("--seed", options.seed, 0),
    )
