"""The definition of the exit rule: which rows of a stage are answered there, and with which status bits.

Higher confidence is surer: a row exits where its score reaches the threshold, and ties exit. The last stage
answers every row. Speed or another language needs other forms of this rule, each held to `ExitRule.decide` by a
test, so that a change begins here and the tests name what has to follow: `decision/fast_path.py` (one comparison,
for requests without parameters that exit whole at stage 0), the search of the planner (scores in bins), the graph
of `export/onefile/stages.py`, the script of the report's page, and `perf/routes/baselines/deciding.py` (a baseline
that must stand without this package).
"""

import numpy as np

from orchestrator.decision.combine import F32, I32, Bools
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import ABSTAINED, CAPPED, GEARED


def exits(score: F32, threshold: float) -> Bools:
    """Which rows a threshold lets exit where no request parameter has a say, bool (n,); for searches."""
    reached: Bools = score >= np.float32(threshold)
    return reached


class ExitRule:
    """Thresholds of one plan, as float32, asked stage by stage.

    Attributes:
        thresholds: float32 (gears, s - 1), infinite where no row exits; gear 0 is the plan's own.
        lows: by stage, the score up to which a row is hopeless and exits; None for none.
        last: the last stage.
    """

    def __init__(self, spec: CascadeSpec) -> None:
        # inf + shift stays inf, so a stage at which no row exits needs no special case.
        never = np.float32(np.inf)
        self.last = len(spec.stages) - 1
        own = tuple(stage.threshold for stage in spec.stages[:-1])
        cheaper = () if spec.gears is None else tuple(gear.thresholds for gear in spec.gears.cheaper)
        self.thresholds: F32 = np.array(
            [[never if t is None else np.float32(t) for t in vector] for vector in (own, *cheaper)], np.float32
        )
        # Arrays of one value, because numpy takes twice as long with a scalar.
        self._columns = np.split(self.thresholds[0], self.last) if self.last else []
        self._stages = np.split(np.arange(self.last, dtype=np.int32), self.last) if self.last else []
        self.lows = [None if stage.low is None else np.float32(stage.low) for stage in spec.stages]

    def decide(
        self, stage: int, score: F32, *, min_stage: I32, max_stage: I32, shift: F32, gear: I32 | None = None
    ) -> tuple[Bools, I32]:
        """Which rows exit here.

        Args:
            stage: where they are.
            score: float32 (n,).
            min_stage: int32 (n,), no exit before it.
            max_stage: int32 (n,), answered there at the latest.
            shift: float32 (n,), added to a finite threshold; positive is stricter. Never added to `lows`.
            gear: int32 (n,), whose thresholds; None for the plan's own.

        Returns:
            bool (n,) of exits and int32 (n,) of status bits earned by exiting.
        """
        rows = len(score)
        status = np.zeros(rows, np.int32)
        if stage == self.last:
            return np.ones(rows, np.bool_), status
        own = score >= self._columns[stage] + shift
        sure = own if gear is None else score >= self.thresholds[gear, stage] + shift
        low = self.lows[stage]
        # A cheaper gear does not make a hopeless row a sure one: ABSTAINED tells its client to ask a person.
        doubtful: Bools | None = None if low is None else (score <= low) & ~own
        wants: Bools = sure if doubtful is None else sure | doubtful
        at = self._stages[stage]
        wants = wants & (min_stage <= at)
        if doubtful is not None:
            status |= np.int32(ABSTAINED) * (doubtful & wants)
        if gear is not None:
            # The bit says that the plan's own thresholds would have deferred the row.
            hasty = wants & ~own if doubtful is None else wants & ~own & ~doubtful
            status |= np.int32(GEARED) * hasty
        is_end = max_stage <= at
        if not np.count_nonzero(is_end):  # nearly always
            return wants, status
        # A row that would have exited here anyway was not capped.
        capped = is_end & ~wants
        status |= np.int32(CAPPED) * capped
        return wants | capped, status
