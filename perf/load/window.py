"""What one load measured in one window, whoever sent it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Window:
    """n requests that were answered, and what else happened meanwhile.

    Args:
        latency_ms: float64 (n,).
        deferred: bool (n,), a row of the request went past stage 0; None where the answers do not say.
        exits: int64 (s,), rows by the stage that answered; None where the answers do not say.
        seconds: from the first moment that counts to the last.
        batch: rows per request.
        failed: requests that were answered with an error, or not at all.
        lag_ms: float64 (n,), from when a request was due to when it was sent; None in a closed loop.
    """

    latency_ms: npt.NDArray[np.float64] = field(repr=False)
    deferred: npt.NDArray[np.bool_] | None = field(repr=False)
    exits: npt.NDArray[np.int64] | None
    seconds: float
    batch: int
    failed: int = 0
    lag_ms: npt.NDArray[np.float64] | None = field(default=None, repr=False)

    @property
    def requests(self) -> int:
        """How many were answered."""
        return len(self.latency_ms)

    @property
    def requests_per_s(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds

    def reach(self, stages: int) -> tuple[float, ...] | None:
        """Share of rows that got to each stage, 1.0 first; None where the answers do not say."""
        if self.exits is None or not self.exits.sum():
            return None
        counts = np.zeros(stages, np.int64)
        counts[: len(self.exits)] = self.exits
        return tuple(float(value) for value in np.cumsum(counts[::-1])[::-1] / counts.sum())

    def percentiles_ms(self) -> dict[str, float | None]:
        """p50_ms, p95_ms and p99_ms of all requests; the same of easy and of hard ones where they are known."""
        parts: dict[str, npt.NDArray[np.float64]] = {"": self.latency_ms}
        if self.deferred is not None:
            parts |= {"easy_": self.latency_ms[~self.deferred], "hard_": self.latency_ms[self.deferred]}
        return {
            f"{name}p{percent}_ms": float(np.percentile(values, percent)) if len(values) else None
            for name, values in parts.items()
            for percent in PERCENTILES
        }


def exits_of(stages: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which requests had a row deferred, and rows by the stage that answered.

    Args:
        stages: int32 (requests, rows of each).
    """
    return (stages > 0).any(axis=1), np.bincount(stages.ravel()).astype(np.int64)
