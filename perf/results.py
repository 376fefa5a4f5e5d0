"""What every measurement's file of results needs: the machine it was made on, and one way to be written."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any


def machine_here() -> dict[str, str]:
    """The machine in a few words, for results."""
    return {"platform": platform.platform(), "cpu": cpu_name(), "python": platform.python_version()}


def cpu_name() -> str:
    """The processor's own name, as often as there are of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def write_results(document: dict[str, Any], path: Path) -> None:
    """Writes a document as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
