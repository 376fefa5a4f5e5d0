"""The guarantee: plans found on some rows are judged on others, which only decide how far down a fixed list to go.

Candidates come from the search part as a fixed sequence, the safest first and each next one cheaper. On the
certify part they are tested one after another, each at the full level, until the first that fails; the last that
passed is taken. If the first plan that is truly too bad stands at place j, taking it or a later one means that its
own test passed, which happens with probability delta at most: no correction for the number of candidates is due
(the fixed-sequence procedure; Westfall and Krishen, J. Statistical Planning and Inference 99, 2001).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.planner.candidates import CandidatePlan, answers_of
from orchestrator.planner.goal import Goal, Reference
from orchestrator.planner.intervals import BOUNDS, fewest_rows, rate_at_least, tilt_at_most
from orchestrator.planner.subset_table import SubsetTable

# Neighbours in a longer sequence differ by rows that nobody can tell from chance.
LONGEST_SEQUENCE = 40


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """A plan against the yardstick on some rows.

    Args:
        rows: how many.
        right: rows the plan gets right.
        losses: rows the reference gets right and the plan wrong.
        gains: the other way round.
    """

    rows: int
    right: int
    losses: int
    gains: int


def counts_of(choice: CandidatePlan, table: SubsetTable, yardstick: Reference) -> PairedCounts:
    """Counts of a plan on all rows of a table."""
    right = yardstick.right(answers_of(choice, table).label)
    return PairedCounts(
        rows=table.rows,
        right=int(right.sum()),
        losses=int((yardstick.base_right & ~right).sum()),
        gains=int((~yardstick.base_right & right).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class PlannedTest:
    """One plan of the sequence.

    Args:
        choice: the plan.
        ticks: its total cost on the search part.
        method: the bound that promises most for it, chosen before any certify row is looked at.
        predicted: the bound expected on the certify part.
        risk: what orders candidates: the same, and among those at 0 how little gains outweigh losses.
    """

    choice: CandidatePlan
    ticks: float
    method: str
    predicted: float
    risk: float


def planned_test(
    choice: CandidatePlan, ticks: float, tally: PairedCounts, *, rows: int, delta: float
) -> PlannedTest:
    """A candidate with the bound that promises most, from its counts on the search part.

    Args:
        choice: the plan.
        ticks: total cost on the search part.
        tally: its counts there.
        rows: rows of the certify part.
        delta: level of each test.
    """
    scale = rows / tally.rows
    losses, gains = math.ceil(tally.losses * scale), math.floor(tally.gains * scale)
    # Equal promises go to the simpler bound: min takes the first.
    predicted = {name: bound(losses, gains, rows, delta) for name, bound in BOUNDS.items()}
    method = min(predicted, key=lambda name: predicted[name])
    # Bounds end at 0; without the tilt the cheapest of all plans there would pass for the safest.
    risk = predicted[method] or min(tilt_at_most(losses, gains, delta), 0.0)
    return PlannedTest(choice=choice, ticks=ticks, method=method, predicted=predicted[method], risk=risk)


def sequence_of(candidates: Sequence[PlannedTest]) -> list[PlannedTest]:
    """The candidates nothing beats in both cost and promise, safest first; thinned evenly where they are many."""
    kept: list[PlannedTest] = []
    # A riskier plan is of use only where it is cheaper than all safer ones.
    for candidate in sorted(candidates, key=lambda one: (one.risk, one.ticks)):
        if not kept or candidate.ticks < kept[-1].ticks:
            kept.append(candidate)
    if len(kept) <= LONGEST_SEQUENCE:
        return kept
    places = np.unique(np.linspace(0, len(kept) - 1, LONGEST_SEQUENCE).round().astype(int))
    return [kept[place] for place in places]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What the certify part says.

    Args:
        choice: the plan that is certified; the safest candidate where none is.
        certified: whether the bound holds.
        method: which bound.
        bound: what is certified. Epsilon where a cheaper candidate failed: the plan's own bound, lower by a hair,
            was then chosen for being below epsilon and does not hold by itself.
        tally: the plan's counts on the certify part.
        candidates: length of the sequence.
        tested: how many were tested.
        accuracy_lower: lower bound of the plan's accuracy that holds for all candidates at once.
        rows_needed: rows of the certify part that would certify the safest candidate; None for no number.
    """

    choice: CandidatePlan
    certified: bool
    method: str
    bound: float
    tally: PairedCounts
    candidates: int
    tested: int
    accuracy_lower: float
    rows_needed: int | None


