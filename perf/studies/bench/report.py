"""Targets held against what was measured, then RESULTS.md and its plots; no figure in them is typed by hand."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from perf.harness.frame import TargetVerdict, figure, find_cell, ratio
from perf.harness.report import cell_lines, colour_of, draw_plots, failure_lines, target_lines
from perf.harness.run import Results
from perf.harness.serving import BASE_CONCURRENCY, BASE_DEFERRAL
from perf.studies.leak import Growth


class CellLookup:
    """Finds cells in the frame of all scenarios by what was measured."""

    def __init__(self, cells: pd.DataFrame) -> None:
        self._cells = cells

    def find(self, route: str | None, *, scenario: str = "three_cnn", **load: Any) -> pd.Series | None:
        """The closed loop of a route whose load has these fields; batch 1 and 15 % unless said."""
        wanted = {"batch": 1, "deferral": BASE_DEFERRAL, "share_of_capacity": None, "sender": "closed", **load}
        return find_cell(self._cells, scenario=scenario, route=route, **wanted)

    def pair(self, *routes: str | None, **load: Any) -> list[pd.Series | None]:
        """The cells of two routes, as `find`."""
        return [self.find(route, **load) for route in routes]

    def better_concatenate(self) -> str | None:
        """The form that rates were taken from."""
        of_route = self._cells.of_route.dropna()
        return next((name for name in of_route if name.startswith("concatenate")), None)

    def best(self, route: str, *, batch: int = 1, scenario: str = "three_cnn") -> pd.Series | None:
        """The closed loop with the base mix in which a route reached the most rows/s."""
        cells = self._cells
        cells = cells[(cells.scenario == scenario) & (cells.route == route) & (cells.sender == "closed")]
        cells = cells[(cells.batch == batch) & (cells.deferral == BASE_DEFERRAL)]
        return None if cells.empty else cells.loc[cells.rows_per_s.idxmax()]

    def last_member(self, scenario: str) -> str:
        """The route of a scenario's last member."""
        routes = self._cells.route[self._cells.scenario == scenario]
        return max((name for name in routes if name.startswith("member_")), default="member_0")


def verdicts(
    cells: pd.DataFrame, *, members: int, predicted_speedup: float | None, leak: Growth | None
) -> list[TargetVerdict]:
    """Every target with what was measured.

    Args:
        cells: frame of all scenarios.
        members: of the three-CNN scenario.
        predicted_speedup: what the glyphs plan promises against its largest member, None where not known.
        leak: what `perf leak` found, None where not measured.
    """
    lookup = CellLookup(cells)
    largest = f"member_{members - 1}"
    return [
        *_against_tutorial(lookup),
        *_tails(lookup),
        *_against_bound(lookup, largest),
        *_against_largest(lookup, largest, predicted_speedup),
        _at_most(
            2.0,
            "perf leak: growth of resident and shared memory after warm-up, percent",
            None if leak is None else leak.percent,
            note="" if leak is None else leak.note,
        ),
    ]


def _at_least(needed: float, target: str, measured: float | None, **more: Any) -> TargetVerdict:
    return TargetVerdict(target=target, needed=needed, sense="at least", measured=measured, **more)


def _at_most(needed: float, target: str, measured: float | None, **more: Any) -> TargetVerdict:
    return TargetVerdict(target=target, needed=needed, sense="at most", measured=measured, **more)


def _over(name: str, *cells: pd.Series | None) -> float | None:
    """A figure of one cell over another's."""
    return ratio(*(figure(cell, name) for cell in cells))


def _saved(ours: pd.Series | None, theirs: pd.Series | None) -> str:
    """Their ratio by processor time, which does not count the core that one call at a time leaves idle."""
    return _noted("by the server's processor time per request {:.2f}", _over("cpu_ms_per_request", theirs, ours))


def _noted(words: str, value: float | None) -> str:
    return "" if value is None else words.format(value)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _against_tutorial(lookup: CellLookup) -> list[TargetVerdict]:
    found = []
    for concurrency in (16, 64):
        pair = lookup.pair("committee", "tutorial", concurrency=concurrency)
        possible = ratio(figure(pair[0], "bound_requests_per_s"), figure(pair[1], "requests_per_s"))
        against_several = _over("requests_per_s", pair[0], lookup.find("tutorial_4", concurrency=concurrency))
        note = _joined(
            _noted("0.9 x bound / tutorial is {:.2f}", None if possible is None else 0.9 * possible),
            _noted("against 4 instances of it {:.2f}", against_several),
            _saved(*pair),
        )
        target = f"requests/s against the tutorial form, concurrency {concurrency}"
        found.append(_at_least(1.6, target, _over("requests_per_s", *pair), note=note, cells=pair))
    pair = lookup.pair("committee", "tutorial", concurrency=16)
    target = "p50 of easy rows against the tutorial form, concurrency 16"
    return [*found, _at_most(0.1, target, _over("easy_p50_ms", *pair), cells=pair)]


