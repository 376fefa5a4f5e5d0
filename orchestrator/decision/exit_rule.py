"""The exit rule: which rows of a stage are answered there.

Higher is surer: exit when score >= threshold, ties exit. The last stage always answers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.decision.combine import F32, I32, Bools
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import ABSTAINED, CAPPED, GEARED


def exits(score: F32, threshold: float) -> Bools:
    """Which rows a threshold lets exit where no request parameter has a say, bool (n,).

    Args:
        score: float32 (n,).
        threshold: rounded to float32 before it is compared.
    """
    reached: Bools = score >= np.float32(threshold)
    return reached


class ExitRule:
    """Thresholds of one plan, as float32, asked stage by stage.

    Args:
        spec: the cascade.
    """

    def __init__(self, spec: CascadeSpec) -> None:
        never = np.float32(np.inf)
        self.last = len(spec.stages) - 1
        own = tuple(stage.threshold for stage in spec.stages[:-1])
        cheaper = () if spec.gears is None else tuple(gear.thresholds for gear in spec.gears.cheaper)
        # float32 (gears, s - 1)
        self.thresholds: F32 = np.array(
            [[never if t is None else np.float32(t) for t in vector] for vector in (own, *cheaper)], np.float32
        )
        # Of stage 0 by gear; an index of two dimensions costs as much as the comparison.
        self._first = list(self.thresholds[:, 0]) if self.last else []
        self.lows = [None if s.low is None else np.float32(s.low) for s in spec.stages]

    def decide_plain(self, score: F32, gear: int) -> tuple[Bools, I32 | None]:
        """Which rows without wishes of their own exit at stage 0.

        Args:
            score: float32 (n,).
            gear: whose thresholds.

        Returns:
            as `decide`, to the bit; None for status bits that are all 0.
        """
        if self.last == 0:
            return np.ones(len(score), np.bool_), None
        wants: Bools = score >= self._first[gear]
        low = self.lows[0]
        if not gear and low is None:
            return wants, None
        status = np.zeros(len(score), np.int32)
        if gear:
            status[wants & (score < self.thresholds[0, 0])] = GEARED
        if low is not None:
            # A cheaper gear does not make a hopeless row a sure one: whoever waits for the bit gets it.
            doubtful = (score <= low) & (score < self.thresholds[0, 0])
            status[doubtful] = ABSTAINED
            wants = wants | doubtful
        return wants, status

    def decide(
        self, stage: int, score: F32, *, min_stage: I32, max_stage: I32, shift: F32, gear: I32 | None = None
    ) -> tuple[Bools, I32]:
        """Which rows exit here.

        Args:
            stage: where they are.
            score: float32 (n,).
            min_stage: int32 (n,), no exit before it.
            max_stage: int32 (n,), answered there at the latest.
            shift: float32 (n,), added to a finite threshold; positive is stricter. Never added to `low`.
            gear: int32 (n,), whose thresholds; None for the plan's own.

        Returns:
            bool (n,) of exits and int32 (n,) of status bits earned by exiting.
        """
        rows = len(score)
        if stage == self.last:
            return np.ones(rows, np.bool_), np.zeros(rows, np.int32)
        # inf + shift stays inf, so "never" needs no special case.
        own = score >= self.thresholds[0, stage] + shift
        sure = own if gear is None else score >= self.thresholds[gear, stage] + shift
        low = self.lows[stage]
        doubtful: Bools | None = None if low is None else (score <= low) & ~own
        wants: npt.NDArray[np.bool_] = sure if doubtful is None else sure | doubtful
        wants = wants & (min_stage <= stage)
        capped = (max_stage <= stage) & ~wants
        status = np.int32(CAPPED) * capped.astype(np.int32)
        if doubtful is not None:
            status |= np.int32(ABSTAINED) * (doubtful & wants)
        if gear is not None:
            # Only where the plan's own thresholds would have gone on.
            hasty = wants & ~own if doubtful is None else wants & ~own & ~doubtful
            status |= np.int32(GEARED) * hasty
        return wants | capped, status
