"""Numbers as people read them."""

from __future__ import annotations

import math

from orchestrator.planner.report.shares import Share

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def cost_words(cost: float | None, unit: str) -> str:
    """A cost with its unit, such as "12.3 M MACs"; three digits."""
    if cost is None:
        return "unknown"
    for size, prefix in _PREFIXES:
        # Just below a step, three digits would round up to 1000.
        if abs(cost) >= size * 0.9995:
            return f"{cost / size:.3g} {prefix} {unit}"
    return f"{cost:.3g} {unit}"


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage; a dash for no rows."""
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def between(interval: tuple[float, float], digits: int = 1) -> str:
    """An interval of shares, such as "91.2 to 93.0 %"."""
    return f"{100 * interval[0]:.{digits}f} to {100 * interval[1]:.{digits}f} %"


def share_words(share: Share, digits: int = 1) -> str:
    """A share with its interval and rows."""
    if not share.rows:
        return "no rows"
    return f"{percent(share.value, digits)} (95 % interval {between(share.interval, digits)}, {share.rows:,} rows)"


def signed(value: float, digits: int = 2) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * value:+.{digits}f}"


def threshold_words(threshold: float | None) -> str:
    """A threshold, or "never"."""
    return "never" if threshold is None or math.isinf(threshold) else f"{threshold:.4f}"


def times_words(factor: float) -> str:
    """How many times less, or more."""
    word, times = ("less", factor) if factor >= 1 else ("more", 1 / factor)
    return f"{times:.3g} times {word}" if times < 100 else f"{times:,.0f} times {word}"


def shortened(name: str, most: int = 40) -> str:
    """A name that fits; both ends stay, since relatives differ there."""
    if len(name) <= most:
        return name
    tail = (most - 1) * 2 // 5
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"
