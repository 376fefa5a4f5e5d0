"""RESULTS.md and its plots; no figure in them is typed by hand."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from perf.harness.report import cell_lines, colour_of, draw_plots, failure_lines, target_lines
from perf.harness.run import Results
from perf.harness.serving import BASE_CONCURRENCY, BASE_DEFERRAL

GROUPS = {
    "closed": "Closed loops",
    "poisson": "Poisson arrivals (our open-loop client; latency from the moment a request was due)",
    "analyzer_poisson": "Poisson arrivals by perf_analyzer, as a cross-check",
}


def write_report(results: Results, path: Path) -> list[Path]:
    """Writes the report, verdict.json beside it for the README, and its plots in a folder; returns their paths."""
    pictures = (pictures_of(results.cells, path.parent / "plots", scenario=name) for name in results.scenarios)
    plots = [plot for some in pictures for plot in draw_plots(some)]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = report_from_results(results, pictures=[f"plots/{one.name}" for one in plots])
    path.write_text(text, encoding="utf-8")
    return [path, results.write_verdict(path.with_name("verdict.json")), *plots]


def report_from_results(results: Results, *, pictures: Iterable[str]) -> str:
    """The text of RESULTS.md."""
    lines = [
        "# Results",
        "",
        f"Written by `{results.command}`; running it again replaces this file.",
        "",
        f"Machine: {results.machine.words}.",
        "",
        f"A {results.kind} run of {results.minutes:.0f} minutes: {results.rounds} interleaved rounds, windows of "
        f"{results.seconds:g} s{_long_words(results)}, medians over rounds. Spread is (max - min) / median over "
        "the rounds, of requests/s in closed loops and of p50 under Poisson arrivals. Latencies are in "
        "milliseconds. CPU ms is the server's processor time per request, messages those between the server and "
        "the route's own processes (each batch and each call of a member one there and one back, each late answer "
        "one more), MiB the server's peak memory with the route's own models, shared memory included. Of bound is "
        "requests/s over min(min over stages of the member's own rows/s / reach, cores / processor seconds per "
        "request), with what sets it. Intervals are of the mean ratio over rounds (Student's t of its logarithm).",
        "",
    ]
    if results.machine.is_busy:
        lines += [
            f"**The machine was busy when the run began ({results.machine.cores_in_use:.1f} processors in use): "
            "do not trust the figures below.**",
            "",
        ]
    lines += ["## Targets", "", *target_lines(results.targets), ""]
    for name, title in results.scenarios.items():
        lines += [f"## {title}", ""]
        ours = results.cells[results.cells.scenario == name]
        for sender, heading in GROUPS.items():
            group = ours[ours.sender == sender]
            if len(group):
                lines += [f"### {heading}", "", *cell_lines(group), ""]
    lines += failure_lines(results.failures)
    shown = [f"![{Path(path).stem}]({path})" for path in pictures]
    return "\n".join([*lines, *(["## Plots", "", *shown, ""] if shown else [])])


def _long_words(results: Results) -> str:
    if results.long_seconds is None:
        return ""
    return f" (where a tail is held against a target {results.long_rounds} of {results.long_seconds:g} s)"


def pictures_of(cells: pd.DataFrame, folder: Path, *, scenario: str) -> dict[Path, Callable[[Any], bool]]:
    """The plots of one scenario by their files."""
    ours = cells[(cells.scenario == scenario) & (cells.batch == 1)]
    closed = ours[ours.sender == "closed"]
    base, in_flight = closed[closed.deferral == BASE_DEFERRAL], closed[closed.concurrency == BASE_CONCURRENCY]
    pictures = {
        "throughput": partial(_throughput, base),
        "latency": partial(_latency, base[base.concurrency == BASE_CONCURRENCY]),
        "tails": partial(_tail_plot, ours[ours.sender == "poisson"]),
        "deferral": partial(_deferral, in_flight),
    }
    return {folder / f"{scenario}-{name}.png": draw for name, draw in pictures.items()}


def _throughput(cells: pd.DataFrame, axes: Any) -> bool:
    drawn = _lines(axes, cells, x=cells.concurrency.astype(float), y=cells.requests_per_s)
    axes.set_xscale("log", base=2)
    _log(axes, "y")
    axes.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("requests/s, median over rounds (log scale)")
    axes.set_title("Closed loop, batch 1, 15 % of rows to the last stage")
    return drawn


def _latency(cells: pd.DataFrame, axes: Any) -> bool:
    """Easy and hard rows at 16 in flight: a bar from p50 to p99 each."""
    cells = cells[cells.easy_p50_ms.notna()]
    for row, (_, cell) in enumerate(cells.iterrows()):
        for part, offset, alpha in (("easy", 0.17, 1.0), ("hard", -0.17, 0.45)):
            low, high = cell[f"{part}_p50_ms"], cell[f"{part}_p99_ms"]
            if pd.notna(low) and pd.notna(high):
                style = {"color": colour_of(cell.route), "alpha": alpha, "linewidth": 7}
                axes.plot([low, high], [row + offset] * 2, solid_capstyle="butt", **style)
                axes.annotate(f" {part}", (high, row + offset), fontsize=8, va="center")
    axes.set_yticks(range(len(cells)), cells.route.tolist())
    _log(axes, "x")
    axes.margins(x=0.15)
    axes.set_xlabel("milliseconds from p50 to p99 (log scale)")
    axes.set_title("Easy and hard rows, 16 requests in flight")
    return len(cells) > 0


def _tail_plot(cells: pd.DataFrame, axes: Any) -> bool:
    drawn = _lines(axes, cells, x=cells.rate, y=cells.p99_ms.fillna(0.0))
    _log(axes, "y")
    axes.set_xlabel("requests/s that arrive")
    axes.set_ylabel("p99 of all rows, milliseconds (log scale)")
    axes.set_title("Poisson arrivals, latency from the moment a request was due")
    return drawn


def _deferral(cells: pd.DataFrame, axes: Any) -> bool:
    varied = cells.route[cells.deferral != BASE_DEFERRAL]
    cells = cells[cells.route.isin(varied)]
    drawn = _lines(axes, cells, x=100 * cells.deferral, y=cells.requests_per_s)
    _log(axes, "y")
    axes.set_xlabel("rows that reach the last stage, percent")
    axes.set_ylabel("requests/s, median over rounds (log scale)")
    axes.set_title("16 requests in flight, batch 1")
    return drawn


def _log(axes: Any, which: str) -> None:
    """A log axis whose ticks are plain numbers, within one decade too."""
    from matplotlib.ticker import FuncFormatter, LogLocator  # optional, and start-up time

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _lines(axes: Any, cells: pd.DataFrame, *, x: pd.Series, y: pd.Series) -> bool:
    """One line per route; False where there was nothing to draw."""
    for route in cells.route.unique():
        ours = cells.route == route
        points = sorted(set(zip(x[ours], y[ours], strict=True)))
        width = 2.4 if route == "committee" else 1.4
        axes.plot(*zip(*points, strict=True), marker="o", color=colour_of(route), linewidth=width, label=route)
    if len(cells):
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return len(cells) > 0
