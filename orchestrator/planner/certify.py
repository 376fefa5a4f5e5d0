"""From tables to one plan: search on one part of the rows, certify on the other what the search found.

The search part gives a fixed sequence of plans, the safest first and each next one cheaper. On the certify part
they are tested one after another, each at the full level, until the first that fails; the last that passed is
taken. If the first plan that is truly too bad stands at place j, taking it or a later one means that its own test
passed, which happens with probability delta at most: no correction for the length of the sequence is due
(the fixed-sequence procedure; Westfall and Krishen, J. Statistical Planning and Inference 99, 2001).

Rows are known as labels and scores only, so all this can be run thousands of times on samples of a population
whose truth is known.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.planner.candidates import COST_TOLERANCE, CandidatePlan, Ordering, answers_of
from orchestrator.planner.goal import (
    ENSEMBLE,
    Goal,
    MeasuredRows,
    SearchOptions,
    is_reference,
    reference_alone,
    rows_wanted,
    wanted_orderings,
)
from orchestrator.planner.intervals import BOUNDS, fewest_rows, rate_at_least, tilt_at_most
from orchestrator.planner.pricing import MOST_LOAD
from orchestrator.planner.search import RIGHT, SearchResult, search
from orchestrator.progress import Progress, no_progress
from orchestrator.spec.shares import evenly_spread

# Neighbours in a longer sequence differ by rows that nobody can tell from chance.
LONGEST_SEQUENCE = 40
# So many plans per frontier are considered for certification.
MOST_CANDIDATES = 150
# Key of the frontier whose measure is not to lose what the reference gets right.
NOT_LOST = "not_lost"


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """A plan against the reference on some rows: how many it gets right, loses and gains, see `intervals`."""

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

    `counts` are of the search part, `rows` are those of the certify part, and `delta` is the level of each test.
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
        bound: what is certified. Epsilon where a cheaper plan failed: the plan's own bound, lower by a hair, was
            then chosen for being below epsilon and does not hold by itself.
        counts: the plan's counts on the certify part.
        candidates, tested: length of the sequence, and how many of it were tested.
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


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One plan and what is known of it.

    Args:
        plan: the plan; the best reachable one where a constraint is not met.
        result: what the search part gave.
        accuracy_lower: lower bound of its accuracy (of its agreement, where labels are not looked at).
        guarantee: facts of the certificate as JSON values; None where nothing was certified.
        unmet: why the goal is not met; None where it is.
        fallback_reason: why the reference itself had to be taken; None where it had not.
    """

    plan: CandidatePlan
    result: SearchResult
    accuracy_lower: float | None = None
    guarantee: dict[str, Any] | None = None
    unmet: UnmetConstraint | None = None
    fallback_reason: UnmetConstraint | None = None


def decide(
    search_rows: MeasuredRows,
    certify_rows: MeasuredRows,
    goal: Goal,
    options: SearchOptions,
    *,
    progress: Progress = no_progress,
) -> Decision:
    """The best plan for a goal, its reference settled; certify rows are looked at only once it is searched."""
    table = search_rows.table
    orderings = wanted_orderings(goal, table.pool, options)
    if not orderings:
        cheapest = CandidatePlan(
            combine=options.combines[0], score=options.scores[0], stages=((0,),), thresholds=()
        )
        nothing = SearchResult(frontiers={RIGHT: ()}, rows=table.rows, cost_scale=1.0)
        expected = f"at least {table.pool[0].cost:g}, the cheapest member's"
        unmet = UnmetConstraint(got=f"max worst cost {goal.max_worst_cost:g}", expected=expected)
        return Decision(plan=cheapest, result=nothing, unmet=unmet)
    measures = {RIGHT: search_rows.right}
    if goal.certify and goal.is_relative and not goal.has_budget:
        measures[NOT_LOST] = search_rows.not_lost
    with progress("searching thresholds", len(orderings)) as advance:
        result = search(
            table,
            orderings,
            measures=measures,
            max_stages=goal.max_stages,
            quantiles=options.quantiles,
            advance=advance,
        )
    too_much = _too_high_a_rate(result, orderings, search_rows, goal, options)
    if too_much is not None:
        return too_much
    deciding = _Deciding(result, search_rows, certify_rows, goal, options)
    return deciding.best_in_budget() if goal.has_budget else deciding.cheapest()


