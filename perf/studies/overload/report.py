"""OVERLOAD.md, overload.json and the picture of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perf.harness.machine import BenchMachine
from perf.studies.overload.ground import EPSILON, OverloadSetup
from perf.studies.overload.run import SERVER_SHARE, VARIANTS, OverloadLoad, OverloadResult
from perf.studies.overload.score import medians, rounds_json

_COLUMNS = (
    "load", "variant", "in time", "good", "answered", "accuracy", "p50 ms", "p99 ms", "cut short", "geared",
    "shifts", "queue ms", "lag ms", "exits",
)  # fmt: skip
_HEAD = ("| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS))
_LEGEND = (
    "In time, good and answered are shares of all that was sent: requests answered within the deadline, rows "
    "answered in time and rightly, requests answered at all. Accuracy is of answered rows, late or not. Medians "
    "over rounds, in brackets the smallest and the largest. Each load begins on an idle server in the plan's own "
    "gear. Shifts are those to a cheaper gear and back, over all rounds. Queue is the mean wait in "
    "Triton until the cascade is called; lag is the 99th percentile of how late our own client sent."
)


def document_from(
    measured: OverloadResult, ground: OverloadSetup, load: OverloadLoad, *, machine: BenchMachine
) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "format": 1,
        "machine": machine.as_json(),
        "plan": {
            "data": ground.source.name,
            "members": [member.name for member in ground.spec.members],
            "thresholds": [stage.threshold for stage in ground.spec.stages[:-1]],
            "raise_wait_us": ground.spec.gears.raise_wait_us if ground.spec.gears else None,
            "gears": [list(gear.thresholds) for gear in ground.spec.gears.cheaper] if ground.spec.gears else [],
        },
        "load": {
            "rows_per_request": load.batch,
            "rounds": load.rounds,
            "seconds": load.seconds,
            "capacity_per_s": measured.capacity_per_s,
            "cheapest_gear_per_s": measured.cheapest_per_s,
            "unloaded_ms": measured.unloaded_ms,
            "deadline_ms": measured.deadline_ms,
            "most_in_flight": measured.most_in_flight,
        },
        "results": [
            {"factor": factor, "variant": name, **medians(scores), "rounds": rounds_json(scores)}
            for (factor, name), scores in measured.scores.items()
        ],
    }


def report_from(
    measured: OverloadResult,
    ground: OverloadSetup,
    load: OverloadLoad,
    *,
    machine: BenchMachine,
    picture: str | None,
) -> str:
    """The report for people."""
    busy = "**The machine was busy when the run began: do not trust the figures below.**"
    paragraphs = [
        "# Overload",
        "Written by `python -m perf overload`; running it again replaces this file.",
        f"Machine: {machine.words}.",
        *([busy] if machine.is_busy else []),
        _plan_words(ground, load),
        _capacity_words(measured, ground, load),
        _LEGEND,
    ]
    lines = ["\n\n".join(paragraphs), "", *_HEAD]
    factors = dict.fromkeys(factor for factor, _ in measured.scores)
    lines += [_line(measured, factor, variant.name) for factor in factors for variant in VARIANTS]
    if picture is not None:
        lines += ["", f"![overload]({picture})"]
    return "\n".join([*lines, ""])


def _plan_words(ground: OverloadSetup, load: OverloadLoad) -> str:
    members = ", then ".join(member.name for member in ground.spec.members)
    return (
        f"The cheapest plan on {ground.source.reference} minus {EPSILON:g}, chosen on plan rows: {members}. "
        f"Requests of {load.batch} rows of the test part of {ground.source.name}, {load.rounds} rounds of "
        f"{load.seconds:g} s, variants in turns, Poisson arrivals at the same moments for all variants of a round."
    )


def _capacity_words(measured: OverloadResult, ground: OverloadSetup, load: OverloadLoad) -> str:
    return (
        "Capacity with the plan's own thresholds and no deadline: "
        f"{measured.capacity_per_s:.0f} requests/s; with every request in the cheapest gear "
        f"{measured.cheapest_per_s:.0f}, which bounds what gears can do. Every request has "
        f"{measured.deadline_ms:.0f} ms ({load.deadline_factor:g} times the unloaded median of "
        f"{measured.unloaded_ms:.1f} ms) from the moment it is due until the client has its answer; after four "
        "fifths of it the server's answer is due, as `deadline_at_us`, so that the wait in front of the cascade "
        "counts; with `deadline_us`, which begins to count in the cascade, it does not. "
        f"{_gears_words(ground, measured)}Turning away is what a gateway in front does: while "
        f"{measured.most_in_flight} requests are under way, others are refused."
    )


def _gears_words(ground: OverloadSetup, measured: OverloadResult) -> str:
    """How long deferred rows wait before the gear shifts, and whether any can wait that long."""
    if ground.spec.gears is None:
        return ""
    wait_ms = ground.spec.gears.raise_wait_us / 1000
    never = wait_ms >= SERVER_SHARE * measured.deadline_ms
    unseen = " (the deadline ends their wait before)" if never else ""
    return (
        f"A cheaper gear is due when deferred rows have waited {wait_ms:g} ms{unseen}, or batches have come full "
        "from Triton's queue for that long. "
    )


def _line(measured: OverloadResult, factor: float, name: str) -> str:
    found = medians(measured.scores[factor, name])
    title = next(variant.title for variant in VARIANTS if variant.name == name)
    exits = "/".join(f"{100 * share:.0f}" for share in found["exits"])
    cells = [
        f"{factor:g} x capacity",
        title,
        _share(found["in_time"]),
        _share(found["good"]),
        _share(found["answered"]),
        _share(found["accuracy"], digits=2),
        _ms(found["p50_ms"]),
        _ms(found["p99_ms"]),
        _share(found["cut"]),
        _share(found["geared"]),
        "{} + {}".format(*found["shifts"]),
        _ms(found["queue_ms"]),
        _ms(found["lag_p99_ms"]),
        exits,
    ]
    return "| " + " | ".join(cells) + " |"


def _share(figure: dict[str, float], *, digits: int = 1) -> str:
    low, high = 100 * figure["min"], 100 * figure["max"]
    return f"{100 * figure['median']:.{digits}f} % ({low:.{digits}f} to {high:.{digits}f})"


def _ms(figure: dict[str, float] | None) -> str:
    return "" if figure is None else f"{figure['median']:.1f}"


def draw(measured: OverloadResult, path: Path) -> None:
    """Good rows of all rows sent, by load and variant."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    factors = sorted({factor for factor, _ in measured.scores})
    figure, axes = plt.subplots(figsize=(8.0, 4.8), layout="constrained")
    for variant, colour in zip(VARIANTS, ("#c44e52", "#4c72b0", "#dd8452", "#8c8c8c", "#55a868"), strict=True):
        found = [medians(measured.scores[factor, variant.name])["good"] for factor in factors]
        middle = [100 * one["median"] for one in found]
        low = [100 * (one["median"] - one["min"]) for one in found]
        high = [100 * (one["max"] - one["median"]) for one in found]
        axes.errorbar(
            factors,
            middle,
            yerr=[low, high],
            marker="o",
            capsize=3,
            color=colour,
            label=variant.title.replace("`", ""),
        )
    axes.set_xlabel("arrivals over capacity")
    axes.set_ylabel("rows answered in time and right, % of those sent")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
