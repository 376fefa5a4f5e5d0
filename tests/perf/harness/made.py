"""Records and summaries as a run would leave them, made up."""

from __future__ import annotations

from typing import Any

from perf.harness.bound import Bound
from perf.harness.cells import Cell
from perf.harness.record import Record
from perf.harness.summary import Summary

MEMBERS = ("small", "middle", "large")
ROUTES = (
    "member_0", "member_1", "member_2", "largest_2", "pass_through", "tutorial", "tutorial_4", "concatenate_1",
    "concatenate_4", "client_sync", "client_asyncio", "ensemble", "onefile", "committee",
)  # fmt: skip


def record(cell: Cell, *, round_number: int = 1, requests_per_s: float = 100.0, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "key": cell.key,
        "round": round_number,
        "requests": 1000,
        "failed": 0,
        "seconds": 10.0,
        "requests_per_s": requests_per_s,
        "rows_per_s": requests_per_s * cell.batch,
        "latency_ms": {"p50_ms": 10.0, "p99_ms": 100.0, "easy_p50_ms": 5.0},
        "reach": (1.0, 0.3, 0.15),
        "reach_off": 0.0,
        "cpu_s_per_request": 0.004,
        "client_cpu_s_per_request": 0.0001,
        "mean_batch": {"small": 8.0, "large": 2.5},
        "resident_bytes": 200 * 2**20,
        "shm_bytes": 8 * 2**20,
        "rate": cell.rate,
        **changes,
    }
    return Record(**fields)


def summary(
    route: str,
    *,
    requests_per_s: float = 100.0,
    latency_ms: dict[str, float | None] | None = None,
    bound: float | None = None,
    **load: Any,
) -> Summary:
    sender = {"sender": "poisson"} if "share" in load else {"concurrency": load.pop("concurrency", 16)}
    cell = Cell(**{"scenario": "three_cnn", "route": route, **sender, **load})
    return Summary(
        cell=cell,
        title=route.title(),
        rounds=3,
        repeated=0,
        unstable=False,
        reach_is_off=False,
        spread=0.02,
        requests_per_s=requests_per_s,
        rows_per_s=requests_per_s * cell.batch,
        latency_ms=latency_ms or {"p50_ms": 10.0, "p99_ms": 100.0},
        reach=(1.0, 0.3, 0.15),
        cpu_s_per_request=0.004,
        client_cpu_s_per_request=0.0001,
        mean_batch={"small": 8.0},
        resident_bytes=200 * 2**20,
        shm_bytes=8 * 2**20,
        lag_ms=(0.1, 2.0) if cell.share is not None else None,
        failed=0,
        bound=None
        if bound is None
        else Bound(
            requests_per_s=bound, by="large", members_requests_per_s=bound, processor_requests_per_s=2 * bound
        ),
    )
