"""Reads perf_analyzer's profile export: one latency per request, and the exit stage out of its answer.

The file is JSON with raw bytes in its strings, so no UTF-8: decoded as latin-1 each character is one byte of a
tensor. Requests of all its windows are in it; the windows touch, so they are read as one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import DataError
from perf.load.window import Window, exits_of

# A closed loop starts with an empty server: the first answers are too quick and too few. Left out of the window.
RAMP_SHARE = 0.1


def window_from_export(path: Path, *, batch: int) -> Window:
    """What was measured, without the ramp at the start.

    Args:
        path: of the file.
        batch: rows per request.

    Raises:
        DataError: the file is missing, is not an export, or holds no answered request.
    """
    try:
        document = json.loads(path.read_bytes().decode("latin-1"))
        experiment = document["experiments"][0]
        boundaries = experiment["window_boundaries"]
        requests = [one for one in experiment["requests"] if one["response_timestamps"]]
        first, last = int(boundaries[0]), int(boundaries[-1])
        sent = np.array([one["timestamp"] for one in requests], np.int64)
        answered = np.array([one["response_timestamps"][-1] for one in requests], np.int64)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"perf_analyzer's export {path}", got=f"{type(error).__name__}: {error}") from error
    start = first + RAMP_SHARE * (last - first)
    counted = np.flatnonzero((answered >= start) & (answered <= last))
    if not len(counted):
        raise DataError(f"perf_analyzer's export {path}", got="no answered request", fix="take a longer window")
    stages = _stages([requests[index] for index in counted], batch)
    deferred, exits = (None, None) if stages is None else exits_of(stages)
    return Window(
        latency_ms=(answered[counted] - sent[counted]) / 1e6,
        deferred=deferred,
        exits=exits,
        seconds=(last - start) / 1e9,
        batch=batch,
    )


def _stages(requests: list[dict[str, Any]], batch: int) -> Any:
    """int32 (n, batch), None where the model has no such output."""
    texts = [one["response_outputs"][-1].get("exit_stage") for one in requests]
    if any(text is None for text in texts):
        return None
    raw = "".join(texts).encode("latin-1")
    if len(raw) != 4 * batch * len(requests):
        raise DataError(
            "perf_analyzer's export", got=f"{len(raw)} bytes of exit_stage", expected=4 * batch * len(requests)
        )
    return np.frombuffer(raw, "<i4").reshape(len(requests), batch)
