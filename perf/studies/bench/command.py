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
from perf.harness.serving import BASE_CONCURRENCY, BEST_RIVAL, Cell, tools_of
from perf.routes.recipes import RECIPES
from perf.routes.spec import IN_PROCESS, RIVALS, BenchRepository
from perf.studies.bench.report import write_report
from perf.studies.bench.targets import TAIL_SHARE, verdicts
from perf.studies.leak import growth_from

EARNED_CONCURRENCY = 64
MAX_QUICK_CELLS = 27
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
    """The cells that decide the targets of three CNNs; shorter windows than in a full run."""
    alone = tuple(f"member_{index}" for index in range(members))
    ours = ("committee", IN_PROCESS)
    closed = [
        *((route, 64) for route in (*alone, *RIVALS, *ours)),
        *((route, 16) for route in (*RIVALS, *ours)),
        *((route, 1) for route in ("pass_through", "tutorial", *ours)),
    ]
    cells = [Cell(scenario=scenario, route=route, concurrency=number) for route, number in closed]
    return _there([*cells, *_tail_cells(scenario)], routes)


def full_cells(scenario: str, *, members: int, routes: Collection[str]) -> list[Cell]:
    """One factor at a time around 16 in flight, batch 1, 15 % to the last stage."""
    alone = tuple(f"member_{index}" for index in range(members))
    largest = alone[-1]
    ours = ("committee", IN_PROCESS)

    def closed(names: Iterable[str], concurrency: int = BASE_CONCURRENCY, **changes: float) -> list[Cell]:
        base = [Cell(scenario=scenario, route=name, concurrency=concurrency) for name in names]
        return [replace(cell, **changes) for cell in base]  # type: ignore[arg-type]  # numbers of either kind

    cells = [
        *closed([*alone, "pass_through", *RIVALS, "ensemble", *ours]),
        *closed([largest, "largest_2", *RIVALS, *ours], 64),
        *closed([largest, "pass_through", "tutorial", *ours], 1),
        *closed(["tutorial", "committee"], 4),
        *closed([*alone, "concatenate_4", "onefile", "committee"], batch=8),
        *closed(["pass_through", "committee"], deferral=0.0),
        *closed(["tutorial", "committee"], deferral=0.05),
        *closed(["tutorial", "committee"], deferral=0.3),
        *closed(["concatenate_4", "committee"], deferral=1.0),
        *closed(["committee"], 64, deferral=1.0),
        *_tail_cells(scenario),
        *(cell for share in (0.5, 0.95) for cell in _poisson(scenario, (BEST_RIVAL, "committee"), share=share)),
        Cell(
            scenario=scenario, route="committee", sender="analyzer_poisson", share=0.5, of_route=BEST_RIVAL
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


def _tail_cells(scenario: str) -> list[Cell]:
    """The pair that tails are compared by: the same arrivals, at a rate that the best rival bears."""
    pair = _poisson(scenario, (BEST_RIVAL, "committee"), share=TAIL_SHARE)
    return [replace(cell, long=True) for cell in pair]


def _poisson(scenario: str, names: Iterable[str], *, share: float) -> list[Cell]:
    return [
        Cell(scenario=scenario, route=name, sender="poisson", share=share, of_route=BEST_RIVAL) for name in names
    ]


def _there(cells: Iterable[Cell], routes: Collection[str]) -> list[Cell]:
    """The cells whose routes exist, each once."""

    def exists(name: str | None) -> bool:
        return name is None or any(form in routes for form in (RIVALS if name == BEST_RIVAL else (name,)))

    return list({cell.key: cell for cell in cells if exists(cell.route) and exists(cell.of_route)}.values())


OUTPUT = Path("build/bench")
REPORT = Path("perf/RESULTS.md")
QUICK_S, FULL_S = 5.0, 8.0
# Windows and rounds of tails, unless `seconds` and `rounds` say otherwise.
QUICK_LONG, FULL_LONG = (15.0, 3), (60.0, 5)
ROUNDS = 3
QUICK_BUDGET_S, FULL_BUDGET_S = 570.0, 3600.0


def run(
    full: Annotated[bool, typer.Option("--full", help="One factor at a time, an hour.")] = False,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Members to measure on: three_cnn, efficientnet, glyphs or digits.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for results, records and plots.")] = OUTPUT,
    report: Annotated[
        Path | None,
        typer.Option(help="Report to write; perf/RESULTS.md, of a partial run RESULTS.md in --output."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Windows per cell; 3, of tails with --full 5.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, max=600, help="Of each window; 5 and of tails 15, with --full 8 and 60."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows.")] = 0,
    only: Annotated[str, typer.Option(help="Cells to measure, a pattern such as 'committee/c16*'.")] = "*",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Measure every route on the same members, interleaved, and hold them against the targets.

    Example: python -m perf run --full --resume
    """
    long_seconds, long_rounds = FULL_LONG if full else QUICK_LONG
    options = RunOptions(
        full=full,
        scenarios=tuple(dict.fromkeys(scenario or default_scenarios(full=full))),
        output=output,
        seconds=seconds if seconds is not None else (FULL_S if full else QUICK_S),
        rounds=rounds or ROUNDS,
        long_seconds=seconds or long_seconds,
        long_rounds=rounds or long_rounds,
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
    long = FULL_LONG if options.full else QUICK_LONG
    usual = (default_scenarios(full=options.full), FULL_S if options.full else QUICK_S, ROUNDS, *long, "*")
    given = (options.scenarios, options.seconds, options.rounds, options.long_seconds, options.long_rounds)
    whole = (*given, options.only) == usual
    return REPORT if whole else options.output / REPORT.name


def _command(options: RunOptions, *, report: Path | None = None) -> str:
    """What repeats the run."""
    return command_line(
        "python -m perf run",
        ("--full", options.full, False),
        ("--scenario", options.scenarios, default_scenarios(full=options.full)),
        # Where they were given, they are those of tails too.
        ("--seconds", options.long_seconds, FULL_LONG[0] if options.full else QUICK_LONG[0]),
        ("--rounds", options.long_rounds, FULL_LONG[1] if options.full else QUICK_LONG[1]),
        ("--only", options.only, "*"),
        ("--output", options.output, OUTPUT),
        ("--report", report, None),
        ("--seed", options.seed, 0),
    )
