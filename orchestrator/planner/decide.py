"""From tables to one plan: search on one part, and certify on the other what the search found.

Knows rows as labels and scores only, so it can be run thousands of times on samples of a population whose truth is
known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.planner.candidates import CandidatePlan, orderings_of
from orchestrator.planner.certify import (
    Certificate,
    PlannedTest,
    UnmetConstraint,
    certify,
    counts_of,
    facts_of,
    planned_test,
    sequence_of,
    tested_facts,
    uncertified,
)
from orchestrator.planner.goal import (
    ENSEMBLE,
    Goal,
    Reference,
    SearchOptions,
    is_reference,
    reference_alone,
    rows_wanted,
)
from orchestrator.planner.intervals import rate_at_least
from orchestrator.planner.search import RIGHT, Found, SearchResult, search
from orchestrator.planner.subset_table import SubsetTable
from orchestrator.progress import Progress, no_progress

KEPT = "kept"
# Of the candidates for certification, so many per frontier are judged on the search part.
MOST_CANDIDATES = 150


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """Rows and what they are measured against.

    Args:
        table: n rows; none where nothing is certified.
        yardstick: of the same rows.
    """

    table: SubsetTable
    yardstick: Reference

    def take(self, rows: Any) -> RowSet:
        """The same of some rows, intp (n,)."""
        return RowSet(table=self.table.take(rows), yardstick=self.yardstick.take(rows))


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One plan and what is known of it.

    Args:
        choice: the plan; the best reachable one where there is a shortfall.
        searched: frontiers of the search part.
        accuracy_lower: lower bound of its accuracy (of its agreement, where labels are not looked at).
        guarantee: facts of the certificate as JSON values; None where nothing was certified.
        shortfall: why the goal is not met; None where it is.
        instead: why the reference itself had to be taken; None where another plan was certified, or nothing was.
    """

    choice: CandidatePlan
    searched: SearchResult
    accuracy_lower: float | None = None
    guarantee: dict[str, Any] | None = None
    shortfall: UnmetConstraint | None = None
    instead: UnmetConstraint | None = None


def decide(
    chosen_on: RowSet, judged_on: RowSet, goal: Goal, options: SearchOptions, *, progress: Progress = no_progress
) -> Decision:
    """The best plan for a goal.

    Args:
        chosen_on: the search part.
        judged_on: the certify part, looked at only after the search is over.
        goal: what is wanted, its reference settled.
        options: how to look.
        progress: shows the search.
    """
    table = chosen_on.table
    chains = orderings_of(
        table.pool,
        combines=options.combines,
        scores=options.scores,
        max_stages=goal.max_stages,
        max_worst_cost=goal.max_worst_cost,
    )
    if not chains:
        return _too_dear(table, goal, options)
    values = {RIGHT: chosen_on.yardstick.right}
    if goal.certify and goal.is_relative and not goal.has_budget:
        values[KEPT] = chosen_on.yardstick.kept
    with progress("searching thresholds", len(chains)) as advance:
        searched = search(
            table, chains, values=values, max_stages=goal.max_stages, quantiles=options.quantiles, advance=advance
        )
    if goal.has_budget:
        return _within_budget(searched, chosen_on, judged_on, goal, options)
    return _cheapest(searched, chosen_on, judged_on, goal, options)


def _too_dear(table: SubsetTable, goal: Goal, options: SearchOptions) -> Decision:
    choice = CandidatePlan(combine=options.combines[0], score=options.scores[0], stages=((0,),), thresholds=())
    nothing = SearchResult(frontiers={RIGHT: ()}, rows=table.rows, ticks_per_cost=1.0)
    least = f"at least {table.pool[0].cost:g}, the cheapest member's"
    shortfall = UnmetConstraint(got=f"max worst cost {goal.max_worst_cost:g}", expected=least)
    return Decision(choice=choice, searched=nothing, shortfall=shortfall)