def _too_high_a_rate(
    result: SearchResult, orderings: Sequence[Ordering], rows: MeasuredRows, goal: Goal, options: SearchOptions
) -> Decision | None:
    """What is the most, and by which plan, where no plan that is good enough carries the rate.

    None where one does, and where none would be good enough at any rate.
    """
    loads, frontier = rows.table.prices.loads, result.frontiers[RIGHT]
    wanted = rows_wanted(goal, rows) if goal.has_constraint and not goal.has_budget else 0.0
    if loads is None or result.cheapest_at_accuracy(frontier, correct=wanted) is not None:
        return None
    limits: dict[str, Any] = {"max_stages": goal.max_stages, "quantiles": options.quantiles, "least_load": True}
    least = search(rows.table, orderings, measures={RIGHT: rows.right}, **limits)
    good = least.cheapest_at_accuracy(least.frontiers[RIGHT], correct=wanted)
    if good is None and frontier:
        return None
    plan = good or least.frontiers[RIGHT][-1]
    most = loads.rate * MOST_LOAD / least.mean_cost(plan)
    names = " -> ".join("+".join(rows.table.pool[place].name for place in stage) for stage in plan.stages)
    condition = f" with {goal.constraint}" if wanted and good is not None else ""
    unmet = UnmetConstraint(
        got=f"{loads.rate:g} rows/s",
        expected=f"at most {most:.4g}, what {names} carries{condition} at {MOST_LOAD:.0%} of its capacity",
        fix="plan for more `servers` or a lower `rate`",
    )
    return Decision(plan=plan, result=result, unmet=unmet)


