"""Cheaper gears of a chosen plan: the same stages with other thresholds, along the plan's own frontier."""

from __future__ import annotations

import dataclasses

from orchestrator.planner.candidates import CandidatePlan, Ordering, answers_of, exit_shares_of, mean_cost
from orchestrator.planner.decide import RowSet
from orchestrator.planner.goal import QUANTILES
from orchestrator.planner.search import RIGHT, search
from orchestrator.spec.gears import Gear


def gears_of(choice: CandidatePlan, part: RowSet, *, count: int, quantiles: int = QUANTILES) -> tuple[Gear, ...]:
    """Up to `count` gears below the plan, evenly spaced in mean cost between it and asking stage 0 only.

    Each is the most accurate tuple of thresholds on the grid at its cost, found as the plan was. A grid with few
    corners gives fewer; a plan of one stage has none.

    Args:
        choice: the plan.
        part: the search part it was chosen on.
        count: gears wanted.
        quantiles: thresholds tried per stage.
    """
    if len(choice.stages) < 2 or count < 1:
        return ()
    chain = Ordering(combine=choice.combine, score=choice.score, groups=choice.stages)
    searched = search(
        part.table,
        [chain],
        values={RIGHT: part.yardstick.right},
        max_stages=len(choice.stages),
        quantiles=quantiles,
    )
    same = [found for found in searched.frontiers[RIGHT] if found.choice.stages == choice.stages]
    top, floor = _gear(choice, part).mean_cost, sum(part.table.costs[place] for place in choice.stages[0])
    choices = []
    for step in range(1, count):
        found = searched.within(same, max_mean_cost=top - (top - floor) * step / count)
        if found is not None:
            choices.append(found.choice)
    # No score is below 0, so the last gear asks stage 0 only, whatever the grid can reach.
    choices.append(dataclasses.replace(choice, thresholds=(0.0,) * len(choice.thresholds)))
    gears: list[Gear] = []
    last = top
    for one in choices:
        gear = _gear(one, part)
        if gear.mean_cost < last:
            gears.append(gear)
            last = gear.mean_cost
    return tuple(gears)


def _gear(choice: CandidatePlan, part: RowSet) -> Gear:
    outcome = answers_of(choice, part.table)
    share = exit_shares_of(outcome, len(choice.stages))
    return Gear(
        thresholds=choice.thresholds,
        mean_cost=mean_cost(choice, share, part.table.costs),
        accuracy=float(part.yardstick.right(outcome.label).mean()),
        exit_share=share,
    )
