"""From tables to one plan: search on one part, and certify on the other what the search found.

Knows rows as labels and scores only, so it can be run thousands of times on samples of a population whose truth is
known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.planner.bounds import rate_at_least
from orchestrator.planner.certify import (
    Candidate,
    Certificate,
    candidate_from_tally,
    certify,
    sequence_of,
    tally_of,
)
from orchestrator.planner.chains import Choice, chains_of
from orchestrator.planner.goal import ENSEMBLE, Goal, Options
from orchestrator.planner.progress import Progress, silent
from orchestrator.planner.search import RIGHT, Found, Searched, search
from orchestrator.planner.table import Table
from orchestrator.planner.yardstick import Yardstick, rows_wanted

KEPT = "kept"
# Of the candidates for certification, so many per frontier are judged on the search part.
MOST_CANDIDATES = 150


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows and what they are measured against.

    Args:
        table: n rows; none where nothing is certified.
        yardstick: of the same rows.
    """

    table: Table
    yardstick: Yardstick

    def take(self, rows: Any) -> Part:
        """The same of some rows, intp (n,)."""
        return Part(table=self.table.take(rows), yardstick=self.yardstick.take(rows))


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """Why no plan does what was asked.

    Args:
        got: what was asked or seen.
        expected: what would do.
        fix: what to do next.
        more_rows: how many more rows, of both parts together, would certify the best plan; None for no number.
    """

    got: str
    expected: str
    fix: str | None = None
    more_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One plan and what is known of it.

    Args:
        choice: the plan; the best reachable one where there is a shortfall.
        searched: frontiers of the search part.
        accuracy_lower: lower bound of its accuracy (of its agreement, where labels are not looked at).
        guarantee: facts of the certificate as JSON values; None where nothing was certified.
        shortfall: why the goal is not met; None where it is.
    """

    choice: Choice
    searched: Searched
    accuracy_lower: float | None = None
    guarantee: dict[str, Any] | None = None
    shortfall: Shortfall | None = None


def decide(
    chosen_on: Part, judged_on: Part, goal: Goal, options: Options, *, progress: Progress = silent
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
    chains = chains_of(
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
        return _within_budget(searched, chosen_on, judged_on, goal)
    return _cheapest(searched, chosen_on, judged_on, goal)


def _too_dear(table: Table, goal: Goal, options: Options) -> Decision:
    choice = Choice(combine=options.combines[0], score=options.scores[0], stages=((0,),), thresholds=())
    nothing = Searched(frontiers={RIGHT: ()}, rows=table.rows, ticks_per_cost=1.0)
    least = f"at least {table.pool[0].cost:g}, the cheapest member's"
    shortfall = Shortfall(got=f"max worst cost {goal.max_worst_cost:g}", expected=least)
    return Decision(choice=choice, searched=nothing, shortfall=shortfall)


def _within_budget(searched: Searched, chosen_on: Part, judged_on: Part, goal: Goal) -> Decision:
    """The most accurate plan within a mean cost, with a bound of its accuracy or of what it loses."""
    frontier, budget = searched.frontiers[RIGHT], goal.max_mean_cost
    assert budget is not None
    found = searched.within(frontier, max_mean_cost=budget)
    if found is None:
        least = frontier[-1]
        expected = (
            f"at least {searched.mean_cost(least):g}, where {goal.noun} is {least.right / searched.rows:.4f}"
        )
        shortfall = Shortfall(got=f"max mean cost {budget:g}", expected=expected)
        return Decision(choice=least.choice, searched=searched, shortfall=shortfall)
    if goal.has_promise:
        wanted = rows_wanted(goal, chosen_on.yardstick)
        if found.right < wanted - 1e-9 * searched.rows:
            shortfall = Shortfall(
                got=f"{goal.noun} {found.right / searched.rows:.6g}, the best with mean cost <= {budget:g}",
                expected=f"at least {wanted / searched.rows:.6g} on the search part: {goal.promise}",
                fix="allow a higher mean cost or a larger epsilon",
            )
            return Decision(choice=found.choice, searched=searched, shortfall=shortfall)
        return _promised(found, searched, chosen_on, judged_on, goal)
    if not goal.certify:
        return Decision(choice=found.choice, searched=searched)
    return _bounded(found.choice, searched, judged_on, goal)


def _bounded(choice: Choice, searched: Searched, judged_on: Part, goal: Goal) -> Decision:
    """A plan that promises nothing, with what the certify part says its accuracy is at least."""
    tally = tally_of(choice, judged_on.table, judged_on.yardstick)
    lower = rate_at_least(tally.right, tally.rows, goal.delta)
    facts = {
        "statement": f"{goal.sure} {goal.noun} >= {lower:.6g}",
        "delta": goal.delta,
        "epsilon": None,
        "rows": tally.rows,
        "losses": tally.losses,
        "gains": tally.gains,
        "method": "clopper_pearson_losses",
        "bound": 1 - lower,
    }
    return Decision(choice=choice, searched=searched, accuracy_lower=lower, guarantee=facts)


def _cheapest(searched: Searched, chosen_on: Part, judged_on: Part, goal: Goal) -> Decision:
    """The cheapest plan that is good enough, by the search part alone or certified."""
    frontier = searched.frontiers[RIGHT]
    wanted = rows_wanted(goal, chosen_on.yardstick)
    found = searched.reaching(frontier, right=wanted)
    if found is None:
        best = frontier[0]
        shortfall = Shortfall(
            got=f"{goal.noun} >= {wanted / searched.rows:.6g} asked",
            expected=f"at most {best.right / searched.rows:.6g}, the best of all plans on the search part",
        )
        return Decision(choice=best.choice, searched=searched, shortfall=shortfall)
    return _promised(found, searched, chosen_on, judged_on, goal)


def _promised(found: Found, searched: Searched, chosen_on: Part, judged_on: Part, goal: Goal) -> Decision:
    """A plan that is good enough on the search part, certified where that is asked for."""
    if not goal.certify:
        return Decision(choice=found.choice, searched=searched)
    if [chosen_on.table.pool[place].name for place in found.choice.members] == [goal.reference]:
        return _itself(found.choice, searched, judged_on, goal)
    rows = judged_on.table.rows
    if goal.has_budget:
        # One plan, settled before the certify part is looked at: a sequence of one.
        tally = tally_of(found.choice, chosen_on.table, chosen_on.yardstick)
        sequence = [candidate_from_tally(found.choice, found.ticks, tally, rows=rows, delta=goal.delta)]
    else:
        sequence = sequence_of(_candidates(searched, found, chosen_on, goal, rows=rows))
    said = certify(sequence, judged_on.table, judged_on.yardstick, epsilon=goal.allowed, delta=goal.delta)
    return _from_certificate(said, searched, goal, certify_share=rows / (searched.rows + rows))


def _itself(choice: Choice, searched: Searched, judged_on: Part, goal: Goal) -> Decision:
    """Nothing cheaper is good enough, and the reference is never worse than itself."""
    tally = tally_of(choice, judged_on.table, judged_on.yardstick)
    facts = _facts(goal, method="identity", bound=0.0, rows=tally.rows, losses=0, gains=0)
    lower = 1.0 if goal.label_free else rate_at_least(tally.right, tally.rows, goal.delta)
    return Decision(choice=choice, searched=searched, accuracy_lower=lower, guarantee=facts)


def _candidates(searched: Searched, cheapest: Found, chosen_on: Part, goal: Goal, *, rows: int) -> list[Candidate]:
    """Plans good enough on the search part, with the bounds they promise on `rows` certify rows."""
    found: dict[Choice, Found] = {}
    wanted = rows_wanted(goal, chosen_on.yardstick)
    most = _reference_ticks(searched, chosen_on.table, goal)
    for frontier in searched.frontiers.values():
        good = [one for one in frontier if one.ticks < most]
        places = np.unique(np.linspace(0, len(good) - 1, MOST_CANDIDATES).round().astype(int)) if good else ()
        found |= {good[place].choice: good[place] for place in places}
    found[cheapest.choice] = cheapest
    tallies = {choice: tally_of(choice, chosen_on.table, chosen_on.yardstick) for choice in found}
    return [
        candidate_from_tally(choice, one.ticks, tallies[choice], rows=rows, delta=goal.delta)
        for choice, one in found.items()
        if tallies[choice].right >= wanted - 1e-9 * searched.rows
    ]


def _reference_ticks(searched: Searched, table: Table, goal: Goal) -> float:
    """What the reference costs: a plan that is dearer need not stand in for it, unless it is not allowed."""
    if goal.reference in (None, ENSEMBLE):
        return math.inf
    cost = next(member.cost for member in table.pool if member.name == goal.reference)
    if goal.max_worst_cost is not None and cost > goal.max_worst_cost:
        return math.inf
    return cost * (1 - 1e-12) * searched.rows * searched.ticks_per_cost


def _from_certificate(said: Certificate, searched: Searched, goal: Goal, *, certify_share: float) -> Decision:
    tally = said.tally
    facts = _facts(
        goal, method=said.method, bound=said.bound, rows=tally.rows, losses=tally.losses, gains=tally.gains
    )
    facts |= {"candidates": said.candidates, "tested": said.tested, "certified": said.certified}
    return Decision(
        choice=said.choice,
        searched=searched,
        accuracy_lower=said.accuracy_lower if goal.is_relative else 1 - said.bound,
        guarantee=facts,
        shortfall=None if said.certified else _uncertified(said, goal, certify_share=certify_share),
    )


def _uncertified(said: Certificate, goal: Goal, *, certify_share: float) -> Shortfall:
    tally = said.tally
    counted = "wrong" if goal.min_accuracy is not None else "in disagreement" if goal.label_free else "lost"
    seen = f"{tally.losses} of {tally.rows} certify rows {counted}"
    if goal.is_relative:
        seen += f" and {tally.gains} won"
    more = None
    fix = "no number of rows would do at this rate: ask for less"
    if said.rows_needed is not None:
        more = math.ceil((said.rows_needed - tally.rows) / certify_share)
        fix = f"about {more} more rows would do if they are like these"
    return Shortfall(
        got=f"{seen} by the {'best' if goal.has_budget else 'safest'} plan, so a bound of {said.bound:.4g}",
        expected=f"at most {goal.allowed:.4g} with probability {1 - goal.delta:g}",
        fix=fix,
        more_rows=more,
    )


def _facts(goal: Goal, *, method: str, bound: float, rows: int, losses: int, gains: int) -> dict[str, Any]:
    return {
        "statement": f"{goal.sure} {goal.promise}",
        "delta": goal.delta,
        "epsilon": goal.allowed,
        "rows": rows,
        "losses": losses,
        "gains": gains,
        "method": method,
        "bound": bound,
    }
