"""How wide networks have to be for a row to take a given time on this machine, whatever the machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from orchestrator.errors import DataError
from perf.harness.machine import write_json

# Half steps, so that two looks at one machine nearly always agree.
FACTORS = tuple(2.0 ** (half / 2) for half in range(-8, 9))
_CHANNELS = 8  # a multiple of what a vector holds
_WARM_RUNS, _RUNS = 5, 25


def factor_of(measured_ms: float, wanted_ms: float) -> float:
    """Times the multiply-accumulates that turn one time into about the other: the nearest of FACTORS."""
    return min(FACTORS, key=lambda factor: abs(math.log(wanted_ms / measured_ms / factor)))


def widened(channels: int, factor: float) -> int:
    """Channels of a convolution whose neighbours grow alike, for so many times its multiply-accumulates."""
    return max(_CHANNELS, _CHANNELS * round(channels * math.sqrt(factor) / _CHANNELS))


def ms_per_row(session: onnxruntime.InferenceSession) -> float:
    """Milliseconds a network takes for a single row, the median of 25 runs."""
    (image,) = session.get_inputs()
    row = np.random.default_rng(0).random((1, *image.shape[1:]), np.float32)
    took = []
    for _ in range(_WARM_RUNS + _RUNS):
        start_s = time.perf_counter()
        session.run(None, {image.name: row})
        took.append(1000 * (time.perf_counter() - start_s))
    return float(np.median(took[_WARM_RUNS:]))


def kept_factor(path: Path, measure_ms: Callable[[], float], *, wanted_ms: float) -> float:
    """The factor for this machine, measured the first time and kept beside what is made with it.

    Args:
        path: of the file that keeps it; with another ONNX Runtime it is measured anew.
        measure_ms: takes the time of a row of the network as it is.
        wanted_ms: of a row.

    Raises:
        DataError: the file holds something else.
    """
    if path.is_file():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["onnxruntime"] == onnxruntime.__version__ and kept["wanted_ms"] == wanted_ms:
                return FACTORS[FACTORS.index(kept["factor"])]
        except (ValueError, KeyError, TypeError) as error:
            fix = "remove it; the machine is measured again"
            raise DataError(path, got=f"{type(error).__name__}: {error}", expected="a factor", fix=fix) from error
    measured_ms = measure_ms()
    factor = factor_of(measured_ms, wanted_ms)
    document = {"factor": factor, "measured_ms": measured_ms, "wanted_ms": wanted_ms}
    write_json({**document, "onnxruntime": onnxruntime.__version__}, path)
    return factor
