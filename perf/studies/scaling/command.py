"""`python -m perf scaling`: sizes of a plan at several rates, and one of their servers simulated beside each."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.console import print_json, progress
from orchestrator.planner.queueing import QueueStage
from orchestrator.planner.size import Demand, Sizing, member_stage, sized, stages_of
from orchestrator.spec import cascade_from_path
from orchestrator.spec.timing import timing_from_path
from perf.studies.scaling.figures import draw_figures

RATES = "100,10000,1000000"


def scaling(
    plan: Annotated[Path, typer.Argument(help="cascade.json of a plan that was fitted.")],
    timing: Annotated[Path, typer.Option(help="timing.json of its members, by `committee time`.")],
    rates: Annotated[str, typer.Option(help="Rows per second, with commas.")] = RATES,
    cores: Annotated[int, typer.Option(min=1, help="Of a server.")] = 8,
    rows: Annotated[int, typer.Option(min=1000, help="Simulated on one server, per rate.")] = 30_000,
    figures: Annotated[
        Path | None, typer.Option(help="Folder to draw into: what breaks first, and cores needed, by the rate.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Size a plan for several rates, and simulate one of the servers under its share.

    Nothing is served: times come from the timing, exits from the plan.

    Example: python -m perf scaling build/plan.json --timing build/timing.json --cores 8
    """
    spec, timed = cascade_from_path(plan), timing_from_path(timing)
    stages, found = stages_of(spec, timed), list[dict[str, Any]]()
    wanted = [float(word) for word in rates.split(",")]
    with progress("simulating servers", len(wanted)) as advance:
        for rate in wanted:
            size = sized(spec.name, stages, Demand(rate=rate, cores=cores), one_at_once=True)
            found.append(
                {"rate": rate, **dataclasses.asdict(size), **simulated_share(stages, size, rate, cores, rows)}
            )
            advance(1)
    if figures is not None:
        largest = timed.slowest(member.name for member in spec.members)
        alone = member_stage(largest, spec, timed)
        drawn = draw_figures(figures, stages, alone, cores=cores, largest=largest)
        typer.echo(f"Written: {', '.join(map(str, drawn))}", err=True)
    if as_json:
        print_json(
            {"plan": spec.name, "cores": cores, "rows": rows, "machine": timed.machine.words, "rates": found}
        )
        return
    for line in table_of(found):
        typer.echo(line)


def simulated_share(
    stages: list[QueueStage], size: Sizing, rate: float, cores: int, rows: int
) -> dict[str, float]:
    """What a simulation sees of one server that has its share of the rate."""
    # SimPy is optional, and no other command needs it.
    from perf.studies.scaling.simulation import simulated

    run = [
        dataclasses.replace(stage, instances=count) for stage, count in zip(stages, size.instances, strict=True)
    ]
    seen = simulated(run, per_ms=rate / size.servers / 1000, cores=cores, rows=rows)
    return {
        "simulated_rows_per_s": 1000 * seen.per_ms * size.servers,
        "simulated_p50_ms": seen.quantile(0.5),
        "simulated_p99_ms": seen.quantile(0.99),
    }


def table_of(found: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of the sizes."""
    heads = ("rows/s", "servers", "instances", "busiest", "load", "p50 ms", "simulated", "p99 ms", "simulated")
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for one in found:
        instances = " ".join(map(str, one["instances"]))
        times = [f"{one[key]:.3g}" for key in ("p50_ms", "simulated_p50_ms", "p99_ms", "simulated_p99_ms")]
        cells = [
            f"{one['rate']:,.0f}",
            f"{one['servers']}",
            instances,
            one["busiest"],
            f"{one['load']:.0%}",
            *times,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
