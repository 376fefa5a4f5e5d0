"""`python -m perf size`: what `committee size` predicts of one server, held against that server under load."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from orchestrator.planner.queueing import QueueStage, server_state
from orchestrator.planner.size import stages_of
from orchestrator.recording.served_timing import cascade_of
from orchestrator.recording.timing import TimeOptions, time_members
from orchestrator.spec.cascade import Fit
from orchestrator.spec.processor import core_count
from orchestrator.spec.timing import Timing, machine_here
from perf.harness.machine import write_json
from perf.harness.report import markdown_table, number_text, progress_shown, show
from perf.harness.serving import BASE_DEFERRAL, Cell, Served, reach_of, serving, tools_of
from perf.harness.windows import WindowRecord, measure
from perf.load.analyzer import find_analyzer
from perf.routes.recipes import RECIPES
from perf.routes.scenario import bench_scenario

SCENARIO, ROUTE = "three_cnn", "committee"
LOADS = (0.2, 0.5, 0.8)
BATCHES = (1, 2, 4, 8, 16, 32)
# Requests in flight of the closed loop that shows what the server can carry.
IN_FLIGHT = 64


def size(
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Of each window.")] = 15.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Windows per load.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder for the repository, the timing and the results.")] = Path(
        "build/size"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Serve three CNNs, time them as `committee time --url` does, and compare what `committee size` makes of that.

    A closed loop shows the most that the server can do, Poisson arrivals of single rows at 20, 50 and 80 % of that
    how long it takes; medians over rounds. 15 % of the rows reach the last stage.

    Example: python -m perf size --output build/size
    """
    with progress_shown() as tell:
        analyzer = find_analyzer()
        with serving(tools_of(SCENARIO), output, analyzer=analyzer, seed=0, progress=tell) as served:
            tell("timing the members")
            stages = stages_as_served(served)
            found = compared(served, stages, seconds=seconds, rounds=rounds, progress=tell)
    document = {"machine": machine_here().words, "seconds": seconds, "rounds": rounds, "loads": found}
    path = output / "size.json"
    write_json(document, path)
    show(document, *table_of(found), as_json=as_json, written=[path])


def stages_as_served(served: Served) -> list[QueueStage]:
    """The stages of the bench's plan as queues, timed on the server that runs them."""
    scenario, folder = served.repository.scenario, served.repository.folder
    cascade = cascade_of(folder, ROUTE, served.address, scenario.members)
    options = TimeOptions(batches=BATCHES, rounds=7)
    timing: Timing = time_members(scenario.members, folder, options, url=served.address, cascade=cascade)
    reach = np.array([*reach_of(BASE_DEFERRAL, len(scenario.members)), 0.0])
    fit = Fit(
        data_sha256="", rows=0, split="bench", target="imposed", accuracy=None, accuracy_ci95=None,
        exit_share=tuple((reach[:-1] - reach[1:]).tolist()), mean_cost=0.0, random_weights=True,
    )  # fmt: skip
    spec = bench_scenario(RECIPES[SCENARIO]).spec
    return stages_of(dataclasses.replace(spec, fit=fit), timing)


def full_per_ms(stages: list[QueueStage], cores: int) -> float:
    """Rows per millisecond at which a stage, or the cores, have no time left."""
    loads = [stage.load(1.0) for stage in stages]
    busiest = max(load / stage.instances for load, stage in zip(loads, stages, strict=True))
    return 1 / max(busiest, sum(loads) / cores)


def compared(
    served: Served, stages: list[QueueStage], *, seconds: float, rounds: int, progress: Any
) -> list[dict[str, float | None]]:
    """Measured and predicted: requests/s of a closed loop, then quantiles of latency at each load."""
    cores = core_count()
    full = full_per_ms(stages, cores)
    closed = Cell(scenario=SCENARIO, route=ROUTE, concurrency=IN_FLIGHT)

    def medians(cells: list[Cell]) -> list[dict[str, float]]:
        windows: dict[str, list[WindowRecord]] = {cell.key: [] for cell in cells}
        for number in range(1, rounds + 1):
            for cell in cells:
                progress(f"round {number} of {rounds}: {cell.words}")
                windows[cell.key].append(measure(cell, served, round_number=number, seconds=seconds))
        names = ("requests_per_s", "p50_ms", "p99_ms")
        return [
            {name: float(np.median([one[name] for one in many])) for name in names} for many in windows.values()
        ]

    # Its first calls allocate memory and open sessions.
    measure(closed, served, round_number=0, seconds=1.0)
    # Shares of what the server can do: more than that would show a queue that grows, not a latency.
    (most,) = medians([closed])
    rates = [load * most["requests_per_s"] for load in LOADS]
    opened = [
        dataclasses.replace(closed, sender="poisson", concurrency=None, share=load, of_route=ROUTE, rate=rate)
        for load, rate in zip(LOADS, rates, strict=True)
    ]
    found: list[dict[str, float | None]] = [
        {"load": None, "rate": most["requests_per_s"], "predicted_rate": 1000 * full}
    ]
    for load, rate, seen in zip(LOADS, rates, medians(opened), strict=True):
        state = server_state(stages, per_ms=rate / 1000, cores=cores)
        found.append(
            {
                "load": load,
                "rate": seen["requests_per_s"],
                "predicted_rate": rate,
                "p50_ms": seen["p50_ms"],
                "predicted_p50_ms": state.p50_ms,
                "p99_ms": seen["p99_ms"],
                "predicted_p99_ms": state.p99_ms,
            }
        )
    return found


def table_of(found: list[dict[str, float | None]]) -> list[str]:
    """A Markdown table: measured, predicted, and their ratio."""
    heads = ["load"]
    for name in ("requests/s", "p50 ms", "p99 ms"):
        heads += [name, "predicted", "ratio"]
    rows = []
    for one in found:
        load = one["load"]
        row = [f"closed loop, {IN_FLIGHT} in flight" if load is None else f"{100 * load:.0f} %"]
        for name in ("rate", "p50_ms", "p99_ms"):
            measured, predicted = one.get(name), one.get(f"predicted_{name}")
            share = measured / predicted if measured and predicted else None
            row += [number_text(measured), number_text(predicted), number_text(share)]
        rows.append(row)
    return markdown_table(heads, rows)
