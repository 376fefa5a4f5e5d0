"""What the reports of all studies share: tables of cells and targets, figures, progress on the console, plots."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

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
    "batch per member", "CPU ms", "MiB", "of bound", "notes",
)  # fmt: skip
_MILLISECONDS = (
    "p50_ms", "p95_ms", "p99_ms", "easy_p50_ms", "easy_p99_ms", "hard_p50_ms", "hard_p99_ms",
)  # fmt: skip


def number_text(value: float | None) -> str:
    """Three digits, without an exponent; nothing for None and NaN."""
    if value is None or pd.isna(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
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
        f"{cell.resident_mib + cell.shm_mib:.0f}",
        "" if cell.bound_by is None else f"{100 * cell.efficiency:.0f} % ({cell.bound_by})",
        ", ".join(notes),
    ]


def target_lines(targets: Sequence[TargetVerdict]) -> list[str]:
    """A table of targets in markdown."""
    rows = [
        (one.target, f"{one.sense} {one.needed:g}", number_text(one.measured), met_text(one), one.remarks)
        for one in targets
    ]
    return markdown_table(("target", "needed", "measured", "met", "note"), rows)


def met_text(one: TargetVerdict) -> str:
    """Whether a target is met, in a word or two."""
    return "not judged" if one.met is None and one.measured is not None else _MET[one.met]


def table_from_targets(targets: Sequence[TargetVerdict]) -> Table:
    """The targets for the console."""
    table = figure_table("targets", "target", ("needed", "measured", "met"), no_wrap=False)
    for one in targets:
        note = f"\n  {one.remarks}" if one.remarks else ""
        met = met_text(one).strip("*")
        table.add_row(one.target + note, f"{one.sense} {one.needed:g}", number_text(one.measured), met)
    return table


def table_from_cells(cells: pd.DataFrame) -> Table:
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
    for _, cell in cells.iterrows():
        table.add_row(
            cell.route,
            cell.load,
            number_text(cell.requests_per_s),
            f"{100 * cell.spread:.0f} %",
            *(number_text(cell[name]) for name in ("p50_ms", "p99_ms", "easy_p50_ms", "hard_p99_ms")),
            "" if cell.bound_by is None else f"{100 * cell.efficiency:.0f} %",
            number_text(cell.send_lag_p99_ms),
            ", ".join(flags_of(cell)),
        )
    return table


def figure_table(title: str, first: str, figures: Sequence[str], *, no_wrap: bool = True) -> Table:
    """An empty table for the console: one column of names, the others of figures."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=no_wrap)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def output_console() -> Console:
    """Standard output, wide enough for tables where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


@contextmanager
def progress_shown() -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what happens; yields the function that sets its text."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    # Redrawn seldom, because the spinner takes processor time from the server.
    shown: dict[str, Any] = {"transient": True, "refresh_per_second": 2, "disable": not console.is_terminal}
    with Progress(*columns, console=console, **shown) as progress:
        task = progress.add_task("starting")
        yield lambda text: progress.update(task, description=text)


def colour_of(route: str) -> str:
    """The colour of a route in plots."""
    if route in COLOURS:
        return COLOURS[route]
    digits = "".join(letter for letter in route if letter.isdigit())
    return _OTHER[int(digits or 0) % len(_OTHER)]


def draw_plot(path: Path, draw: Callable[[Any], bool | None]) -> list[Path]:
    """Draws one plot into a file and returns its path, or nothing where `draw`, given the axes, returns False."""
    import matplotlib as mpl  # optional, and start-up time

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # after the backend is chosen

    figure, axes = plt.subplots(figsize=(8.0, 4.8), layout="constrained")
    drawn = draw(axes) is not False
    if drawn:
        axes.grid(alpha=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the library's version in it, the same figures give the same bytes.
        figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return [path] if drawn else []
