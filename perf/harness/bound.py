"""What the members and the processor allow a route, and how near a measured figure comes to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROCESSOR = "processor"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The most requests/s a route could reach under one mix of rows.

    Args:
        requests_per_s: the bound.
        by: the member that sets it, or "processor".
        members_requests_per_s: what the members alone would allow; None where one of them was not measured.
        processor_requests_per_s: what the cores would allow.
    """

    requests_per_s: float
    by: str
    members_requests_per_s: float | None
    processor_requests_per_s: float


def bound_of(
    members: Sequence[str],
    reach: Sequence[float],
    *,
    capacity_rows_per_s: Mapping[str, float],
    batch: int,
    cores: int,
    cpu_s_per_request: float,
) -> Bound:
    """min(min over stages of capacity / reach, cores / processor seconds per request).

    Args:
        members: Triton names in stage order.
        reach: share of rows that get to each of them.
        capacity_rows_per_s: of each member asked alone.
        batch: rows per request.
        cores: this machine's.
        cpu_s_per_request: of the server, as measured under the load itself.
    """
    asked = {name: share for name, share in zip(members, reach, strict=True) if share > 0}
    allowed = {
        name: capacity_rows_per_s[name] / share / batch
        for name, share in asked.items()
        if name in capacity_rows_per_s
    }
    complete = len(allowed) == len(asked) and bool(asked)
    processor = cores / cpu_s_per_request if cpu_s_per_request > 0 else float("inf")
    limits = {**(allowed if complete else {}), PROCESSOR: processor}
    by = min(limits, key=lambda name: limits[name])
    return Bound(
        requests_per_s=limits[by],
        by=by,
        members_requests_per_s=min(allowed.values()) if complete else None,
        processor_requests_per_s=processor,
    )
