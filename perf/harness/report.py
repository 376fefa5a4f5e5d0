"""RESULTS.md and the console tables, written from results; no figure in them is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from perf.harness.results import Results
from perf.harness.summary import Summary, flags_of
from perf.studies.bench.targets import TargetVerdict

_MET = {True: "yes", False: "**no**", None: "not measured"}
GROUPS = {
    "closed": "Closed loops",
    "poisson": "Poisson arrivals (our open-loop client; latency from the moment a request was due)",
    "analyzer_poisson": "Poisson arrivals by perf_analyzer, as a cross-check",
}
_COLUMNS = (
    "route", "load", "req/s", "spread", "p50", "p95", "p99", "easy p50", "easy p99", "hard p50", "hard p99",
    "batch per member", "CPU ms", "MiB", "of bound", "notes",
)  # fmt: skip


def report_from_results(results: Results, *, pictures: Iterable[str]) -> str:
    """The text of RESULTS.md.

    Args:
        results: of a run.
        pictures: paths of the plots, from where the text will lie.
    """
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
    lines += ["## Targets", "", *_verdict_lines(results.verdicts), ""]
    for name, title in results.scenarios.items():
        ours = [one for one in results.summaries if one.cell.scenario == name]
        lines += [f"## {title}", ""]
        for sender, heading in GROUPS.items():
            group = [one for one in ours if one.cell.sender == sender]
            if group:
                lines += [f"### {heading}", "", *cell_lines(group), ""]
    if results.failures:
        lines += ["## Not measured", "", *(f"- `{key}`: {text}" for key, text in results.failures.items()), ""]
    shown = [f"![{Path(path).stem}]({path})" for path in pictures]
    return "\n".join([*lines, *(["## Plots", "", *shown, ""] if shown else [])])


def _verdict_lines(verdicts: Sequence[TargetVerdict]) -> list[str]:
    rows = [
        f"| {one.target} | {one.sense} {one.needed:g} | {number_text(one.measured)} | {met_text(one)} | "
        f"{one.remarks} |"
        for one in verdicts
    ]
    return ["| target | needed | measured | met | note |", "|---|---|---|---|---|", *rows]


def met_text(one: TargetVerdict) -> str:
    """Whether a target is met, in a word or two."""
    return "not judged" if one.met is None and one.measured is not None else _MET[one.met]


def cell_lines(summaries: Sequence[Summary]) -> list[str]:
    """A table of cells in markdown."""
    head = "| " + " | ".join(_COLUMNS) + " |"
    return [head, "|" + "---|" * len(_COLUMNS), *("| " + " | ".join(_cells(one)) + " |" for one in summaries)]


def _cells(one: Summary) -> list[str]:
    milliseconds = [
        number_text(one.latency_ms.get(name))
        for name in ("p50_ms", "p95_ms", "p99_ms", "easy_p50_ms", "easy_p99_ms", "hard_p50_ms", "hard_p99_ms")
    ]
    batches = ", ".join(f"{name} {value:.1f}" for name, value in one.mean_batch.items())
    bound = "" if one.bound is None else f"{100 * (one.efficiency or 0):.0f} % ({one.bound.by})"
    return [
        one.title,
        one.cell.words,
        number_text(one.requests_per_s),
        f"{100 * one.spread:.0f} %",
        *milliseconds,
        batches,
        number_text(1000 * one.cpu_s_per_request),
        f"{(one.resident_bytes + one.shm_bytes) / 2**20:.0f}",
        bound,
        notes_of(one),
    ]


def notes_of(one: Summary) -> str:
    """What a reader must know before using a cell's figures."""
    notes = flags_of(one)
    if one.lag_ms is not None:
        notes.append(f"send lag p50 {number_text(one.lag_ms[0])}, p99 {number_text(one.lag_ms[1])}")
    return ", ".join(notes)


def number_text(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table_from_verdicts(verdicts: Sequence[TargetVerdict]) -> Table:
    """The targets for the console."""
    table = Table(title="targets", box=box.SIMPLE_HEAD)
    table.add_column("target")
    for name in ("needed", "measured", "met"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in verdicts:
        note = f"\n  {one.remarks}" if one.remarks else ""
        met = met_text(one).strip("*")
        table.add_row(one.target + note, f"{one.sense} {one.needed:g}", number_text(one.measured), met)
    return table


def table_from_summaries(summaries: Sequence[Summary]) -> Table:
    """The cells for the console, in short."""
    table = Table(
        title="medians over rounds; load: c in flight or p % of a capacity, b rows each, d % to the last stage",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("route", no_wrap=True)
    table.add_column("load", no_wrap=True)
    for name in ("req/s", "spread", "p50", "p99", "easy p50", "hard p99", "of bound", "lag p99"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("notes", min_width=12)
    for one in summaries:
        efficiency = "" if one.efficiency is None else f"{100 * one.efficiency:.0f} %"
        table.add_row(
            one.cell.route,
            one.cell.load,
            number_text(one.requests_per_s),
            f"{100 * one.spread:.0f} %",
            *(
                number_text(one.latency_ms.get(name))
                for name in ("p50_ms", "p99_ms", "easy_p50_ms", "hard_p99_ms")
            ),
            efficiency,
            "" if one.lag_ms is None else number_text(one.lag_ms[1]),
            ", ".join(flags_of(one)),
        )
    return table
