"""The certificate: plans found on some rows are tested on others, which only decide how far down a list to go.

The search part gives a fixed sequence of plans, the safest first and each next one cheaper. On the certify part
they are tested one after another, each at the full level, until the first that fails; the last that passed is
taken. If the first plan that is truly too bad stands at place j, taking it or a later one means that its own test
passed, which happens with probability delta at most: no correction for the length of the sequence is due
(the fixed-sequence procedure; Westfall and Krishen, J. Statistical Planning and Inference 99, 2001).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.planner.candidates import CandidatePlan, answers_of
from orchestrator.planner.goal import Goal, MeasuredRows
from orchestrator.planner.intervals import BOUNDS, fewest_rows, rate_at_least, tilt_at_most
from orchestrator.spec.shares import evenly_spread

# Neighbours in a longer sequence differ by rows that nobody can tell from chance.
LONGEST_SEQUENCE = 40


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """A plan against the reference on some rows.

    Args:
        rows: how many.
        right: rows the plan gets right.
        losses: rows the reference gets right and the plan wrong.
        gains: rows the plan gets right and the reference wrong.
    """

    rows: int
    right: int
    losses: int
    gains: int


def counts_of(plan: CandidatePlan, rows: MeasuredRows) -> PairedCounts:
    """Counts of a plan on some rows."""
    right = rows.right(answers_of(plan, rows.table).label)
    return PairedCounts(
        rows=rows.table.rows,
        right=int(right.sum()),
        losses=int((rows.reference_right & ~right).sum()),
        gains=int((~rows.reference_right & right).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class PlannedTest:
    """One plan of the sequence, with all that is settled before any certify row is looked at.

    Args:
        plan: the plan, with its cost on the search part.
        method: the bound it is tested with, a key of BOUNDS.
        risk: what orders the sequence: the bound expected on the certify part, and among those at 0 how little
            gains outweigh losses.
    """

    plan: CandidatePlan
    method: str
    risk: float


def planned_test(plan: CandidatePlan, counts: PairedCounts, *, rows: int, delta: float) -> PlannedTest:
    """A test with the method that is expected to give the least bound.

    Args:
        plan: the plan.
        counts: its counts on the search part.
        rows: rows of the certify part.
        delta: level of each test.
    """
    scale = rows / counts.rows
    losses, gains = math.ceil(counts.losses * scale), math.floor(counts.gains * scale)
    # Of equal bounds the simpler method is taken: min takes the first.
    expected = {name: bound(losses, gains, rows, delta) for name, bound in BOUNDS.items()}
    method = min(expected, key=lambda name: expected[name])
    # Bounds end at 0; without the tilt the cheapest of all plans there would pass for the safest.
    risk = expected[method] or min(tilt_at_most(losses, gains, delta), 0.0)
    return PlannedTest(plan=plan, method=method, risk=risk)


def sequence_of(tests: Sequence[PlannedTest]) -> list[PlannedTest]:
    """The tests whose plan no safer one beats in cost, safest first; thinned evenly where they are many."""
    kept: list[PlannedTest] = []
    # A riskier plan is of use only where it is cheaper than all safer ones.
    for test in sorted(tests, key=lambda test: (test.risk, test.plan.integer_cost)):
        if not kept or test.plan.integer_cost < kept[-1].plan.integer_cost:
            kept.append(test)
    return [kept[place] for place in evenly_spread(len(kept), LONGEST_SEQUENCE)]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What the certify part says.

    Args:
        plan: the plan that is certified; the safest one where none is.
        certified: whether the bound holds.
        method: which bound.
        bound: what is certified. Epsilon where a cheaper plan failed: the plan's own bound, lower by a hair, was
            then chosen for being below epsilon and does not hold by itself.
        counts: the plan's counts on the certify part.
        candidates: length of the sequence.
        tested: how many were tested.
        accuracy_lower: lower bound of the plan's accuracy that holds for all of the sequence at once.
        rows_needed: rows of the certify part that would certify the safest plan; None for no number.
    """

    plan: CandidatePlan
    certified: bool
    method: str
    bound: float
    counts: PairedCounts
    candidates: int
    tested: int
    accuracy_lower: float
    rows_needed: int | None


def certify(
    sequence: Sequence[PlannedTest],
    rows: MeasuredRows,
    *,
    epsilon: float,
    delta: float,
    has_fallback: bool = False,
) -> Certificate:
    """Goes down the sequence until the first plan that fails.

    Args:
        sequence: at least one test, as `sequence_of` orders them.
        rows: the certify part.
        epsilon: what the bound of a plan must not exceed.
        delta: probability, over the certify rows, that a plan worse than epsilon is taken.
        has_fallback: whether one more plan, safe by itself, is taken where none of these is certified.
    """
    tested: list[tuple[PlannedTest, PairedCounts, float]] = []
    for test in sequence:
        counts = counts_of(test.plan, rows)
        bound = BOUNDS[test.method](counts.losses, counts.gains, counts.rows, delta)
        tested.append((test, counts, bound))
        if bound > epsilon:
            break
    failed = tested[-1][2] > epsilon
    passed = tested[:-1] if failed else tested
    test, counts, bound = passed[-1] if passed else tested[0]
    needed = None
    if not passed:
        needed = fewest_rows(
            losses=counts.losses, gains=counts.gains, rows=counts.rows, epsilon=epsilon, delta=delta
        )
    return Certificate(
        plan=test.plan,
        certified=bool(passed),
        method=test.method,
        bound=epsilon if failed and passed else bound,
        counts=counts,
        candidates=len(sequence),
        tested=len(tested),
        accuracy_lower=rate_at_least(counts.right, counts.rows, delta / (len(sequence) + has_fallback)),
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
        """The constraint in one line."""
        text = f"got {self.got}, expected {self.expected}"
        return text if self.fix is None else f"{text}; {self.fix}"


def unmet_by_certificate(certificate: Certificate, goal: Goal, *, certify_share: float) -> UnmetConstraint:
    """Why a plan could not be certified.

    Args:
        certificate: of the plan.
        goal: what was asked.
        certify_share: part of all rows that certify.
    """
    counts = certificate.counts
    seen = f"{counts.losses} of {counts.rows} certify rows {goal.counted}"
    if goal.is_relative:
        seen += f" and {counts.gains} won"
    more = None
    fix = "no number of rows would do at this rate: ask for less"
    if certificate.rows_needed is not None:
        more = math.ceil((certificate.rows_needed - counts.rows) / certify_share)
        fix = f"about {more} more rows would do if they are like these"
    return UnmetConstraint(
        got=f"{seen} by the {'best' if goal.has_budget else 'safest'} plan, so a bound of {certificate.bound:.4g}",
        expected=f"at most {goal.allowed:.4g} with probability {1 - goal.delta:g}",
        fix=fix,
        more_rows=more,
    )


def guarantee_facts(
    goal: Goal, counts: PairedCounts, *, method: str, bound: float, statement: str | None = None
) -> dict[str, Any]:
    """A guarantee as JSON values.

    Args:
        goal: what was asked.
        counts: of the plan on the certify part.
        method: which bound.
        bound: its value.
        statement: what is guaranteed; None for the goal's own constraint.
    """
    return {
        "statement": f"{goal.sure} {statement or goal.constraint}",
        "delta": goal.delta,
        "epsilon": goal.allowed if statement is None else None,
        "rows": counts.rows,
        "losses": counts.losses,
        "gains": counts.gains,
        "counted": goal.counted,
        "method": method,
        "bound": bound,
    }