@dataclass(frozen=True)
class _Deciding:
    """A finished search, and what its plans are judged by."""

    result: SearchResult
    search_rows: MeasuredRows
    certify_rows: MeasuredRows
    goal: Goal
    options: SearchOptions

    def best_in_budget(self) -> Decision:
        """The most accurate plan within a mean cost, with a bound of its accuracy or of what it loses."""
        result, goal, budget = self.result, self.goal, self.goal.max_mean_cost
        assert budget is not None
        plan = result.best_at_cost(result.frontiers[RIGHT], max_mean_cost=budget)
        if plan is None:
            least = result.frontiers[RIGHT][-1]
            cost, share = result.mean_cost(least), self._share(least)
            expected = f"at least {cost:g}, where {goal.noun} is {share:.4f}"
            return self._unmet(least, got=f"max mean cost {budget:g}", expected=expected)
        if not goal.has_constraint:
            return self._bounded(plan) if goal.certify else Decision(plan=plan, result=result)
        wanted = rows_wanted(goal, self.search_rows)
        if plan.correct < wanted - 1e-9 * result.rows:
            return self._unmet(
                plan,
                got=f"{goal.noun} {self._share(plan):.6g}, the best with mean cost <= {budget:g}",
                expected=f"at least {wanted / result.rows:.6g} on the search part: {goal.constraint}",
                fix="allow a higher mean cost or a larger epsilon",
            )
        return self._certified(plan)

    def cheapest(self) -> Decision:
        """The cheapest plan that is good enough, by the search part alone or certified."""
        frontier, wanted = self.result.frontiers[RIGHT], rows_wanted(self.goal, self.search_rows)
        plan = self.result.cheapest_at_accuracy(frontier, correct=wanted)
        if plan is None:
            return self._unmet(
                frontier[0],
                got=f"{self.goal.noun} >= {wanted / self.result.rows:.6g} asked",
                expected=f"at most {self._share(frontier[0]):.6g}, the best of all plans on the search part",
            )
        return self._certified(plan)

    def _share(self, plan: CandidatePlan) -> float:
        return plan.correct / self.result.rows

    def _unmet(self, plan: CandidatePlan, *, got: str, expected: str, fix: str | None = None) -> Decision:
        return Decision(plan=plan, result=self.result, unmet=UnmetConstraint(got=got, expected=expected, fix=fix))

    def _facts(
        self, counts: PairedCounts, *, method: str, bound: float, statement: str | None = None
    ) -> dict[str, Any]:
        """A guarantee as JSON values; of the goal's own constraint where no other statement is given."""
        goal = self.goal
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

    def _bounded(self, plan: CandidatePlan) -> Decision:
        """A plan that has no constraint to keep to, with a lower bound of its accuracy from the certify part."""
        counts = counts_of(plan, self.certify_rows)
        lower = rate_at_least(counts.right, counts.rows, self.goal.delta)
        statement = f"{self.goal.noun} >= {lower:.6g}"
        facts = self._facts(counts, method="clopper_pearson_losses", bound=1 - lower, statement=statement)
        return Decision(plan=plan, result=self.result, accuracy_lower=lower, guarantee=facts)

    def _certified(self, plan: CandidatePlan) -> Decision:
        """A plan that is good enough on the search part, certified where that is asked for."""
        goal, pool = self.goal, self.search_rows.table.pool
        if not goal.certify:
            return Decision(plan=plan, result=self.result)
        if is_reference(plan, goal, pool, combine=self.options.combines[0]):
            return self._reference_itself(plan)
        # Within a budget one plan is settled before the certify part is looked at: a sequence of one.
        sequence = self._tests([plan]) if goal.has_budget else sequence_of(self._tests(self._candidates(plan)))
        reference = reference_alone(goal, pool, self.options)
        certificate = certify(
            sequence, self.certify_rows, epsilon=goal.allowed, delta=goal.delta, has_fallback=reference is not None
        )
        if reference is not None and not certificate.certified:
            return self._reference_itself(reference, certificate)
        facts = self._facts(certificate.counts, method=certificate.method, bound=certificate.bound)
        facts |= {name: getattr(certificate, name) for name in ("candidates", "tested", "certified")}
        return Decision(
            plan=certificate.plan,
            result=self.result,
            accuracy_lower=certificate.accuracy_lower if goal.is_relative else 1 - certificate.bound,
            guarantee=facts,
            unmet=None if certificate.certified else self._unmet_by(certificate),
        )

    def _reference_itself(self, plan: CandidatePlan, failed: Certificate | None = None) -> Decision:
        """The reference, which is never worse than itself; `failed` is of the plans that were tested before it."""
        counts = counts_of(plan, self.certify_rows)
        nothing_lost = dataclasses.replace(counts, losses=0, gains=0)
        facts = self._facts(nothing_lost, method="identity", bound=0.0)
        reason, delta = None, self.goal.delta
        if failed is not None:
            reason = self._unmet_by(failed)
            facts |= {
                "candidates": failed.candidates, "tested": failed.tested, "more_rows": reason.more_rows
            }  # fmt: skip
            # The others were tested before it: the level is shared with them.
            delta /= failed.candidates + 1
        lower = 1.0 if self.goal.label_free else rate_at_least(counts.right, counts.rows, delta)
        return Decision(
            plan=plan, result=self.result, accuracy_lower=lower, guarantee=facts, fallback_reason=reason
        )

    def _unmet_by(self, certificate: Certificate) -> UnmetConstraint:
        """Why a plan could not be certified."""
        counts, goal = certificate.counts, self.goal
        seen = f"{counts.losses} of {counts.rows} certify rows {goal.counted}"
        if goal.is_relative:
            seen += f" and {counts.gains} won"
        best = "best" if goal.has_budget else "safest"
        more, fix = None, "no number of rows would do at this rate: ask for less"
        if certificate.rows_needed is not None:
            certify_share = counts.rows / (self.result.rows + counts.rows)
            more = math.ceil((certificate.rows_needed - counts.rows) / certify_share)
            fix = f"about {more} more rows would do if they are like these"
        return UnmetConstraint(
            got=f"{seen} by the {best} plan, so a bound of {certificate.bound:.4g}",
            expected=f"at most {goal.allowed:.4g} with probability {1 - goal.delta:g}",
            fix=fix,
            more_rows=more,
        )

    def _candidates(self, cheapest: CandidatePlan) -> list[CandidatePlan]:
        """Plans cheaper than the reference, each frontier thinned evenly, and the cheapest good one."""
        found: dict[CandidatePlan, CandidatePlan] = {}
        most = self._reference_cost()
        for frontier in self.result.frontiers.values():
            cheaper = [plan for plan in frontier if plan.integer_cost < most]
            found |= {cheaper[place]: cheaper[place] for place in evenly_spread(len(cheaper), MOST_CANDIDATES)}
        found[cheapest] = cheapest
        return list(found.values())

    def _tests(self, plans: list[CandidatePlan]) -> list[PlannedTest]:
        """Tests of the plans that are good enough on the search part."""
        wanted = rows_wanted(self.goal, self.search_rows) - 1e-9 * self.result.rows
        counted = [(plan, counts_of(plan, self.search_rows)) for plan in plans]
        return [
            planned_test(plan, counts, rows=self.certify_rows.table.rows, delta=self.goal.delta)
            for plan, counts in counted
            if counts.right >= wanted
        ]

    def _reference_cost(self) -> float:
        """What the reference costs, which a plan has to be below; no limit where the reference is not allowed."""
        goal = self.goal
        if goal.reference in (None, ENSEMBLE):
            return math.inf
        table = self.search_rows.table
        place = [member.name for member in table.pool].index(str(goal.reference))
        if goal.max_worst_cost is not None and table.pool[place].cost > goal.max_worst_cost:
            return math.inf
        return float(table.prices.stage((place,), table.rows, asked=())) * (1 - COST_TOLERANCE)
