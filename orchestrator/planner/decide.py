"""From tables to one plan: search on one part of the rows, and certify on the other what the search found.

Knows rows as labels and scores only, so it can be run thousands of times on samples of a population whose truth is
known.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from orchestrator.planner.candidates import COST_TOLERANCE, CandidatePlan, orderings_of
from orchestrator.planner.certify import (
    Certificate,
    PlannedTest,
    UnmetConstraint,
    certify,
    counts_of,
    guarantee_facts,
    planned_test,
    sequence_of,
    unmet_by_certificate,
)
from orchestrator.planner.goal import (
    ENSEMBLE,
    Goal,
    MeasuredRows,
    SearchOptions,
    is_reference,
    reference_alone,
    rows_wanted,
)
from orchestrator.planner.intervals import rate_at_least
from orchestrator.planner.search import RIGHT, SearchResult, search
from orchestrator.progress import Progress, no_progress
from orchestrator.spec.shares import evenly_spread

# Key of the frontier whose measure is not to lose what the reference gets right.
NOT_LOST = "not_lost"
# So many plans per frontier are considered for certification.
MOST_CANDIDATES = 150


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
    """The best plan for a goal.

    Args:
        search_rows: rows to choose on.
        certify_rows: rows to certify on, looked at only after the search is over.
        goal: what is wanted, its reference settled.
        options: how to look.
        progress: shows the search.
    """
    table = search_rows.table
    orderings = orderings_of(
        table.pool,
        combines=options.combines,
        scores=options.scores,
        max_stages=goal.max_stages,
        max_worst_cost=goal.max_worst_cost,
    )
    if not orderings:
        cheapest = CandidatePlan(
            combine=options.combines[0], score=options.scores[0], stages=((0,),), thresholds=()
        )
        return Decision(
            plan=cheapest,
            result=SearchResult(frontiers={RIGHT: ()}, rows=table.rows, cost_scale=1.0),
            unmet=UnmetConstraint(
                got=f"max worst cost {goal.max_worst_cost:g}",
                expected=f"at least {table.pool[0].cost:g}, the cheapest member's",
            ),
        )
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
    deciding = _Deciding(result, search_rows, certify_rows, goal, options)
    return deciding.best_in_budget() if goal.has_budget else deciding.cheapest()


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
            return self._unmet(
                least,
                got=f"max mean cost {budget:g}",
                expected=f"at least {result.mean_cost(least):g}, where {goal.noun} is {self._share(least):.4f}",
            )
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

    def _bounded(self, plan: CandidatePlan) -> Decision:
        """A plan that has no constraint to keep to, with a lower bound of its accuracy from the certify part."""
        counts = counts_of(plan, self.certify_rows)
        lower = rate_at_least(counts.right, counts.rows, self.goal.delta)
        facts = guarantee_facts(
            self.goal,
            counts,
            method="clopper_pearson_losses",
            bound=1 - lower,
            statement=f"{self.goal.noun} >= {lower:.6g}",
        )
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
        counts = certificate.counts
        facts = guarantee_facts(goal, counts, method=certificate.method, bound=certificate.bound)
        facts |= {
            "candidates": certificate.candidates,
            "tested": certificate.tested,
            "certified": certificate.certified,
        }
        return Decision(
            plan=certificate.plan,
            result=self.result,
            accuracy_lower=certificate.accuracy_lower if goal.is_relative else 1 - certificate.bound,
            guarantee=facts,
            unmet=None if certificate.certified else self._unmet_by(certificate),
        )

    def _reference_itself(self, plan: CandidatePlan, certificate: Certificate | None = None) -> Decision:
        """The reference, which is never worse than itself.

        Args:
            plan: the reference as a plan.
            certificate: of the other plans, none of which passed; None where the search found none to test.
        """
        counts = counts_of(plan, self.certify_rows)
        nothing_lost = dataclasses.replace(counts, losses=0, gains=0)
        facts = guarantee_facts(self.goal, nothing_lost, method="identity", bound=0.0)
        reason, delta = None, self.goal.delta
        if certificate is not None:
            reason = self._unmet_by(certificate)
            facts |= {
                "candidates": certificate.candidates,
                "tested": certificate.tested,
                "more_rows": reason.more_rows,
            }
            # The others were tested before it: the level is shared with them.
            delta /= certificate.candidates + 1
        lower = 1.0 if self.goal.label_free else rate_at_least(counts.right, counts.rows, delta)
        return Decision(
            plan=plan, result=self.result, accuracy_lower=lower, guarantee=facts, fallback_reason=reason
        )

    def _unmet_by(self, certificate: Certificate) -> UnmetConstraint:
        rows = self.certify_rows.table.rows
        return unmet_by_certificate(certificate, self.goal, certify_share=rows / (self.result.rows + rows))

    def _candidates(self, cheapest: CandidatePlan) -> list[CandidatePlan]:
        """Plans cheaper than the reference, each frontier thinned evenly, and the cheapest good one."""
        found: dict[CandidatePlan, CandidatePlan] = {}
        most = self._reference_cost()
        for frontier in self.result.frontiers.values():
            cheaper = [plan for plan in frontier if plan.integer_cost < most]
            places = evenly_spread(len(cheaper), MOST_CANDIDATES)
            found |= {cheaper[place]: cheaper[place] for place in places}
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
        cost = next(member.cost for member in self.search_rows.table.pool if member.name == goal.reference)
        if goal.max_worst_cost is not None and cost > goal.max_worst_cost:
            return math.inf
        return cost * (1 - COST_TOLERANCE) * self.result.rows * self.result.cost_scale
