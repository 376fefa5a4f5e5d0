"""Shares of rows with their exact intervals: the only way this report states how often something happens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.planner.intervals import clopper_pearson


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some of some rows.

    Args:
        hits: how many.
        rows: of how many; may be 0.
    """

    hits: int
    rows: int

    @property
    def value(self) -> float:
        """The share; NaN of no rows."""
        return self.hits / self.rows if self.rows else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Clopper-Pearson); everything of no rows."""
        return clopper_pearson(self.hits, self.rows) if self.rows else (0.0, 1.0)

    @property
    def rest(self) -> Share:
        """The other rows."""
        return Share(hits=self.rows - self.hits, rows=self.rows)


def share_of(flags: npt.NDArray[np.bool_]) -> Share:
    """Share of the rows whose flag is set."""
    return Share(hits=int(np.count_nonzero(flags)), rows=len(flags))
