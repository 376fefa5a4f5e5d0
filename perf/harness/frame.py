"""The data frame of a run: one row per cell, medians over its rounds, its flags, and what bounds it.

Columns are those of results.json and results.csv, and `earned`, `load` and `words` of the cell besides. `reach`
and `mean_batch` hold values, which only the files write as text; `windows` has the windows that count, in the
order of the rounds. A figure that is not known is NaN.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from perf.harness.machine import write_json
from perf.harness.serving import Cell
from perf.harness.windows import REACH_TOLERANCE, Journal, WindowRecord
from perf.load.closed import LATENCIES
from perf.routes.spec import BenchRoute

Interval = tuple[float, float]
PROCESSOR = "processor"
# Largest (max - min) / median over the rounds of a stable cell: of requests/s in a closed loop, of the median
# latency in an open one, where requests/s are those of the arrivals. Latencies swing more.
CLOSED_SPREAD = 0.10
OPEN_SPREAD = 0.25
_MEDIANS = (
    "requests_per_s", "rows_per_s", *LATENCIES, "cpu_s_per_request", "client_cpu_s_per_request",
    "messages_per_request", "lag_p50_ms", "lag_p99_ms",
)  # fmt: skip
_COLUMNS = (
    "scenario", "route", "title", "sender", "concurrency", "rate", "share_of_capacity", "of_route", "batch",
    "deferral", "rounds", "repeated", "unstable", "reach_is_off", "spread", "requests_per_s", "rows_per_s",
    *LATENCIES, "reach", "cpu_ms_per_request", "client_cpu_ms_per_request", "messages_per_request", "mean_batch",
    "resident_mib", "shm_mib",
    "send_lag_p50_ms", "send_lag_p99_ms", "failed", "bound_requests_per_s", "bound_by", "efficiency",
)  # fmt: skip
_NOT_WRITTEN = ("earned", "load", "words", "windows")
_CONFIDENCE = 0.95


def bound_of(
    members: Sequence[str],
    reach: Sequence[float],
    *,
    capacity_rows_per_s: Mapping[str, float],
    batch: int,
    cores: int,
    cpu_s_per_request: float,
) -> tuple[float, str]:
    """The most requests/s a route could reach, and what sets it: a member's name or "processor".

    min(min over stages of capacity / reach, cores / processor seconds per request); only the processor counts
    where a member that is asked was not measured.

    Args:
        members: Triton names in stage order.
        reach: share of rows that get to each of them.
        capacity_rows_per_s: of each member asked alone.
        batch: rows per request.
        cores: this machine's.
        cpu_s_per_request: of the server, as measured under the load itself.
    """
    asked = {name: share for name, share in zip(members, reach, strict=True) if share > 0}
    limits = {PROCESSOR: cores / cpu_s_per_request if cpu_s_per_request > 0 else math.inf}
    if asked.keys() <= capacity_rows_per_s.keys():
        limits = {name: capacity_rows_per_s[name] / share / batch for name, share in asked.items()} | limits
    by = min(limits, key=lambda name: limits[name])
    return limits[by], by


def spread_of(records: Sequence[WindowRecord], cell: Cell) -> float:
    """How far a cell's rounds lie apart, over their median."""
    values = judged_by(records, cell)
    middle = float(np.median(values)) if values else 0.0
    return (max(values) - min(values)) / middle if middle else 0.0


def is_unstable(records: Sequence[WindowRecord], cell: Cell) -> bool:
    """Whether a cell's rounds lie too far apart."""
    return spread_of(records, cell) > (CLOSED_SPREAD if cell.sender == "closed" else OPEN_SPREAD)


def judged_by(records: Sequence[WindowRecord], cell: Cell) -> list[float]:
    """The figure of each window that stability is judged by."""
    if cell.sender == "closed":
        return [one["requests_per_s"] for one in records]
    return [one["p50_ms"] or 0.0 for one in records]


