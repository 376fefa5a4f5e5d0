"""`committee size`: how many servers a plan needs for a load, beside the largest member alone."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.console import new_table, print_json, progress, stdout_console
from orchestrator.cli.plan import echo_notes
from orchestrator.planner.clock import notes_on_clock
from orchestrator.planner.size import Demand, Sizing, member_stage, sized, stages_of
from orchestrator.spec import cascade_from_path
from orchestrator.spec.timing import timing_from_path

# So many points more of the rows are deferred than when the plan was fitted.
MORE = (0.05, 0.10)
# With fewer of them at work a machine has room for another server.
IDLE_CORES = 0.4


def size(
    plan_path: Annotated[Path, typer.Argument(metavar="PLAN", help="cascade.json of a plan that was fitted.")],
    timing: Annotated[Path, typer.Option(help="timing.json of its members, by `committee time`.")],
    rate: Annotated[float, typer.Option(help="Rows per second, on average.")],
    peak: Annotated[float, typer.Option(help="So many times as much at the worst.")] = 1.0,
    p99_ms: Annotated[
        float | None, typer.Option(help="Longest time that 99 % of the rows may take at the peak.")
    ] = None,
    cores: Annotated[
        int | None, typer.Option(help="Of a server; if none is given those of the timed machine.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Of a server and hour, in any money, for the cost of a million rows.")
    ] = None,
    alone: Annotated[
        str | None,
        typer.Option(help="The single model to compare with; if none is given the plan's slowest member."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sizes as JSON.")] = False,
) -> None:
    """Say how many servers a plan needs for a load, with which instances, and how long its rows then wait.

    The same for the plan where 5 and 10 points more of the rows are deferred than when it was fitted, and for a
    single model. Servers carry the peak at a load of at most 80 %.

    Example: committee size build/plan.json --timing build/timing.json --rate 2000 --peak 3 --p99-ms 50 --price 0.4
    """
    spec, timed = cascade_from_path(plan_path), timing_from_path(timing)
    demand = Demand(
        rate=rate, peak=peak, p99_ms=p99_ms, cores=timed.machine.cores if cores is None else cores, price=price
    )
    wanted = [(spec.name, stages_of(spec, timed), True)]
    if len(spec.stages) > 1:
        wanted += [
            (f"{spec.name}, {100 * more:g} points more deferred", stages_of(spec, timed, more=more), True)
            for more in MORE
        ]
    names = [member.name for member in spec.members]
    other = alone or timed.slowest(names)
    wanted.append((other, member_stage(other, spec, timed), False))
    notes = notes_on_clock(timed, names)
    found = []
    with progress("sizing", len(wanted)) as advance:
        for name, stages, one_at_once in wanted:
            found.append(sized(name, stages, demand, one_at_once=one_at_once))
            advance(1)
    if as_json:
        sizes = [dataclasses.asdict(one) for one in found]
        print_json({"demand": dataclasses.asdict(demand), "sizes": sizes, "notes": notes})
    else:
        _show(found, demand)
    echo_notes(notes)


def _show(found: list[Sizing], demand: Demand) -> None:
    columns = ("served", "servers", "instances", "load", "busiest", "p50 ms", "p99 ms", "cost of a million")
    title = f"{demand.rate:g} rows/s, {demand.rate * demand.peak:g} at the peak, {demand.cores} cores a server"
    table = new_table(title, columns, left="served")
    for one in found:
        table.add_row(
            one.name,
            str(one.servers),
            " ".join(map(str, one.instances)),
            f"{one.load:.0%}",
            one.busiest,
            f"{one.p50_ms:.3g}",
            f"{one.p99_ms:.3g}",
            "-" if one.cost_per_million is None else f"{one.cost_per_million:.4g}",
        )
    stdout_console().print(table)
    first, last = found[0], found[-1]
    if first.busiest == "stage 0" and first.servers > 1 and first.cores_load < IDLE_CORES:
        typer.echo(
            f"note: the one process that decides is the limit, and {first.cores_load:.0%} of the cores work: "
            "put several servers on a machine, with fewer --cores each",
            err=True,
        )
    typer.echo(f"{last.name} alone needs {last.servers / first.servers:.3g} times the servers of {first.name}")
