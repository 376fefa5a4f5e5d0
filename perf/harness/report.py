"""What the reports of all studies share: tables, figures in words, what the console shows, plots."""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator.errors import interrupted_from
from perf.harness.frame import TargetVerdict, figure, flags_of

FILE_WIDTH = 140  # characters of a table's line in a file or a pipe
# One colour per route in every plot; only the cascade's own is saturated.
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
_MET = {True: "yes", False: "**no**", None: "not measured"}
_HEAD = (
    "route", "load", "req/s", "spread", "p50", "p95", "p99", "easy p50", "easy p99", "hard p50", "hard p99",
    "batch per member", "CPU ms", "messages", "MiB", "of bound", "notes",
)  # fmt: skip
_MILLISECONDS = (
    "p50_ms", "p95_ms", "p99_ms", "easy_p50_ms", "easy_p99_ms", "hard_p50_ms", "hard_p99_ms",
)  # fmt: skip


def number_text(value: float | None) -> str:
    """Three digits, without an exponent; nothing for None and NaN."""
    if value is None or pd.isna(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in markdown."""
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def cell_lines(cells: pd.DataFrame) -> list[str]:
    """A table of cells in markdown."""
    return markdown_table(_HEAD, [_texts(cell) for _, cell in cells.iterrows()])


def _texts(cell: pd.Series) -> list[str]:
    notes = flags_of(cell)
    if (lag := figure(cell, "send_lag_p50_ms")) is not None:
        notes.append(f"send lag p50 {number_text(lag)}, p99 {number_text(cell.send_lag_p99_ms)}")
    return [
        cell.title,
        cell.words,
        number_text(cell.requests_per_s),
        f"{100 * cell.spread:.0f} %",
        *(number_text(cell[name]) for name in _MILLISECONDS),
        ", ".join(f"{name} {value:.1f}" for name, value in cell.mean_batch.items()),
        number_text(cell.cpu_ms_per_request),
        number_text(cell.messages_per_request),
        f"{cell.resident_mib + cell.shm_mib:.0f}",
        "" if cell.bound_by is None else f"{100 * cell.efficiency:.0f} % ({cell.bound_by})",
        ", ".join(notes),
    ]


def failure_lines(failures: Mapping[str, str]) -> list[str]:
    """The section of a report about what could not be measured; empty where all could."""
    lines = [f"- `{key}`: {text}" for key, text in failures.items()]
    return ["## Not measured", "", *lines, ""] if lines else []


def target_lines(targets: Sequence[TargetVerdict]) -> list[str]:
    """A table of targets in markdown."""
    rows = [
        (
            one.target,
            f"{one.sense} {one.needed:.3g}",
            number_text(one.measured),
            interval_text(one.interval),
            _met_text(one),
            one.remarks,
        )
        for one in targets
    ]
    return markdown_table(("target", "needed", "measured", "95 % interval", "met", "note"), rows)


def interval_text(interval: Sequence[float] | None) -> str:
    """Both ends; nothing for None."""
    return "" if interval is None else f"{number_text(interval[0])} to {number_text(interval[1])}"


def _met_text(one: TargetVerdict) -> str:
    return "not judged" if one.met is None and one.measured is not None else _MET[one.met]


def table_from_targets(targets: Sequence[TargetVerdict]) -> Table:
    """The targets for the console."""
    rows = []
    for one in targets:
        note = f"\n  {one.remarks}" if one.remarks else ""
        needed, met = f"{one.sense} {one.needed:.3g}", _met_text(one).strip("*")
        rows.append((one.target + note, needed, number_text(one.measured), interval_text(one.interval), met))
    figures = ("needed", "measured", "95 % interval", "met")
    return console_table("targets", ["target"], figures, rows, no_wrap=False)


def table_from_cells(cells: pd.DataFrame) -> Table:
    """The cells for the console, in short."""
    rows = [
        (
            cell.route,
            cell.load,
            number_text(cell.requests_per_s),
            f"{100 * cell.spread:.0f} %",
            *(number_text(cell[name]) for name in ("p50_ms", "p99_ms", "easy_p50_ms", "hard_p99_ms")),
            "" if cell.bound_by is None else f"{100 * cell.efficiency:.0f} %",
            number_text(cell.send_lag_p99_ms),
            ", ".join(flags_of(cell)),
        )
        for _, cell in cells.iterrows()
    ]
    title = "medians over rounds; load: c in flight or p % of a capacity, b rows each, d % to the last stage"
    figures = ("req/s", "spread", "p50", "p99", "easy p50", "hard p99", "of bound", "lag p99")
    return console_table(title, ("route", "load"), figures, rows, notes="notes")


def console_table(
    title: str,
    names: Sequence[str],
    figures: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    notes: str | None = None,
    no_wrap: bool = True,
) -> Table:
    """A table for the console: columns of names, which `no_wrap` keeps in one line, of figures, and of notes."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name, no_wrap=no_wrap)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    if notes is not None:
        table.add_column(notes, min_width=12)
    for row in rows:
        table.add_row(*row)
    return table


def show(
    document: Any,
    *tables: Table | str,
    as_json: bool,
    failures: Mapping[str, str] | None = None,
    written: Sequence[Path] = (),
) -> None:
    """Prints results as JSON, or their tables, what was not measured, and which files were written."""
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    console = Console()
    if not console.is_terminal:
        # Wide enough for tables in a file or a pipe.
        console = Console(width=FILE_WIDTH)
    for table in tables:
        (typer.echo if isinstance(table, str) else console.print)(table)
    for key, text in (failures or {}).items():
        console.print(f"not measured: {key}: {text}", soft_wrap=True, markup=False)
    if written:
        console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True, markup=False)


def command_line(command: str, *options: tuple[str, Any, Any]) -> str:
    """What repeats a run: its command, and (name, value, usual value) of every option that has another value."""
    words = command.split()
    for name, value, usual in options:
        if value == usual:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [name] if one is True else [name, f"{one:g}" if isinstance(one, float) else str(one)]
    return shlex.join(words)


@contextmanager
def progress_shown(resumed_by: str = "") -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what happens; yields the function that sets its text.

    Args:
        resumed_by: command that goes on with the run, which is said where it is interrupted.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    # Redrawn seldom, because the spinner takes processor time from the server.
    shown: dict[str, Any] = {"transient": True, "refresh_per_second": 2, "disable": not console.is_terminal}
    try:
        with Progress(*columns, console=console, **shown) as progress:
            task = progress.add_task("starting")
            yield lambda text: progress.update(task, description=text)
    except KeyboardInterrupt as error:
        if not resumed_by:
            raise
        raise interrupted_from(error, f"interrupted; {resumed_by} goes on where it was") from error


def colour_of(route: str) -> str:
    """The colour of a route in plots."""
    digits = "".join(filter(str.isdigit, route))
    return COLOURS.get(route) or _OTHER[int(digits or 0) % len(_OTHER)]


def draw_plots(pictures: Mapping[Path, Callable[[Any], bool | None]]) -> list[Path]:
    """Draws plots into files and returns those that were; a function, given the axes, may return False."""
    import matplotlib as mpl  # optional, and start-up time

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # after the backend is chosen

    drawn = []
    for path, draw in pictures.items():
        figure, axes = plt.subplots(figsize=(8.0, 4.8), layout="constrained")
        if draw(axes) is not False:
            axes.grid(alpha=0.3)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without the library's version in it, the same figures give the same bytes.
            figure.savefig(path, dpi=120, metadata={"Software": None})
            drawn.append(path)
        plt.close(figure)
    return drawn