def cell_frame(
    cells: Sequence[Cell], journal: Journal, *, routes: Mapping[str, BenchRoute], cores: int
) -> pd.DataFrame:
    """One row per measured cell of one scenario, from the windows in its journal; `cores` are this machine's."""
    # Rows/s of each member asked alone, by Triton name: the best of its closed loops.
    capacity: dict[str, float] = {}
    for cell in cells:
        if cell.route.startswith("member_") and cell.sender == "closed":
            rate = float(np.median([one["rows_per_s"] for one in journal.of(cell.key)]))
            name = routes[cell.route].members[0]
            capacity[name] = max(rate, capacity.get(name, 0.0))
    return frame_from_rows(
        _row(cell, journal, routes[cell.route], capacity_rows_per_s=capacity, cores=cores) for cell in cells
    )


def frame_from_rows(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Dictionaries of the frame's columns as a frame; columns that they lack are empty."""
    frame = pd.DataFrame(list(rows), columns=[*_COLUMNS, *_NOT_WRITTEN])
    figures = ["rate", "share_of_capacity", *_COLUMNS[_COLUMNS.index("spread") : _COLUMNS.index("reach")]]
    figures += [
        "messages_per_request", "send_lag_p50_ms", "send_lag_p99_ms", "bound_requests_per_s", "efficiency",
    ]  # fmt: skip
    return frame.astype({"concurrency": "Int64", **dict.fromkeys(figures, float)})


def _row(
    cell: Cell, journal: Journal, route: BenchRoute, *, capacity_rows_per_s: Mapping[str, float], cores: int
) -> dict[str, Any]:
    records = journal.of(cell.key)
    windows = pd.DataFrame(records)
    median = windows.reindex(columns=_MEDIANS).astype(float).median()
    known = [reach for reach in windows["reach"] if reach is not None]
    reach = tuple(np.median(np.array(known), axis=0).tolist()) if known else None
    bound, bound_by = None, None
    if route.members and cell.sender == "closed":
        shares = reach if route.cascade and reach else (1.0,) * len(route.members)
        bound, bound_by = bound_of(
            route.members,
            shares[: len(route.members)],
            capacity_rows_per_s=capacity_rows_per_s,
            batch=cell.batch,
            cores=cores,
            cpu_s_per_request=median["cpu_s_per_request"],
        )
    return {
        **columns_of(cell),
        "title": route.title,
        "rounds": len(records),
        "repeated": sum(one["key"] == cell.key and one["attempt"] > 0 for one in journal.records),
        "unstable": is_unstable(records, cell),
        "reach_is_off": bool((windows["reach_off"] > REACH_TOLERANCE).any()),
        "spread": spread_of(records, cell),
        **{name: median[name] for name in ("requests_per_s", "rows_per_s", *LATENCIES)},
        "reach": reach,
        "cpu_ms_per_request": 1000 * median["cpu_s_per_request"],
        "client_cpu_ms_per_request": 1000 * median["client_cpu_s_per_request"],
        "messages_per_request": median["messages_per_request"],
        "mean_batch": pd.DataFrame(windows["mean_batch"].tolist()).median().to_dict(),
        "resident_mib": windows["resident_bytes"].max() / 2**20,
        "shm_mib": windows["shm_bytes"].max() / 2**20,
        "send_lag_p50_ms": median["lag_p50_ms"],
        "send_lag_p99_ms": median["lag_p99_ms"],
        "failed": int(windows["failed"].sum()),
        "bound_requests_per_s": bound,
        "bound_by": bound_by,
        "efficiency": None if bound is None else median["requests_per_s"] / bound,
        "windows": records,
    }


def columns_of(cell: Cell) -> dict[str, Any]:
    """What a row of the frame has from the cell itself."""
    return {**asdict(cell), "share_of_capacity": cell.share, "load": cell.load, "words": cell.words}


def find_cell(cells: pd.DataFrame, **columns: Any) -> pd.Series | None:
    """The first row whose columns have these values, None meaning "not known"; None where there is no such row."""
    for name, value in columns.items():
        cells = cells[cells[name].isna() if value is None else cells[name] == value]
    return None if cells.empty else cells.iloc[0]


def figure(cell: pd.Series | None, name: str) -> float | None:
    """A figure of a row; None where it is not known, or there is no row."""
    return None if cell is None or pd.isna(cell[name]) else float(cell[name])


def ratio(above: float | None, below: float | None) -> float | None:
    """One figure over another, None where either is missing."""
    return None if above is None or not below else above / below


def interval_of(above: tuple[pd.Series | None, str], below: tuple[pd.Series | None, str]) -> Interval | None:
    """95 % interval of the mean ratio of two figures, each of a row, from the rounds that both cells have.

    The logarithms of the rounds' ratios are taken to be normal, and rounds to be independent (Student's t). None
    where fewer than two rounds have both figures.
    """
    each = [
        {}
        if cell is None or not isinstance(cell.windows, list)
        else {one["round"]: one.get(name) for one in cell.windows}
        for cell, name in (above, below)
    ]
    both = [(each[0][number], each[1][number]) for number in each[0].keys() & each[1].keys()]
    logarithms = [math.log(one / other) for one, other in both if one and other]
    if len(logarithms) < 2:
        return None
    from scipy.stats import t  # start-up time

    half = t.ppf((1 + _CONFIDENCE) / 2, len(logarithms) - 1) * np.std(logarithms, ddof=1) / len(logarithms) ** 0.5
    low, high = np.exp(np.mean(logarithms) + half * np.array([-1, 1])).tolist()
    return low, high


def flags_of(cell: pd.Series) -> list[str]:
    """What is wrong with a cell, in words."""
    found = {
        "unstable": cell.unstable,
        "exit mix off by over 1 point": cell.reach_is_off,
        f"{cell.failed} requests failed": cell.failed,
    }
    return [text for text, applies in found.items() if applies]


@dataclass(frozen=True, kw_only=True)
class TargetVerdict:
    """One target: a ratio of cells, both None where the run did not measure them, at least or at most `needed`.

    `interval` is the 95 % interval of the ratio; None where one cannot be told.
    """

    target: str
    needed: float
    sense: Literal["at least", "at most"]
    measured: float | None
    interval: Interval | None = None
    note: str = ""
    cells: Sequence[pd.Series | None] = ()

    @property
    def remarks(self) -> str:
        """The note, and what is wrong with the cells the ratio is made of."""
        found = [self.note] if self.note else []
        for cell in self.cells:
            found += [] if cell is None else [f"{cell.route}: {flag}" for flag in flags_of(cell)]
        return "; ".join(found)

    @property
    def met(self) -> bool | None:
        """None where it was not measured, or a cell lost requests or answered another mix of rows."""
        spoiled = any(cell is not None and (cell.failed or cell.reach_is_off) for cell in self.cells)
        if self.measured is None or spoiled:
            return None
        return self.measured >= self.needed if self.sense == "at least" else self.measured <= self.needed

    def as_json(self) -> dict[str, Any]:
        """As verdict.json holds it."""
        return {
            "target": f"{self.target} ({self.sense})",
            "needed": round(self.needed, 4),
            "measured": None if self.measured is None else round(self.measured, 4),
            "interval": None if self.interval is None else [round(end, 4) for end in self.interval],
            "met": self.met,
            "note": self.remarks,
        }


def written_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """As files hold it: five digits, no infinity, text for reach and batches; earned mixes have no deferral."""
    table = cells.drop(columns=list(_NOT_WRITTEN))
    table["deferral"] = table["deferral"].mask(cells["earned"].astype(bool))
    table["reach"] = [" ".join(f"{share:.4f}" for share in one) if one else None for one in cells["reach"]]
    batches = cells["mean_batch"].map(dict.items)
    table["mean_batch"] = [" ".join(f"{name}={value:.2f}" for name, value in one) for one in batches]
    floats = table.select_dtypes("float").columns
    table[floats] = table[floats].map(lambda value: float(f"{value:.5g}") if math.isfinite(value) else math.nan)
    return table


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame for JSON; what is not known is null."""
    return [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def write_tables(document: Mapping[str, Any], cells: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes results.json and, of the cells, results.csv; returns their paths."""
    paths = [folder / "results.json", folder / "results.csv"]
    write_json(document, paths[0])
    written_frame(cells).to_csv(paths[1], index=False, lineterminator="\n")
    return paths