def certify(
    sequence: Sequence[PlannedTest],
    table: SubsetTable,
    yardstick: Reference,
    *,
    epsilon: float,
    delta: float,
    spare: bool = False,
) -> Certificate:
    """Goes down the sequence until the first candidate that fails.

    Args:
        sequence: at least one candidate, as `sequence_of` gives it.
        table: the certify part.
        yardstick: the same rows.
        epsilon: what the bound of a plan must not exceed.
        delta: probability, over the certify rows, that a plan worse than epsilon is taken.
        spare: whether one more plan, safe by itself, is taken where none of these is certified.
    """
    tests: list[tuple[PlannedTest, PairedCounts, float]] = []
    for candidate in sequence:
        tally = counts_of(candidate.choice, table, yardstick)
        bound = BOUNDS[candidate.method](tally.losses, tally.gains, tally.rows, delta)
        tests.append((candidate, tally, bound))
        if bound > epsilon:
            break
    failed = tests[-1][2] > epsilon
    passed = tests[:-1] if failed else tests
    candidate, tally, bound = passed[-1] if passed else tests[0]
    needed = None
    if not passed:
        needed = fewest_rows(losses=tally.losses, gains=tally.gains, rows=tally.rows, epsilon=epsilon, delta=delta)
    return Certificate(
        choice=candidate.choice,
        certified=bool(passed),
        method=candidate.method,
        bound=epsilon if failed and passed else bound,
        tally=tally,
        candidates=len(sequence),
        tested=len(tests),
        accuracy_lower=rate_at_least(tally.right, tally.rows, delta / (len(sequence) + spare)),
        rows_needed=needed,
    )


@dataclass(frozen=True, kw_only=True)
class UnmetConstraint:
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

    @property
    def text(self) -> str:
        """In one line."""
        said = f"got {self.got}, expected {self.expected}"
        return said if self.fix is None else f"{said}; {self.fix}"


def facts_of(goal: Goal, *, method: str, bound: float, rows: int, losses: int, gains: int) -> dict[str, Any]:
    """A certificate as JSON values."""
    return {
        "statement": f"{goal.sure} {goal.promise}",
        "delta": goal.delta,
        "epsilon": goal.allowed,
        "rows": rows,
        "losses": losses,
        "gains": gains,
        "counted": goal.counted,
        "method": method,
        "bound": bound,
    }


def tested_facts(said: Certificate) -> dict[str, Any]:
    """How the certify rows were used, as JSON values."""
    return {"candidates": said.candidates, "tested": said.tested}


def uncertified(said: Certificate, goal: Goal, *, certify_share: float) -> UnmetConstraint:
    """What a plan that could not be certified falls short of.

    Args:
        said: of the plan.
        goal: what was asked.
        certify_share: part of all rows that certify.
    """
    tally = said.tally
    seen = f"{tally.losses} of {tally.rows} certify rows {goal.counted}"
    if goal.is_relative:
        seen += f" and {tally.gains} won"
    more = None
    fix = "no number of rows would do at this rate: ask for less"
    if said.rows_needed is not None:
        more = math.ceil((said.rows_needed - tally.rows) / certify_share)
        fix = f"about {more} more rows would do if they are like these"
    return UnmetConstraint(
        got=f"{seen} by the {'best' if goal.has_budget else 'safest'} plan, so a bound of {said.bound:.4g}",
        expected=f"at most {goal.allowed:.4g} with probability {1 - goal.delta:g}",
        fix=fix,
        more_rows=more,
    )
