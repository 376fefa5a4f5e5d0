"""RESULTS.md and its plots, written from results; no figure in them is typed by hand."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from perf.harness.cells import BASE_CONCURRENCY, BASE_DEFERRAL
from perf.harness.report import cell_lines, colour_of, draw_plot, target_lines
from perf.harness.run import Results

GROUPS = {
    "closed": "Closed loops",
    "poisson": "Poisson arrivals (our open-loop client; latency from the moment a request was due)",
    "analyzer_poisson": "Poisson arrivals by perf_analyzer, as a cross-check",
}


def write_report(results: Results, path: Path) -> list[Path]:
    """Writes the report, verdict.json beside it for the README, and its plots in a folder; returns their paths."""
    plots = [
        picture
        for name in results.scenarios
        for picture in draw_plots(results.cells, path.parent / "plots", scenario=name)
    ]
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
        f"{results.seconds:g} s, medians over rounds. Spread is (max - min) / median over the rounds, of "
        "requests/s in closed loops and of p50 under Poisson arrivals. Latencies are in milliseconds. CPU ms is "
        "the server's processor time per request, MiB its peak memory with the route's own models, shared memory "
        "included. Of bound is requests/s over min(min over stages of the member's own rows/s / reach, cores / "
        "processor seconds per request), with what sets it.",
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
    if results.failures:
        lines += ["## Not measured", "", *(f"- `{key}`: {text}" for key, text in results.failures.items()), ""]
    shown = [f"![{Path(path).stem}]({path})" for path in pictures]
    return "\n".join([*lines, *(["## Plots", "", *shown, ""] if shown else [])])


def draw_plots(cells: pd.DataFrame, folder: Path, *, scenario: str) -> list[Path]:
    """Draws what the cells of one scenario allow and returns the files."""
    ours = cells[cells.scenario == scenario]
    plain = ours[(ours.sender == "closed") & (ours.batch == 1)]
    pictures: dict[str, Callable[[Any], bool]] = {
        "throughput": lambda axes: _throughput(axes, plain[plain.deferral == BASE_DEFERRAL]),
        "latency": lambda axes: _latency(
            axes, plain[(plain.concurrency == BASE_CONCURRENCY) & (plain.deferral == BASE_DEFERRAL)]
        ),
        "tails": lambda axes: _tails(axes, ours[(ours.sender == "poisson") & (ours.batch == 1)]),
        "deferral": lambda axes: _deferral(axes, plain[plain.concurrency == BASE_CONCURRENCY]),
    }
    return [path for name, draw in pictures.items() for path in draw_plot(folder / f"{scenario}-{name}.png", draw)]


def _throughput(axes: Any, cells: pd.DataFrame) -> bool:
    """Requests/s over the requests in flight."""
    drawn = _lines(axes, cells, x=cells.concurrency.astype(float), y=cells.requests_per_s)
    axes.set_xscale("log", base=2)
    _log(axes, "y")
    axes.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("requests/s, median over rounds (log scale)")
    axes.set_title("Closed loop, batch 1, 15 % of rows to the last stage")
    return drawn


def _latency(axes: Any, cells: pd.DataFrame) -> bool:
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


def _tails(axes: Any, cells: pd.DataFrame) -> bool:
    """p99 over the rate of Poisson arrivals."""
    drawn = _lines(axes, cells, x=cells.rate, y=cells.p99_ms.fillna(0.0))
    _log(axes, "y")
    axes.set_xlabel("requests/s that arrive")
    axes.set_ylabel("p99 of all rows, milliseconds (log scale)")
    axes.set_title("Poisson arrivals, latency from the moment a request was due")
    return drawn


def _deferral(axes: Any, cells: pd.DataFrame) -> bool:
    """Requests/s over the share of rows that reach the last stage."""
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
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            marker="o",
            color=colour_of(route),
            linewidth=2.4 if route == "committee" else 1.4,
            label=route,
        )
    if len(cells):
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return len(cells) > 0
