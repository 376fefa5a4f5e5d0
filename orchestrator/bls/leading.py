"""Rows that a lead has asked beyond stage 0 already: settled at once, without waiting for a worker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.bls.metrics import Counters
from orchestrator.bls.tensors import Rows
from orchestrator.decision import CascadeRun, StageOutcome


def apply_prefix_outputs(
    run: CascadeRun, counters: Counters, first: StageOutcome, *, later: Sequence[Sequence[Rows]]
) -> list[StageOutcome]:
    """Settles deferred rows with what the lead has said of later stages.

    Called under the lock that guards the run, before anybody is told of the deferred rows.

    Args:
        run: the cascade at work; it has just admitted the batch.
        counters: counts what happens.
        first: what became of the batch at stage 0.
        later: for each stage after it, (n, k) per member, NaN for rows the lead did not ask there.

    Returns:
        the outcomes stage by stage; `row` and `deferred` count in the batch, and the slots of each are those that
        still wait. Rows the lead did not ask at a stage wait for its workers as ever.
    """
    outcomes = [first]
    for stage, said in enumerate(later, start=1):
        before = outcomes[-1]
        known = ~np.isnan(np.stack([output[before.deferred] for output in said])).any(axis=(0, 2))
        if not known.any():
            break
        slots, places = before.slots[known], before.deferred[known]
        before.slots, before.deferred = before.slots[~known], before.deferred[~known]
        run.take(slots)
        counters.asked(len(slots), run.spec.stages[stage].cost)
        counters.deferred(len(slots), stage - 1)
        outcome = run.feed(slots, [output[places] for output in said])
        outcome.answers.row = places[outcome.answers.row]
        outcome.failures.row = places[outcome.failures.row]
        outcome.deferred = places[outcome.deferred]
        outcomes.append(outcome)
    return outcomes
