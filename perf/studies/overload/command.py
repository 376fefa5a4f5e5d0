"""`python -m perf overload`, and what it writes: OVERLOAD.md, overload.json and a picture."""

import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from orchestrator.repository.files import write_all
from perf.harness.machine import BenchMachine, bench_machine, cores_in_use_now
from perf.harness.report import draw_plots, markdown_table, progress_shown, show
from perf.studies.overload.run import (
    DIGITS,
    EPSILON,
    GLYPHS,
    SERVER_SHARE,
    VARIANTS,
    Capacity,
    OverloadLoad,
    OverloadResult,
    OverloadSetup,
    Variant,
    make_setup,
    run_overload,
)
from perf.studies.overload.score import medians

OUTPUT = Path("build/bench")
REPORT = Path("perf/OVERLOAD.md")
PICTURE = "overload.png"


def report_path(named: Path | None, *, output: Path, quick: bool) -> Path:
    """Where the report goes: a quick run must not replace the report of a whole one."""
    return named or (output / REPORT.name if quick else REPORT)


def overload(
    output: Annotated[Path, typer.Option(help="Folder for recordings, results and the repository.")] = OUTPUT,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Report to write, its picture in plots/ beside it; perf/OVERLOAD.md, with --quick in --output."
        ),
    ] = None,
    factor: Annotated[
        list[float] | None,
        typer.Option("--rate-factor", help="Arrivals over capacity, once for each rate; 2 if none."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Rows per request.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Of every variant at every rate.")] = 3,
    seconds: Annotated[float, typer.Option(min=2, max=120, help="Of each load.")] = 10.0,
    deadline: Annotated[float, typer.Option(min=1, help="The deadline in unloaded medians.")] = 10.0,
    raise_wait_ms: Annotated[
        float | None,
        typer.Option(
            "--raise-wait", min=0.1, help="Milliseconds deferred rows wait when a cheaper gear is due; 50 if none."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Digits in place of glyphs, one round of 2 s.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure a cascade at more than its capacity: with gears, without, and turning requests away.

    Example: python -m perf overload --rate-factor 1 --rate-factor 2
    """
    cores_in_use = cores_in_use_now()
    report = report_path(report, output=output, quick=quick)
    load = OverloadLoad(
        batch=batch,
        factors=tuple(factor or (2.0,)),
        rounds=1 if quick else rounds,
        seconds=2.0 if quick else seconds,
        deadline_factor=deadline,
    )
    with progress_shown() as say:
        setup = make_setup(
            output / "overload" / "model_repository",
            source=DIGITS if quick else GLYPHS,
            cache=output / "overload" / "recordings",
            say=say,
            raise_wait_us=None if raise_wait_ms is None else int(1000 * raise_wait_ms),
        )
        measured = run_overload(setup, load, say=say)
    machine = bench_machine(triton=measured.triton, perf_analyzer="not used", cores_in_use=cores_in_use)
    document = document_from(measured, setup, load, machine=machine)
    write_all(output, {"overload.json": json.dumps(document, indent=2, allow_nan=False) + "\n"})
    draw_plots({report.parent / "plots" / PICTURE: partial(_draw, measured)})
    text = report_from(measured, setup, load, machine=machine, picture=f"plots/{PICTURE}")
    write_all(report.parent, {report.name: text})
    show(document, as_json=as_json, written=[output / "overload.json", report])


_COLUMNS = (
    "load", "variant", "in time", "good", "answered", "accuracy", "p50 ms", "p99 ms", "cut short", "geared",
    "shifts", "queue ms", "lag ms", "exits",
)  # fmt: skip
_LEGEND = (
    "In time, good and answered are shares of all that was sent: requests answered within the deadline, rows "
    "answered in time and rightly, requests answered at all. Accuracy is of answered rows, late or not. Medians "
    "over rounds, in brackets the smallest and the largest. Each load begins on an idle server in the plan's own "
    "gear. Shifts are those to a cheaper gear and back, over all rounds. Queue is the mean wait in "
    "Triton until the cascade is called; lag is the 99th percentile of how late our own client sent."
)


def document_from(
    measured: OverloadResult, setup: OverloadSetup, load: OverloadLoad, *, machine: BenchMachine
) -> dict[str, Any]:
    """Everything as JSON."""
    gears, capacity = setup.spec.gears, measured.capacity
    return {
        "format": 1,
        "machine": asdict(machine),
        "plan": {
            "data": setup.source.name,
            "members": [member.name for member in setup.spec.members],
            "thresholds": [stage.threshold for stage in setup.spec.stages[:-1]],
            "raise_wait_us": gears.raise_wait_us if gears else None,
            "gears": [list(gear.thresholds) for gear in gears.cheaper] if gears else [],
        },
        "load": {
            "rows_per_request": load.batch,
            "rounds": load.rounds,
            "seconds": load.seconds,
            "capacity_per_s": capacity.per_s,
            "cheapest_gear_per_s": capacity.cheapest_per_s,
            **{name: getattr(capacity, name) for name in ("unloaded_ms", "deadline_ms", "most_in_flight")},
        },
        "results": [
            {
                "factor": float(factor),
                "variant": name,
                **medians(rounds),
                "rounds": rounds.drop(columns=["factor", "variant"]).replace({math.nan: None}).to_dict("records"),
            }
            for (factor, name), rounds in measured.scores.groupby(["factor", "variant"], sort=False)
        ],
    }


def report_from(
    measured: OverloadResult, setup: OverloadSetup, load: OverloadLoad, *, machine: BenchMachine, picture: str
) -> str:
    """The report for people."""
    busy = "**The machine was busy when the run began: do not trust the figures below.**"
    paragraphs = [
        "# Overload",
        "Written by `python -m perf overload`; running it again replaces this file.",
        f"Machine: {machine.words}.",
        *([busy] if machine.is_busy else []),
        _plan_words(setup, load),
        _capacity_words(measured.capacity, setup, load),
        _LEGEND,
    ]
    rows = [
        _cells(medians(measured.rounds_of(factor, variant.name)), factor, variant)
        for factor in measured.scores.factor.unique()
        for variant in VARIANTS
    ]
    table = markdown_table(_COLUMNS, rows)
    return "\n".join(["\n\n".join(paragraphs), "", *table, "", f"![overload]({picture})", ""])


def _plan_words(setup: OverloadSetup, load: OverloadLoad) -> str:
    members = ", then ".join(member.name for member in setup.spec.members)
    return (
        f"The cheapest plan on {setup.source.reference} minus {EPSILON:g}, chosen on plan rows: {members}. "
        f"Requests of {load.batch} rows of the test part of {setup.source.name}, {load.rounds} rounds of "
        f"{load.seconds:g} s, variants in turns, Poisson arrivals at the same moments for all variants of a round."
    )


def _capacity_words(capacity: Capacity, setup: OverloadSetup, load: OverloadLoad) -> str:
    return (
        "Capacity with the plan's own thresholds and no deadline: "
        f"{capacity.per_s:.0f} requests/s; with every request in the cheapest gear "
        f"{capacity.cheapest_per_s:.0f}, which bounds what gears can do. Every request has "
        f"{capacity.deadline_ms:.0f} ms ({load.deadline_factor:g} times the unloaded median of "
        f"{capacity.unloaded_ms:.1f} ms) from the moment it is due until the client has its answer; after four "
        "fifths of it the server's answer is due, as `deadline_at_us`, so that the wait in front of the cascade "
        "counts; with `deadline_us`, which begins to count in the cascade, it does not. "
        f"{_gears_words(setup, capacity)}Turning away is what a gateway in front does: while "
        f"{capacity.most_in_flight} requests are under way, others are refused."
    )


def _gears_words(setup: OverloadSetup, capacity: Capacity) -> str:
    """How long deferred rows wait before the gear shifts, and whether any can wait that long."""
    if setup.spec.gears is None:
        return ""
    wait_ms = setup.spec.gears.raise_wait_us / 1000
    never = wait_ms >= SERVER_SHARE * capacity.deadline_ms
    unseen = " (the deadline ends their wait before)" if never else ""
    return (
        f"A cheaper gear is due when deferred rows have waited {wait_ms:g} ms{unseen}, or batches have come full "
        "from Triton's queue for that long. "
    )


def _cells(found: dict[str, Any], factor: float, variant: Variant) -> list[str]:
    return [
        f"{factor:g} x capacity",
        variant.title,
        *(_share(found[name]) for name in ("in_time", "good", "answered")),
        _share(found["accuracy"], digits=2),
        *(_ms(found[name]) for name in ("p50_ms", "p99_ms")),
        *(_share(found[name]) for name in ("cut", "geared")),
        "{} + {}".format(*found["shifts"]),
        *(_ms(found[name]) for name in ("queue_ms", "lag_p99_ms")),
        "/".join(f"{100 * share:.0f}" for share in found["exits"]),
    ]


def _share(figure: dict[str, float], *, digits: int = 1) -> str:
    low, high = 100 * figure["min"], 100 * figure["max"]
    return f"{100 * figure['median']:.{digits}f} % ({low:.{digits}f} to {high:.{digits}f})"


def _ms(figure: dict[str, float] | None) -> str:
    return "" if figure is None else f"{figure['median']:.1f}"


def _draw(measured: OverloadResult, axes: Any) -> None:
    """Good rows of all rows sent, by load and variant."""
    factors = sorted(measured.scores.factor.unique())
    for variant, colour in zip(VARIANTS, ("#c44e52", "#4c72b0", "#dd8452", "#8c8c8c", "#55a868"), strict=True):
        good = pd.DataFrame([medians(measured.rounds_of(factor, variant.name))["good"] for factor in factors])
        reach = np.array([100 * (good["median"] - good["min"]), 100 * (good["max"] - good["median"])])
        style = {"marker": "o", "capsize": 3, "color": colour, "label": variant.title.replace("`", "")}
        axes.errorbar(factors, 100 * good["median"].to_numpy(), yerr=reach, **style)
    axes.set_xlabel("arrivals over capacity")
    axes.set_ylabel("rows answered in time and right, % of those sent")
    axes.legend()
