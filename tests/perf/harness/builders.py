"""Windows and cells as a run would leave them, made up."""

from typing import Any

import pandas as pd

from perf.harness.frame import columns_of, frame_from_rows
from perf.harness.serving import Cell

MEMBERS = ("small", "middle", "large")
ROUTES = (
    "member_0", "member_1", "member_2", "largest_2", "pass_through", "tutorial", "tutorial_4", "concatenate_1",
    "concatenate_4", "client_sync", "client_asyncio", "ensemble", "onefile", "committee", "committee_in_process",
)  # fmt: skip


def record(cell: Cell, *, round_number: int = 1, requests_per_s: float = 100.0, **changes: Any) -> dict[str, Any]:
    return {
        "key": cell.key,
        "round": round_number,
        "attempt": 0,
        "why": "",
        "requests": 1000,
        "failed": 0,
        "seconds": 10.0,
        "requests_per_s": requests_per_s,
        "rows_per_s": requests_per_s * cell.batch,
        "p50_ms": 10.0,
        "p99_ms": 100.0,
        "easy_p50_ms": 5.0,
        "reach": [1.0, 0.3, 0.15],
        "reach_off": 0.0,
        "cpu_s_per_request": 0.004,
        "client_cpu_s_per_request": 0.0001,
        "messages_per_request": 4.5,
        "mean_batch": {"small": 8.0, "large": 2.5},
        "resident_bytes": 200 * 2**20,
        "shm_bytes": 8 * 2**20,
        "lag_p50_ms": None,
        "lag_p99_ms": None,
        "rate": cell.rate,
        **changes,
    }


def cell_row(
    route: str, *, requests_per_s: float = 100.0, bound: float | None = None, **load_or_figures: Any
) -> dict[str, Any]:
    """A row of a frame; what is no field of a cell changes a figure."""
    fields = {name: load_or_figures.pop(name) for name in list(load_or_figures) if name in Cell.__annotations__}
    sender = {"sender": "poisson"} if "share" in fields else {"concurrency": fields.pop("concurrency", 16)}
    cell = Cell(**{"scenario": "three_cnn", "route": route, **sender, **fields})
    lag = {"send_lag_p50_ms": 0.1, "send_lag_p99_ms": 2.0} if cell.share is not None else {}
    latency = {"p50_ms": 10.0, "p99_ms": 100.0} if not any("_ms" in name for name in load_or_figures) else {}
    return {
        **columns_of(cell),
        "title": route.title(),
        "unstable": False,
        "reach_is_off": False,
        "spread": 0.02,
        "requests_per_s": requests_per_s,
        "rows_per_s": requests_per_s * cell.batch,
        "reach": (1.0, 0.3, 0.15),
        "cpu_ms_per_request": 4.0,
        "messages_per_request": 4.5,
        "mean_batch": {"small": 8.0},
        "resident_mib": 200.0,
        "shm_mib": 8.0,
        **lag,
        "failed": 0,
        "bound_requests_per_s": bound,
        "bound_by": None if bound is None else "large",
        "efficiency": None if bound is None else requests_per_s / bound,
        "windows": [],
        **latency,
        **load_or_figures,
    }


def frame_of(*rows: dict[str, Any]) -> pd.DataFrame:
    return frame_from_rows(rows)
