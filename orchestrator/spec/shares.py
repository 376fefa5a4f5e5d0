"""Confidence intervals of shares without scipy, beside the planner's exact ones; places spread evenly."""

import math

import numpy as np
import numpy.typing as npt

_95_PERCENT = 1.959964


def wilson_ci95(hits: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of at least 1 row, close to the exact one even at shares near 1."""
    share, z2 = hits / rows, _95_PERCENT**2
    centre = share + z2 / (2 * rows)
    reach = _95_PERCENT * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows))
    scale = 1 + z2 / rows
    # At shares of 0 and 1 one bound is the share itself; min and max remove rounding in its last bit.
    return min(share, max(0.0, (centre - reach) / scale)), max(share, min(1.0, (centre + reach) / scale))


def evenly_spread(count: int, most: int) -> npt.NDArray[np.intp]:
    """Indices of at most `most` of `count` things, evenly spread from the first to the last; intp, ascending."""
    return np.unique(np.linspace(0, max(count - 1, 0), most).round().astype(np.intp))[:count]
