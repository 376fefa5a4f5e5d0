"""Pictures of a run: throughput, latencies of easy and hard rows, tails under Poisson arrivals, deferral."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from perf.harness.cells import BASE_CONCURRENCY, BASE_DEFERRAL
from perf.harness.summary import Summary

# One colour per route in every picture; ours is the only saturated one.
COLOURS = {
    "committee": "#c44e52",
    "tutorial": "#4c72b0",
    "tutorial_4": "#86a3d1",
    "concatenate_1": "#8172b3",
    "concatenate_4": "#937860",
    "pass_through": "#8c8c8c",
    "client_sync": "#64b5cd",
    "client_asyncio": "#55a868",
    "ensemble": "#ccb974",
    "onefile": "#dd8452",
}
_OTHER = ("#b0b0b0", "#909090", "#606060", "#303030")


def draw_plots(summaries: Sequence[Summary], folder: Path, *, scenario: str) -> list[Path]:
    """Draws what the summaries of one scenario allow and returns the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    ours = [one for one in summaries if one.cell.scenario == scenario]
    pictures: dict[str, Callable[[Any, Sequence[Summary]], bool]] = {
        "throughput": _throughput,
        "latency": _latency,
        "tails": _tails,
        "deferral": _deferral,
    }
    paths = []
    for name, draw in pictures.items():
        figure, axes = plt.subplots(figsize=(8.0, 4.8), layout="constrained")
        if draw(axes, ours):
            axes.grid(alpha=0.3)
            paths.append(folder / f"{scenario}-{name}.png")
            # Without the library's version in it, the same figures give the same bytes.
            figure.savefig(paths[-1], dpi=120, metadata={"Software": None})
        plt.close(figure)
    return paths


def _throughput(axes: Any, summaries: Sequence[Summary]) -> bool:
    """Requests/s over the requests in flight."""
    chosen = [one for one in summaries if _plain(one) and one.cell.deferral == BASE_DEFERRAL]
    drawn = _lines(axes, chosen, x=lambda one: float(one.cell.concurrency or 0), y=lambda one: one.requests_per_s)
    axes.set_xscale("log", base=2)
    _log(axes, "y")
    axes.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("requests/s, median over rounds (log scale)")
    axes.set_title("Closed loop, batch 1, 15 % of rows to the last stage")
    return drawn


def _latency(axes: Any, summaries: Sequence[Summary]) -> bool:
    """Easy and hard rows at 16 in flight: a bar from p50 to p99 each."""
    chosen = [
        one
        for one in summaries
        if _plain(one)
        and (one.cell.concurrency, one.cell.deferral) == (BASE_CONCURRENCY, BASE_DEFERRAL)
        and one.latency_ms.get("easy_p50_ms")
    ]
    for row, one in enumerate(chosen):
        for part, offset, alpha in (("easy", 0.17, 1.0), ("hard", -0.17, 0.45)):
            low, high = one.latency_ms.get(f"{part}_p50_ms"), one.latency_ms.get(f"{part}_p99_ms")
            if low is not None and high is not None:
                colour = _colour(one.cell.route)
                axes.plot(
                    [low, high], [row + offset] * 2, color=colour, alpha=alpha, linewidth=7, solid_capstyle="butt"
                )
                axes.annotate(f" {part}", (high, row + offset), fontsize=8, va="center")
    axes.set_yticks(range(len(chosen)), [one.cell.route for one in chosen])
    _log(axes, "x")
    axes.margins(x=0.15)
    axes.set_xlabel("milliseconds from p50 to p99 (log scale)")
    axes.set_title("Easy and hard rows, 16 requests in flight")
    return bool(chosen)


def _tails(axes: Any, summaries: Sequence[Summary]) -> bool:
    """p99 over the rate of Poisson arrivals."""
    chosen = [one for one in summaries if one.cell.sender == "poisson" and one.cell.rate and one.cell.batch == 1]
    drawn = _lines(
        axes, chosen, x=lambda one: float(one.cell.rate or 0), y=lambda one: one.latency_ms.get("p99_ms") or 0.0
    )
    _log(axes, "y")
    axes.set_xlabel("requests/s that arrive")
    axes.set_ylabel("p99 of all rows, milliseconds (log scale)")
    axes.set_title("Poisson arrivals, latency from the moment a request was due")
    return drawn


def _deferral(axes: Any, summaries: Sequence[Summary]) -> bool:
    """Requests/s over the share of rows that reach the last stage."""
    at_base = [one for one in summaries if _plain(one) and one.cell.concurrency == BASE_CONCURRENCY]
    varied = {one.cell.route for one in at_base if one.cell.deferral != BASE_DEFERRAL}
    chosen = [one for one in at_base if one.cell.route in varied]
    drawn = _lines(axes, chosen, x=lambda one: 100 * one.cell.deferral, y=lambda one: one.requests_per_s)
    _log(axes, "y")
    axes.set_xlabel("rows that reach the last stage, percent")
    axes.set_ylabel("requests/s, median over rounds (log scale)")
    axes.set_title("16 requests in flight, batch 1")
    return drawn and bool(varied)


def _log(axes: Any, which: str) -> None:
    """A log axis whose ticks are plain numbers, within one decade too."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _plain(one: Summary) -> bool:
    return one.cell.sender == "closed" and one.cell.batch == 1


def _lines(
    axes: Any, summaries: Sequence[Summary], *, x: Callable[[Summary], float], y: Callable[[Summary], float]
) -> bool:
    """One line per route; False where there was nothing to draw."""
    routes = list(dict.fromkeys(one.cell.route for one in summaries))
    for route in routes:
        points = sorted({(x(one), y(one)) for one in summaries if one.cell.route == route})
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            marker="o",
            color=_colour(route),
            linewidth=2.4 if route == "committee" else 1.4,
            label=route,
        )
    if routes:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return bool(routes)


def _colour(route: str) -> str:
    if route in COLOURS:
        return COLOURS[route]
    digits = "".join(letter for letter in route if letter.isdigit())
    return _OTHER[int(digits or 0) % len(_OTHER)]