def _within_budget(
    searched: SearchResult, chosen_on: RowSet, judged_on: RowSet, goal: Goal, options: SearchOptions
) -> Decision:
    """The most accurate plan within a mean cost, with a bound of its accuracy or of what it loses."""
    frontier, budget = searched.frontiers[RIGHT], goal.max_mean_cost
    assert budget is not None
    found = searched.within(frontier, max_mean_cost=budget)
    if found is None:
        least = frontier[-1]
        expected = (
            f"at least {searched.mean_cost(least):g}, where {goal.noun} is {least.right / searched.rows:.4f}"
        )
        shortfall = UnmetConstraint(got=f"max mean cost {budget:g}", expected=expected)
        return Decision(choice=least.choice, searched=searched, shortfall=shortfall)
    if goal.has_promise:
        wanted = rows_wanted(goal, chosen_on.yardstick)
        if found.right < wanted - 1e-9 * searched.rows:
            shortfall = UnmetConstraint(
                got=f"{goal.noun} {found.right / searched.rows:.6g}, the best with mean cost <= {budget:g}",
                expected=f"at least {wanted / searched.rows:.6g} on the search part: {goal.promise}",
                fix="allow a higher mean cost or a larger epsilon",
            )
            return Decision(choice=found.choice, searched=searched, shortfall=shortfall)
        return _promised(found, searched, chosen_on, judged_on, goal, options)
    if not goal.certify:
        return Decision(choice=found.choice, searched=searched)
    return _bounded(found.choice, searched, judged_on, goal)


def _bounded(choice: CandidatePlan, searched: SearchResult, judged_on: RowSet, goal: Goal) -> Decision:
    """A plan that promises nothing, with what the certify part says its accuracy is at least."""
    tally = counts_of(choice, judged_on.table, judged_on.yardstick)
    lower = rate_at_least(tally.right, tally.rows, goal.delta)
    facts = {
        "statement": f"{goal.sure} {goal.noun} >= {lower:.6g}",
        "delta": goal.delta,
        "epsilon": None,
        "rows": tally.rows,
        "losses": tally.losses,
        "gains": tally.gains,
        "counted": goal.counted,
        "method": "clopper_pearson_losses",
        "bound": 1 - lower,
    }
    return Decision(choice=choice, searched=searched, accuracy_lower=lower, guarantee=facts)


def _cheapest(
    searched: SearchResult, chosen_on: RowSet, judged_on: RowSet, goal: Goal, options: SearchOptions
) -> Decision:
    """The cheapest plan that is good enough, by the search part alone or certified."""
    frontier = searched.frontiers[RIGHT]
    wanted = rows_wanted(goal, chosen_on.yardstick)
    found = searched.reaching(frontier, right=wanted)
    if found is None:
        best = frontier[0]
        shortfall = UnmetConstraint(
            got=f"{goal.noun} >= {wanted / searched.rows:.6g} asked",
            expected=f"at most {best.right / searched.rows:.6g}, the best of all plans on the search part",
        )
        return Decision(choice=best.choice, searched=searched, shortfall=shortfall)
    return _promised(found, searched, chosen_on, judged_on, goal, options)


def _promised(
    found: Found, searched: SearchResult, chosen_on: RowSet, judged_on: RowSet, goal: Goal, options: SearchOptions
) -> Decision:
    """A plan that is good enough on the search part, certified where that is asked for."""
    if not goal.certify:
        return Decision(choice=found.choice, searched=searched)
    pool = chosen_on.table.pool
    if is_reference(found.choice, goal, pool, combine=options.combines[0]):
        return _itself(found.choice, searched, judged_on, goal)
    rows = judged_on.table.rows
    if goal.has_budget:
        # One plan, settled before the certify part is looked at: a sequence of one.
        tally = counts_of(found.choice, chosen_on.table, chosen_on.yardstick)
        sequence = [planned_test(found.choice, found.ticks, tally, rows=rows, delta=goal.delta)]
    else:
        sequence = sequence_of(_candidates(searched, found, chosen_on, goal, rows=rows))
    itself = reference_alone(goal, pool, options)
    said = certify(
        sequence,
        judged_on.table,
        judged_on.yardstick,
        epsilon=goal.allowed,
        delta=goal.delta,
        spare=itself is not None,
    )
    certify_share = rows / (searched.rows + rows)
    if itself is not None and not said.certified:
        return _itself(itself, searched, judged_on, goal, said=said, certify_share=certify_share)
    return _from_certificate(said, searched, goal, certify_share=certify_share)


