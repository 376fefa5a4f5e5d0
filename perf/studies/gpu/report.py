"""GPU.md and the console tables, written from results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from perf.harness.report import cell_lines, number_text
from perf.studies.gpu.compare import CascadeSpeedup
from perf.studies.gpu.families import ABSTRACT
from perf.studies.gpu.results import GpuResults, NetworkRates

_MIX = (
    "The networks have the right architectures and random weights, and the exit mix is imposed: thresholds are "
    "set so that the shares below exit. The shares are arithmetic, those with which a cascade needs as many "
    "multiply-adds as the published speed-up leaves it; they are not the paper's, whose exit shares are not known "
    "here. Nothing in this file says anything about accuracy."
)
_SMALL = (
    "**Networks of a toy's size with random weights and an imposed exit mix, to try the command: the figures "
    "below say nothing about the families, and nothing about accuracy.**"
)


def report_from_results(results: GpuResults, *, pictures: Iterable[str]) -> str:
    """The text of GPU.md.

    Args:
        results: of a run.
        pictures: paths of the plots, from where the text will lie.
    """
    bench = results.bench
    lines = [
        "# Cascades of large networks",
        "",
        f"Written by `{bench.command}`; running it again replaces this file.",
        "",
        f"Device: {results.device.words}. Networks in {results.precision}.",
        "",
        f"Machine: {bench.machine.words}.",
        "",
        f"{bench.minutes:.0f} minutes: {bench.rounds} interleaved rounds, windows of {bench.seconds:g} s, medians "
        f"over rounds. {'' if results.small else _MIX}",
        "",
    ]
    if results.small:
        lines += [_SMALL, ""]
    if bench.machine.is_busy:
        lines += [
            f"**The machine was busy when the run began ({bench.machine.cores_in_use:.1f} processors in use).**",
            "",
        ]
    lines += ["## Speed-ups over the largest network alone", "", *_comparison_lines(results.comparisons), ""]
    lines += [*_paper_lines(results.comparisons), ""]
    lines += ["## Each network alone, rows/s in this process", "", *_alone_lines(results.alone), ""]
    for name, title in bench.scenarios.items():
        ours = bench.cells[bench.cells.scenario == name]
        lines += [f"## {title}", "", *cell_lines(ours), ""]
    if bench.failures:
        lines += ["## Not measured", "", *(f"- `{key}`: {text}" for key, text in bench.failures.items()), ""]
    return "\n".join([*lines, "## Plots", "", *(f"![{path}]({path})" for path in pictures), ""])


def _comparison_lines(comparisons: Sequence[CascadeSpeedup]) -> list[str]:
    head = (
        "cascade", "imposed reach", "measured reach", "online", "offline", "networks alone", "multiply-adds",
        "published, not ours", "online p50, ms", "online p99, ms", "offline rows/s",
    )  # fmt: skip
    rows = []
    for one in comparisons:
        published = "" if one.paper_speedup is None else f"{one.paper_speedup:g}x"
        pairs = [
            f"{number_text(one.online_ms[f'cascade_{part}'])} / {number_text(one.online_ms[f'baseline_{part}'])}"
            for part in ("p50_ms", "p99_ms")
        ]
        rates = one.offline_rows_per_s
        cells = [
            one.words,
            _shares(one.reach),
            _shares(one.measured_reach),
            _times(one.online_speedup),
            _times(one.offline_speedup),
            _times(one.alone_speedup),
            _times(one.macs_speedup),
            published,
            *pairs,
            f"{number_text(rates['cascade'])} / {number_text(rates['baseline'])}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]


def _paper_lines(comparisons: Sequence[CascadeSpeedup]) -> list[str]:
    lines = [
        "Online is the ratio of mean latencies, single rows one after another through the server; offline the "
        "ratio of rows/s with the server saturated. Networks alone is arithmetic with the rows/s of the next "
        "table, multiply-adds with their counts; pairs are the cascade's figure and the single network's. "
        "Deferred rows pass through every stage, so p99 of a cascade lies above the single network's.",
    ]
    if any(one.paper_speedup is not None for one in comparisons):
        lines += [
            "",
            f"Published is the paper's claim for the family at equal accuracy ({ABSTRACT}). It is of other "
            "hardware, other members and trained weights: shown beside, not compared.",
        ]
    return lines


def _alone_lines(alone: Sequence[NetworkRates]) -> list[str]:
    batches = sorted({batch for one in alone for batch in one.rows_per_s})
    rows = [
        "| " + " | ".join([one.member, *(number_text(one.rows_per_s.get(batch)) for batch in batches)]) + " |"
        for one in alone
    ]
    head = ["network", *(f"batch {batch}" for batch in batches)]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]


def table_from_comparisons(comparisons: Sequence[CascadeSpeedup]) -> Table:
    """The speed-ups for the console."""
    table = Table(
        title="speed-up over the largest network alone; exit mix imposed, random weights", box=box.SIMPLE_HEAD
    )
    table.add_column("cascade", overflow="fold")
    for name in ("to the last", "online", "offline", "networks alone", "multiply-adds", "published"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in comparisons:
        measured = one.measured_reach or one.reach
        table.add_row(
            one.words,
            f"{100 * measured[-1]:.1f} %",
            *map(_times, (one.online_speedup, one.offline_speedup, one.alone_speedup, one.macs_speedup)),
            _times(one.paper_speedup),
        )
    return table


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _shares(reach: Sequence[float] | None) -> str:
    return "" if reach is None else ", ".join(f"{100 * share:.1f} %" for share in reach)
