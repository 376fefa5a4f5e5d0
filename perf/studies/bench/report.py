"""Targets held against what was measured, then RESULTS.md and its plots; no figure in them is typed by hand."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from perf.harness.frame import TargetVerdict, figure, find_cell, ratio
from perf.harness.report import cell_lines, colour_of, draw_plot, target_lines
from perf.harness.run import Results
from perf.harness.serving import BASE_CONCURRENCY, BASE_DEFERRAL
from perf.studies.leak import Growth


class CellLookup:
    """Finds cells by what was measured.

    Args:
        cells: frame of all scenarios.
    """

    def __init__(self, cells: pd.DataFrame) -> None:
        self._cells = cells

    def find(self, route: str, *, scenario: str = "three_cnn", **load: Any) -> pd.Series | None:
        """The closed loop of a route whose load has these fields; batch 1 and 15 % unless said."""
        wanted = {"batch": 1, "deferral": BASE_DEFERRAL, "share_of_capacity": None, "sender": "closed", **load}
        return find_cell(self._cells, scenario=scenario, route=route, **wanted)

    def poisson(self, route: str, of_route: str | None) -> pd.Series | None:
        """The Poisson cell of a route at 80 % of another's capacity."""
        if of_route is None:
            return None
        return self.find(route, sender="poisson", share_of_capacity=0.8, of_route=of_route)

    def better_concatenate(self) -> str | None:
        """The form that rates were taken from."""
        of_route = self._cells.of_route.dropna()
        return next((name for name in of_route if name.startswith("concatenate")), None)

    def best(self, route: str, *, batch: int, scenario: str = "three_cnn") -> pd.Series | None:
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
        TargetVerdict(
            target="perf leak: growth of resident and shared memory after warm-up, percent",
            needed=2.0,
            sense="at most",
            measured=None if leak is None else leak.percent,
            note="" if leak is None else leak.note,
        ),
    ]


def _rates(*cells: pd.Series | None) -> float | None:
    """Requests/s of one cell over another's."""
    return ratio(*(figure(cell, "requests_per_s") for cell in cells))


def _row_rates(*cells: pd.Series | None) -> float | None:
    """Rows/s of one cell over another's."""
    return ratio(*(figure(cell, "rows_per_s") for cell in cells))


def _saved(ours: pd.Series | None, theirs: pd.Series | None) -> str:
    """Their ratio by processor time, which does not count the core that one call at a time leaves idle."""
    saved = ratio(*(figure(cell, "cpu_ms_per_request") for cell in (theirs, ours)))
    return "" if saved is None else f"by the server's processor time per request {saved:.2f}"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _against_tutorial(lookup: CellLookup) -> list[TargetVerdict]:
    found = []
    for concurrency in (16, 64):
        ours, theirs, several = (
            lookup.find(route, concurrency=concurrency) for route in ("committee", "tutorial", "tutorial_4")
        )
        possible = ratio(figure(ours, "bound_requests_per_s"), figure(theirs, "requests_per_s"))
        against_several = _rates(ours, several)
        found.append(
            TargetVerdict(
                target=f"requests/s against the tutorial form, concurrency {concurrency}",
                needed=1.6,
                sense="at least",
                measured=_rates(ours, theirs),
                note=_joined(
                    "" if possible is None else f"0.9 x bound / tutorial is {0.9 * possible:.2f}",
                    "" if against_several is None else f"against 4 instances of it {against_several:.2f}",
                    _saved(ours, theirs),
                ),
                cells=(ours, theirs),
            )
        )
    at_16 = [lookup.find(route, concurrency=16) for route in ("committee", "tutorial")]
    return [
        *found,
        TargetVerdict(
            target="p50 of easy rows against the tutorial form, concurrency 16",
            needed=0.1,
            sense="at most",
            measured=ratio(*(figure(cell, "easy_p50_ms") for cell in at_16)),
            cells=at_16,
        ),
    ]


