"""leak.json as a verdict uses it: what grew, and whether it is the run the target asks for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The run the target asks for, and what the command does unless told otherwise.
ROUTE, SCENARIO, REQUESTS = "committee", "three_cnn", 200_000


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What `perf leak` found.

    Args:
        percent: the largest growth: of all resident memory, of shared memory, or of the cascade's own process.
        note: each of them, and how it was found.
    """

    percent: float
    note: str


def growth_from(path: Path) -> Growth | None:
    """What a leak.json says of the target; None where there is none, or it is of something else or too short."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (document["route"], document["scenario"]) != (ROUTE, SCENARIO) or document["requests"] < REQUESTS:
            return None
        found = {
            "resident": float(document["resident_percent"]),
            "shared": float(document["shm_percent"]),
            "the cascade's own process": float(document["own_percent"]),
        }
        words = ", ".join(f"{name} {percent:+.2f} %" for name, percent in found.items())
        commit = f", commit {document['commit']}" if document["commit"] else ""
        return Growth(percent=max(found.values()), note=f"{words}; {document['requests']:,} requests{commit}")
    except (OSError, ValueError, KeyError, TypeError):
        return None