def _tails(lookup: CellLookup) -> list[TargetVerdict]:
    best = lookup.better_concatenate()
    found = []
    for title, baseline, needed in (
        ("the tutorial form", "tutorial", 0.5),
        ("the better of the concatenating forms", best, 0.7),
    ):
        load = {"sender": "poisson", "share_of_capacity": 0.8, "of_route": baseline}
        pair = [None, None] if baseline is None else lookup.pair("committee", baseline, **load)
        target = f"p99 of all rows at the same Poisson arrivals, 80 % of its capacity, against {title}"
        note = "" if best is None or baseline != best else f"the better one is {best}"
        found.append(_at_most(needed, target, _over("p99_ms", *pair), note=note, cells=pair))
    return found


def _against_bound(lookup: CellLookup, largest: str) -> list[TargetVerdict]:
    at_64 = lookup.find("committee", concurrency=64)
    alone = lookup.pair("committee", "pass_through", concurrency=1)
    easy = lookup.pair("committee", "pass_through", concurrency=16, deferral=0.0)
    hard = [lookup.find("committee", concurrency=number, deferral=1.0) for number in (16, 64)]
    every = max((cell for cell in hard if cell is not None), key=lambda cell: cell.requests_per_s, default=None)
    last = lookup.best(largest)
    bound_by = None if at_64 is None else at_64.bound_by
    return [
        _at_least(
            0.90,
            "requests/s against the bound, concurrency 64",
            figure(at_64, "efficiency"),
            note="" if bound_by is None else f"the bound is set by {bound_by}",
            cells=(at_64,),
        ),
        _at_most(
            1.15,
            "easy-row p50 at concurrency 1 against the BLS pass-through",
            ratio(figure(alone[0], "easy_p50_ms"), figure(alone[1], "p50_ms")),
            cells=alone,
        ),
        _at_least(
            0.90,
            "0 % deferral: requests/s against the BLS pass-through, concurrency 16",
            _over("requests_per_s", *easy),
            cells=easy,
        ),
        _at_least(
            0.90,
            "100 % deferral: rows/s against the last member alone",
            _over("rows_per_s", every, last),
            cells=(every, last),
        ),
    ]


def _against_largest(lookup: CellLookup, largest: str, predicted: float | None) -> list[TargetVerdict]:
    cnn = [lookup.best(route) for route in ("committee", largest)]
    two = _over("rows_per_s", cnn[0], lookup.best("largest_2"))
    last = lookup.last_member("glyphs")
    both = [lookup.best(route, scenario="glyphs", batch=32) for route in ("committee", last)]
    glyphs = _over("rows_per_s", *both)
    return [
        _at_least(
            5.5,
            "requests/s against the largest member alone, three CNNs",
            _over("rows_per_s", *cnn),
            note=_joined(_noted("against 2 instances of it {:.2f}", two), _saved(*cnn)),
            cells=cnn,
        ),
        _at_least(
            0.7,
            "glyphs at request batch 32: speed-up over the largest member, share of what the plan predicts",
            ratio(glyphs, predicted),
            note="" if predicted is None or glyphs is None else _glyphs_note(lookup, last, glyphs, predicted),
            cells=both,
        ),
    ]


def _glyphs_note(lookup: CellLookup, last: str, speedup: float, predicted: float) -> str:
    """The parts of the ratio, and the ratio by processor time: one member alone leaves cores idle."""
    saved = _over("cpu_ms_per_request", *lookup.pair(last, "committee", scenario="glyphs", batch=32))
    words = f"{speedup:.2f}x, predicted {predicted:.2f}x; earned mix"
    if saved is None:
        return words
    return (
        f"{words}; the largest has one thread and the plan's stages one each: by the server's processor time per "
        f"request it is {saved:.2f}x, {saved / predicted:.2f} of what is predicted"
    )


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
    lines += failure_lines(results.failures)
    shown = [f"![{Path(path).stem}]({path})" for path in pictures]
    return "\n".join([*lines, *(["## Plots", "", *shown, ""] if shown else [])])


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
