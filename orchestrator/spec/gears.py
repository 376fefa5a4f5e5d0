"""Gears: cheaper threshold vectors of the same plan, for when more requests come in than it can serve.

Gear 0 is the plan's own thresholds; gears from 1 on are cheaper and less accurate, in that order. The longest wait
of a deferred row decides which gear is used; every row keeps the gear of its arrival until it is answered.
"""

from dataclasses import dataclass
from itertools import pairwise

from orchestrator.spec.validation import Faults, is_finite


@dataclass(frozen=True, kw_only=True)
class Gear:
    """One cheaper setting of the plan.

    Args:
        thresholds: one per stage but the last; None never exits.
        mean_cost: per row, on the rows the plan was fitted on.
        accuracy: share of those rows answered right; None where labels were not used.
        exit_share: share of those rows answered at each stage.
    """

    thresholds: tuple[float | None, ...]
    mean_cost: float
    accuracy: float | None = None
    exit_share: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        faults = Faults("gear")
        for threshold in self.thresholds:
            faults.threshold("thresholds", threshold)
        faults.not_negative("mean_cost", self.mean_cost)
        if self.accuracy is not None:
            good = is_finite(self.accuracy) and 0 <= self.accuracy <= 1
            faults.check("accuracy", good, f"got {self.accuracy!r}, expected a number from 0 to 1")
        faults.close()


@dataclass(frozen=True, kw_only=True)
class Gears:
    """The cheaper gears and when to shift between them.

    Args:
        cheaper: the gears from 1 on, each cheaper than the one before.
        raise_wait_us: longest wait of a deferred row from which on the next cheaper gear is taken.
        lower_wait_us: longest wait up to which the gear goes a step back; less than `raise_wait_us`.
        raise_after_us: how long waits must be that long, without a break, before the gear is raised.
        lower_after_us: how long waits must be that short before it is lowered; longer, so that gears do not swing.
    """

    cheaper: tuple[Gear, ...]
    raise_wait_us: int = 50_000
    lower_wait_us: int = 10_000
    raise_after_us: int = 100_000
    lower_after_us: int = 1_000_000

    def __post_init__(self) -> None:
        faults = Faults("gears")
        faults.check("cheaper", len(self.cheaper) > 0, "got none, expected at least one")
        names = ("raise_wait_us", "lower_wait_us", "raise_after_us", "lower_after_us")
        for name in names:
            faults.integer(name, getattr(self, name), low=0)
        if not faults.found:
            gap = self.lower_wait_us < self.raise_wait_us
            faults.check(
                "lower_wait_us",
                gap,
                f"got {self.lower_wait_us}, expected less than raise_wait_us {self.raise_wait_us}",
            )
            costs = [gear.mean_cost for gear in self.cheaper]
            falling = all(after < before for before, after in pairwise(costs))
            faults.check("cheaper", falling, f"got mean costs {costs}, expected each below the one before")
        faults.close()