def _tails(lookup: CellLookup) -> list[TargetVerdict]:
    best = lookup.better_concatenate()
    found = []
    for title, baseline, needed in (
        ("the tutorial form", "tutorial", 0.5),
        ("the better of the concatenating forms", best, 0.7),
    ):
        pair = [None if route is None else lookup.poisson(route, baseline) for route in ("committee", baseline)]
        found.append(
            TargetVerdict(
                target=f"p99 of all rows at the same Poisson arrivals, 80 % of its capacity, against {title}",
                needed=needed,
                sense="at most",
                measured=ratio(*(figure(cell, "p99_ms") for cell in pair)),
                note="" if best is None or baseline != best else f"the better one is {best}",
                cells=pair,
            )
        )
    return found


def _against_bound(lookup: CellLookup, largest: str) -> list[TargetVerdict]:
    at_64 = lookup.find("committee", concurrency=64)
    alone = [lookup.find(route, concurrency=1) for route in ("committee", "pass_through")]
    easy = [lookup.find(route, concurrency=16, deferral=0.0) for route in ("committee", "pass_through")]
    hard = [lookup.find("committee", concurrency=number, deferral=1.0) for number in (16, 64)]
    every = max((cell for cell in hard if cell is not None), key=lambda cell: cell.requests_per_s, default=None)
    last = lookup.best(largest, batch=1)
    bound_by = None if at_64 is None else at_64.bound_by
    return [
        TargetVerdict(
            target="requests/s against the bound, concurrency 64",
            needed=0.90,
            sense="at least",
            measured=figure(at_64, "efficiency"),
            note="" if bound_by is None else f"the bound is set by {bound_by}",
            cells=(at_64,),
        ),
        TargetVerdict(
            target="easy-row p50 at concurrency 1 against the BLS pass-through",
            needed=1.15,
            sense="at most",
            measured=ratio(figure(alone[0], "easy_p50_ms"), figure(alone[1], "p50_ms")),
            cells=alone,
        ),
        TargetVerdict(
            target="0 % deferral: requests/s against the BLS pass-through, concurrency 16",
            needed=0.90,
            sense="at least",
            measured=_rates(*easy),
            cells=easy,
        ),
        TargetVerdict(
            target="100 % deferral: rows/s against the last member alone",
            needed=0.90,
            sense="at least",
            measured=_row_rates(every, last),
            cells=(every, last),
        ),
    ]


def _against_largest(lookup: CellLookup, largest: str, predicted: float | None) -> list[TargetVerdict]:
    cnn = [lookup.best(route, batch=1) for route in ("committee", largest)]
    two = _row_rates(cnn[0], lookup.best("largest_2", batch=1))
    last = lookup.last_member("glyphs")
    both = [lookup.best(route, scenario="glyphs", batch=32) for route in ("committee", last)]
    glyphs = _row_rates(*both)
    return [
        TargetVerdict(
            target="requests/s against the largest member alone, three CNNs",
            needed=5.5,
            sense="at least",
            measured=_row_rates(*cnn),
            note=_joined("" if two is None else f"against 2 instances of it {two:.2f}", _saved(*cnn)),
            cells=cnn,
        ),
        TargetVerdict(
            target="glyphs at request batch 32: speed-up over the largest member, share of what the plan predicts",
            needed=0.7,
            sense="at least",
            measured=ratio(glyphs, predicted),
            note="" if predicted is None or glyphs is None else _glyphs_note(lookup, last, glyphs, predicted),
            cells=both,
        ),
    ]


def _glyphs_note(lookup: CellLookup, last: str, speedup: float, predicted: float) -> str:
    """The parts of the ratio, and the ratio by processor time: one member alone leaves cores idle."""
    cells = [lookup.find(route, scenario="glyphs", batch=32) for route in (last, "committee")]
    saved = ratio(*(figure(cell, "cpu_ms_per_request") for cell in cells))
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
        "tails": lambda axes: _tail_plot(axes, ours[(ours.sender == "poisson") & (ours.batch == 1)]),
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


def _tail_plot(axes: Any, cells: pd.DataFrame) -> bool:
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