def _itself(
    choice: CandidatePlan,
    searched: SearchResult,
    judged_on: RowSet,
    goal: Goal,
    *,
    said: Certificate | None = None,
    certify_share: float = 0.5,
) -> Decision:
    """The reference, which is never worse than itself.

    Args:
        choice: the reference as a plan.
        searched: frontiers of the search part.
        judged_on: the certify part.
        goal: what is wanted.
        said: of the other plans, none of which could be certified; None where the search found none to try.
        certify_share: part of all rows that certify.
    """
    tally = counts_of(choice, judged_on.table, judged_on.yardstick)
    facts = facts_of(goal, method="identity", bound=0.0, rows=tally.rows, losses=0, gains=0)
    instead = None
    if said is not None:
        instead = uncertified(said, goal, certify_share=certify_share)
        facts |= tested_facts(said) | {"more_rows": instead.more_rows}
    # The others had their say before it: the level is shared with them.
    delta = goal.delta / (1 if said is None else said.candidates + 1)
    lower = 1.0 if goal.label_free else rate_at_least(tally.right, tally.rows, delta)
    return Decision(choice=choice, searched=searched, accuracy_lower=lower, guarantee=facts, instead=instead)


def _candidates(
    searched: SearchResult, cheapest: Found, chosen_on: RowSet, goal: Goal, *, rows: int
) -> list[PlannedTest]:
    """Plans good enough on the search part, with the bounds they promise on `rows` certify rows."""
    found: dict[CandidatePlan, Found] = {}
    wanted = rows_wanted(goal, chosen_on.yardstick)
    most = _reference_ticks(searched, chosen_on.table, goal)
    for frontier in searched.frontiers.values():
        good = [one for one in frontier if one.ticks < most]
        places = np.unique(np.linspace(0, len(good) - 1, MOST_CANDIDATES).round().astype(int)) if good else ()
        found |= {good[place].choice: good[place] for place in places}
    found[cheapest.choice] = cheapest
    tallies = {choice: counts_of(choice, chosen_on.table, chosen_on.yardstick) for choice in found}
    return [
        planned_test(choice, one.ticks, tallies[choice], rows=rows, delta=goal.delta)
        for choice, one in found.items()
        if tallies[choice].right >= wanted - 1e-9 * searched.rows
    ]


def _reference_ticks(searched: SearchResult, table: SubsetTable, goal: Goal) -> float:
    """What the reference costs: a plan that is dearer need not stand in for it, unless it is not allowed."""
    if goal.reference in (None, ENSEMBLE):
        return math.inf
    cost = next(member.cost for member in table.pool if member.name == goal.reference)
    if goal.max_worst_cost is not None and cost > goal.max_worst_cost:
        return math.inf
    return cost * (1 - 1e-12) * searched.rows * searched.ticks_per_cost


def _from_certificate(said: Certificate, searched: SearchResult, goal: Goal, *, certify_share: float) -> Decision:
    tally = said.tally
    facts = facts_of(
        goal, method=said.method, bound=said.bound, rows=tally.rows, losses=tally.losses, gains=tally.gains
    )
    facts |= tested_facts(said) | {"certified": said.certified}
    return Decision(
        choice=said.choice,
        searched=searched,
        accuracy_lower=said.accuracy_lower if goal.is_relative else 1 - said.bound,
        guarantee=facts,
        shortfall=None if said.certified else uncertified(said, goal, certify_share=certify_share),
    )
